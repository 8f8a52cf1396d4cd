"""Quantized caches: the same entries, rounded."""

from __future__ import annotations

import copy
import importlib.util
import io
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families.loop import FamilyLoop
from marks import attentions, policies, ways
from models import CACHE, IMAGE_TOKEN, RESETS, batch, greedy, loop_logits, near, prompt, tiny_llava
from transformers import Cache, DynamicCache, QuantizedCache, cache_utils
from transformers.cache_utils import QuantizedLayer

import lightkv_gnn as lk
from lightkv_gnn.cache import layers as kinds

SCHEDULE = ((1, 2, 0.5), (3, 1, 0.5))
STAGES = [lk.Stage(*stage) for stage in SCHEDULE]
RAGGED = [prompt(4, "image", 6), prompt(2, "image", 3, "image", 4, seed=1), prompt(9, seed=2)]
GROUPS = {"nbits": 4, "q_group_size": 16, "residual_length": 6}


fp8 = pytest.mark.skipif(
    not hasattr(cache_utils, "Fp8QuantizedLayer"), reason="transformers without fp8 caches"
)


def needs(package: str) -> Any:
    found = importlib.util.find_spec(package.partition(".")[0])
    found = found and importlib.util.find_spec(package)
    return pytest.mark.skipif(not found, reason=f"{package} is not installed")


BACKENDS = [
    pytest.param("fp8", marks=fp8),
    "grouped",
    pytest.param("quanto", marks=needs("optimum.quanto")),
    pytest.param("hqq", marks=needs("hqq")),
]
backends = pytest.mark.parametrize("backend", BACKENDS)


class GroupedLayer(QuantizedLayer):
    """Stands for the backends that transformers has packages for."""

    def _quantize(self, tensor: torch.Tensor, axis: int) -> Any:
        scale = tensor.abs().amax(-1, keepdim=True) / 7
        return (tensor / scale).round().to(torch.int8), scale

    def _dequantize(self, qtensor: Any) -> torch.Tensor:
        return qtensor[0] * qtensor[1]


class CompressedGroupedLayer(kinds._QuantizedMixin, GroupedLayer):
    """As the classes of the package are made."""


@pytest.fixture(autouse=True)
def grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kinds._COMPRESSED, GroupedLayer, CompressedGroupedLayer)


def quantized(backend: str, model: Any) -> Cache:
    config = model.config.text_config
    if backend == "grouped":
        return Cache(layers=[GroupedLayer(residual_length=6) for _ in range(6)])
    axes = {"axis_key": 1, "axis_value": 1} if backend == "hqq" else {}
    options = {} if backend == "fp8" else {**GROUPS, **axes}
    return QuantizedCache(backend, config, **options)


def configured(positions: str = "preserve") -> lk.LightKVConfig:
    return lk.LightKVConfig(STAGES, positions=positions)


def held(layer: Any, name: str) -> torch.Tensor:
    """What a layer's next attention will see of its entries so far."""
    packed = layer._dequantize(getattr(layer, f"_quantized_{name}"))
    rest = getattr(layer, name)
    return torch.cat([packed, rest], 2) if rest.ndim == 4 else packed


