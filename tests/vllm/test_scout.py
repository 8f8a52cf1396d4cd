"""The scout: what the first layer says, alike on all processes, and never another number."""

from __future__ import annotations

import math
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import shared_heads
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_heads import CASES, HEAD, SIDE, run
from torch import nn

from lightkv_gnn.stage.ranks import Ranks
from lightkv_gnn.vllm.merging import PictureMerger
from lightkv_gnn.vllm.plan import plan_picture
from lightkv_gnn.vllm.scout import Scout
from lightkv_gnn.vllm.settings import Settings

Found = dict[str, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Found]:
    """What two processes find, each with half of the heads."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = [
        subprocess.Popen([sys.executable, shared_heads.__file__, str(folder), str(rank)])
        for rank in range(2)
    ]
    try:
        assert [process.wait(100) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return torch.load(folder / "rank-0.pt"), torch.load(folder / "rank-1.pt")


@pytest.mark.parametrize("case", CASES)
def test_processes_agree_bit_for_bit(both: tuple[Found, Found], case: str) -> None:
    first, second = (found[case] for found in both)
    assert torch.equal(first["guidance"], second["guidance"])
    assert torch.equal(first["merged"], second["merged"])
    whole = run(case)
    torch.testing.assert_close(first["guidance"], whole["guidance"])
    torch.testing.assert_close(first["merged"], whole["merged"])


@pytest.mark.parametrize("kind", ["text_to_vision", "vision_to_text"])
def test_it_is_the_first_layers_attention(kind: str) -> None:
    """Written down head by head: each head of each word shares out one."""
    features, text = shared_heads.picture()
    layer = SimpleNamespace(
        self_attn=shared_heads.LlamaAttention(4, 2, 0, 1), input_layernorm=nn.RMSNorm(24)
    )
    with torch.no_grad():
        found = Scout(layer, shared_heads.table(), kind, Ranks())(features, text)
        words = shared_heads.table()(text)
        query, key, _ = layer.self_attn.weight.view(-1, HEAD, 24).split([4, 2, 2])
        expected = torch.zeros(len(features))
        for head in range(4):
            sides = query[head], key[head // 2]
            asking, asked = sides if kind == "text_to_vision" else sides[::-1]
            of_words = layer.input_layernorm(words) @ asking.T
            of_picture = layer.input_layernorm(features) @ asked.T
            logits = of_words @ of_picture.T / math.sqrt(HEAD)
            expected += logits.softmax(dim=1).sum(0)
    torch.testing.assert_close(found.exp(), expected)


class Said:
    """A scout that says what it is told to."""

    def __init__(self, guidance: torch.Tensor) -> None:
        self.guidance = guidance

    def __call__(self, features: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.guidance


ODD = st.sampled_from([0.0, -3.0, 80.0, -math.inf, math.inf, math.nan])


@settings(deadline=None)
@given(st.lists(ODD, min_size=36, max_size=36), st.data(), st.sampled_from([0.02, 0.3, 0.9]))
def test_no_guidance_changes_the_number(
    said: list[float], data: st.DataObject, retention: float
) -> None:
    features = torch.randn(36, 4)
    for row in data.draw(st.lists(st.integers(0, 35), max_size=3)):
        features[row] = data.draw(st.sampled_from([math.nan, math.inf, 0.0]))
    chosen = Settings(retention, guidance="text_to_vision")
    scout: Any = Said(torch.tensor(said))
    merged = PictureMerger(chosen, scout=scout)(features, (6, 6), text=torch.zeros(1))
    assert len(merged) == plan_picture(chosen, (6, 6)).kept


def test_what_is_asked_for_stays() -> None:
    """Of 36 tokens at right angles, those with guidance stay."""
    said = torch.zeros(36)
    said[[4, 9, 20, 35]] = 5
    scout: Any = Said(said)
    chosen = Settings(0.1, windows=1, message="destination_only", guidance="text_to_vision")
    merged = PictureMerger(chosen, scout=scout)(torch.eye(36), (6, 6), text=torch.zeros(1))
    assert merged.argmax(dim=1).tolist() == [4, 9, 20, 35]


def test_no_words_weigh_all_alike() -> None:
    features, text = shared_heads.picture()
    layer = SimpleNamespace(
        self_attn=shared_heads.LlamaAttention(4, 2, 0, 1), input_layernorm=nn.RMSNorm(24)
    )
    scout = Scout(layer, shared_heads.table(), "text_to_vision", Ranks())
    assert not scout(features, text[:0]).any()
    with pytest.raises(ValueError, match="without the text that guides it"):
        PictureMerger(Settings(0.5, guidance="text_to_vision"), scout=scout)(features, (SIDE, SIDE))


def test_adapters_of_requests_do_not_guide() -> None:
    features, text = shared_heads.picture()
    layer = SimpleNamespace(
        self_attn=shared_heads.LlamaAttention(4, 2, 0, 1), input_layernorm=nn.RMSNorm(24)
    )
    scout = Scout(layer, shared_heads.table(), "text_to_vision", Ranks())
    plain = scout(features, text)
    layer.self_attn.qkv_proj = SimpleNamespace(base_layer=layer.self_attn.qkv_proj)
    assert torch.equal(scout(features, text), plain)


def test_attention_of_another_kind_is_refused() -> None:
    layer = SimpleNamespace(self_attn=nn.Identity(), input_layernorm=nn.RMSNorm(24))
    with pytest.raises(ValueError, match="an attention of Identity: expected one of"):
        Scout(layer, shared_heads.table(), "text_to_vision", Ranks())
