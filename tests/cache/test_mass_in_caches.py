"""What the other files here see of caches, with survivors that count as often as they stand for."""

from __future__ import annotations

import pytest
import test_quantized
import test_sliding
import test_static_cache
import torch
from marks import ways

from lightkv_gnn.cache import layers

pytestmark = pytest.mark.usefixtures("mass")


@ways
@torch.no_grad()
def test_static_caches(attention: str, positions: str) -> None:
    test_static_cache.test_prefill_and_decoding_equal_the_loop(attention, positions, 0)
    test_static_cache.test_a_ragged_batch_equals_each_alone(attention, positions)
    test_static_cache.test_decoding_reads_nothing_back(attention, positions)
    test_static_cache.test_a_reset_cache_is_like_new(attention)


@ways
@pytest.mark.parametrize("before", [(), (3,)], ids=["image first", "text first"])
def test_turns_on_a_static_cache(before: tuple[int, ...], attention: str, positions: str) -> None:
    turns = "text, image, text"
    test_static_cache.test_later_turns_equal_the_loop(turns, attention, positions, before)


@pytest.mark.slow
def test_compiled_decoding(mass: None) -> None:
    test_static_cache.test_compiled_decoding("sdpa", "preserve")


@ways
@test_sliding.kinds
@pytest.mark.parametrize("window", [9, 26])
def test_sliding_windows(window: int, kind: str, attention: str, positions: str) -> None:
    test_sliding.test_alternating_layers_equal_the_loop(window, 0, attention, positions, kind)
    test_sliding.test_a_ragged_batch_equals_each_alone(window, attention, positions, kind)


@ways
def test_quantized_caches(attention: str, positions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = test_quantized.GroupedLayer, test_quantized.CompressedGroupedLayer
    monkeypatch.setitem(layers._COMPRESSED, *made)
    test_quantized.test_steps_equal_those_on_rounded_entries("grouped", attention, positions)