@ways
@pytest.mark.parametrize("backend", BACKENDS[1:])
@torch.no_grad()
def test_steps_equal_those_on_rounded_entries(backend: str, attention: str, positions: str) -> None:
    """Of a ragged batch, past the length at which new entries are rounded too."""
    model, inputs = tiny_llava(attention=attention), batch(*RAGGED)
    mask = inputs["attention_mask"]
    with lk.attach(model, configured(positions)) as handle:
        cache, plain = quantized(backend, model), DynamicCache()
        expected = model(**inputs, **{CACHE: plain}).logits
        planned = handle.ledger.rows
        assert torch.equal(model(**inputs, **{CACHE: cache}).logits, expected)
        for row in handle.ledger.rows:
            assert row.observed_kv_bytes < row.planned.kv_bytes / 2
            assert row.planned == planned[row.layer].planned
        for step in range(10):
            for mine, other in zip(plain.layers, cache.layers, strict=True):
                mine.keys, mine.values = held(other, "keys"), held(other, "values")
            token = torch.tensor([[9 + step], [30 + step], [70 + step]])
            mask = torch.cat([mask, torch.ones_like(token)], 1)
            call = {"input_ids": token, "attention_mask": mask}
            expected = model(**call, **{CACHE: plain}).logits
            near(model(**call, **{CACHE: cache}).logits, expected)
            lengths = {layer.get_seq_length() for layer in cache.layers}
            assert lengths == {inputs["input_ids"].shape[1] + step + 1}


class Rounded(list[torch.Tensor]):
    """Entries of a layer; once there is a scale, new ones are rounded as they come."""

    scale: torch.Tensor | None = None

    def __iadd__(self, entries: Any) -> Rounded:  # type: ignore[misc, override]
        self.extend(entries if self.scale is None else [self.round(x) for x in entries])
        return self

    def start(self) -> None:
        self.scale = torch.stack(self).abs().max() / 448
        self[:] = [self.round(x) for x in self]

    def round(self, x: torch.Tensor) -> torch.Tensor:
        return (x / self.scale).to(torch.float8_e4m3fn).float() * self.scale


@fp8
@policies
@attentions
@torch.no_grad()
def test_fp8_equals_the_loop_on_rounded_entries(attention: str, positions: str) -> None:
    model, inputs = tiny_llava(attention=attention), batch(prompt(4, "image", 6))
    loop = FamilyLoop(model, "llava", SCHEDULE, positions=positions)
    cache = quantized("fp8", model)
    for layer in loop.layers:
        layer.keys, layer.values = Rounded(), Rounded()
    with lk.attach(model, configured(positions)) as handle:
        expected = loop_logits(loop, inputs)
        near(model(**inputs, **{CACHE: cache}).logits[0], expected)
        # A byte for a number, 2 heads of 16 channels; and two scales of four bytes.
        observed = [row.observed_kv_bytes for row in handle.ledger.rows]
        assert observed == [64 * entries + 8 for entries in loop.lengths]
        for layer in loop.layers:
            layer.keys.start()
            layer.values.start()
        for _ in range(8):
            token = int(expected[-1].argmax())
            expected = loop.run_text([token])
            logits = model(input_ids=torch.tensor([[token]]), **{CACHE: cache}).logits[0]
            near(logits, expected)
    assert loop.margin > 1e-4


@fp8
@ways
def test_generate(attention: str, positions: str) -> None:
    model, inputs = tiny_llava(attention=attention), batch(*RAGGED)
    how = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}
    with lk.attach(model, configured(positions)) as handle:
        tokens = greedy(model, inputs, 8, suppress_tokens=[IMAGE_TOKEN], **how)
        assert len(handle.trace) == 2
        mask, cache = inputs["attention_mask"], quantized("fp8", model)
        places = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model(**inputs, position_ids=places, **{CACHE: cache}).logits
        for token in tokens.unbind(1):
            best = logits[:, -1].index_fill(1, torch.tensor([IMAGE_TOKEN]), -torch.inf).argmax(1)
            assert torch.equal(best, token)
            mask = torch.cat([mask, torch.ones_like(token)[:, None]], 1)
            places = places[:, -1:] + 1
            call = {"attention_mask": mask, "position_ids": places, CACHE: cache}
            logits = model(input_ids=token[:, None], **call).logits
        assert len(greedy(model, inputs, 8, num_beams=3, **how)) == 3


@ways
@backends
@torch.no_grad()
def test_copies_and_reordered_samples(backend: str, attention: str, positions: str) -> None:
    model, inputs = tiny_llava(attention=attention), batch(*RAGGED)
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, 1, dtype=torch.int64)], 1)
    token, rows = torch.tensor([[8], [9], [10]]), torch.tensor([2, 0, 1])
    call = {"input_ids": token, "attention_mask": mask}
    with lk.attach(model, configured(positions)):
        cache, picked = quantized(backend, model), quantized(backend, model)
        model(**inputs, **{CACHE: cache})
        model(**inputs, **{CACHE: picked})
        copies = []
        if backend in ("fp8", "grouped"):  # what packages pack cannot always be copied
            file = io.BytesIO()
            torch.save(cache, file)  # plain pickle does not know torch's 8-bit floats
            file.seek(0)
            copies = [copy.deepcopy(cache), torch.load(file, weights_only=False)]
        expected = model(**call, **{CACHE: cache}).logits
        for each in copies:
            assert {layer.get_seq_length() for layer in each.layers} == {41}
            assert torch.equal(model(**call, **{CACHE: each}).logits, expected)
        if hasattr(cache_utils, "BaseQuantizedLayer"):  # before, only a part was reordered
            picked.reorder_cache(rows)
            call = {"input_ids": token[rows], "attention_mask": mask[rows]}
            near(model(**call, **{CACHE: picked}).logits, expected[rows])


@backends
@torch.no_grad()
def test_what_transformers_would_do_to_a_part_only_is_refused(backend: str) -> None:
    model = tiny_llava()
    message = r"quantized cache.*DynamicCache\(\)"
    with lk.attach(model, configured()):
        cache = quantized(backend, model)
        model(**batch(*RAGGED), **{CACHE: cache})
        before = [held(layer, "keys") for layer in cache.layers]
        acts: list[Callable[[Any], None]] = [
            lambda each: each.crop(-1),
            lambda each: each.batch_repeat_interleave(2),
            lambda each: each.batch_select_indices(torch.tensor([1])),
        ]
        for act, whole_or_layer in itertools.product(acts, (cache, cache.layers[-1])):
            with pytest.raises(lk.UnsupportedInputError, match=message):
                act(whole_or_layer)
        for layer, keys in zip(cache.layers, before, strict=True):
            assert torch.equal(held(layer, "keys"), keys)


@pytest.mark.skipif(not RESETS, reason="reset writes zeros")
@backends
@torch.no_grad()
def test_a_reset_cache_is_like_new(backend: str) -> None:
    model, inputs = tiny_llava(), batch(*RAGGED)
    text = batch(prompt(18), prompt(5, seed=1), prompt(17, seed=2))
    step = {"input_ids": torch.tensor([[5], [6], [7]])}
    cache, plain = quantized(backend, model), quantized(backend, model)
    expected = [model(**each, **{CACHE: plain}).logits for each in (text, step)]
    with lk.attach(model, configured("reindex")):
        first = model(**inputs, **{CACHE: cache}).logits
    seen = [layer.cumulative_length for layer in cache.layers]
    with pytest.raises(RuntimeError, match="outside the context"):
        model(**step, **{CACHE: cache})
    assert [layer.cumulative_length for layer in cache.layers] == seen
    with lk.attach(model, configured("reindex")):
        cache.reset()
        assert torch.equal(model(**inputs, **{CACHE: cache}).logits, first)
    cache.reset()
    for each, logits in zip((text, step), expected, strict=True):
        assert torch.equal(model(**each, **{CACHE: cache}).logits, logits)


@torch.no_grad()
def test_text_alone_leaves_the_cache_as_it_was() -> None:
    model, text = tiny_llava(), batch(prompt(9), prompt(5, seed=1))
    cache, plain = quantized("grouped", model), quantized("grouped", model)
    expected = model(**text, **{CACHE: plain}).logits
    with lk.attach(model, configured()):
        assert torch.equal(model(**text, **{CACHE: cache}).logits, expected)
    assert all(type(layer) is GroupedLayer for layer in cache.layers)
