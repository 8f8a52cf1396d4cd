"""The bill: formulas recomputed, sums, and what is printed."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from families.more import MORE
from families.more import model_of as more_model_of
from families.more_inputs import samples
from marks import full
from models import CACHE, LAYERS, batch, check_ledger, prompt, tiny_llava
from torch.utils.flop_counter import FlopCounterMode

import lightkv_gnn as lk
from lightkv_gnn.adapters.counting import count_weights
from lightkv_gnn.costs.ledger import DecoderSize

PROMPTS = [prompt(4, "image", 6), prompt(2, "image", 3, "image", 4, seed=1), prompt(9, seed=2)]
STAGES = [lk.Stage(1, 2, 0.5), lk.Stage(3, 1, 0.5)]

# Worked out by hand: tokens and vision tokens of each sample in layers 0-1, 2-3, 4-5.
TEXT = (10, 9, 9)
VISION = ((16, 32, 0), (8, 16, 0), (4, 8, 0))
LENGTHS = [[t + v for t, v in zip(TEXT, vision, strict=True)] for vision in VISION]


def bill(**options: Any) -> tuple[lk.Ledger, torch.nn.Module, Any]:
    model = tiny_llava(**options)
    with torch.no_grad(), lk.attach(model, lk.LightKVConfig(STAGES)) as handle:
        cache = model(**batch(*PROMPTS))[CACHE]
    check_ledger(handle.ledger, cache)
    return handle.ledger, model, cache


@pytest.fixture(scope="module")
def billed() -> tuple[lk.Ledger, torch.nn.Module, Any]:
    return bill()


@pytest.mark.parametrize(
    "options", [{}, {"text": "qwen2"}, {"text_options": {"head_dim": 24}}], ids=str
)
def test_every_number_of_every_row(options: dict[str, Any]) -> None:
    ledger, model, _ = bill(**options)
    layers = model.model.language_model.layers
    head = options.get("text_options", {}).get("head_dim", 16)
    assert len(ledger.rows) == LAYERS
    for number, row in enumerate(ledger.rows):
        lengths, vision = LENGTHS[number // 2], VISION[number // 2]
        weights = sum(p.numel() for p in layers[number].parameters())
        assert row.layer == number
        assert row.full == ledger.rows[0].planned
        assert row.planned.tokens == sum(lengths)
        assert row.planned.vision_tokens == sum(vision)
        assert row.planned.kv_bytes == 2 * 3 * 2 * head * max(lengths) * 4
        assert row.planned.flops == sum(2 * weights * n + 4 * n * n * 4 * head for n in lengths)
        assert row.observed_tokens == 3 * max(lengths)
        assert row.observed_kv_bytes == row.planned.kv_bytes


def test_flops_are_those_of_the_matrices() -> None:
    """Against torch's own count; norms, rotary positions and softmax are left out by both."""
    model, inputs = tiny_llava(attention="eager"), batch(PROMPTS[0])
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), lk.attach(model, lk.LightKVConfig([])) as handle, counter:
        model(**inputs)
    counts = counter.get_flop_counts()
    layers = [v for k, v in counts.items() if k.endswith("language_model.layers.0")]
    (counted,) = (sum(by_operator.values()) for by_operator in layers)
    layer = model.model.language_model.layers[0]
    norms = layer.input_layernorm.weight.numel() + layer.post_attention_layernorm.weight.numel()
    assert handle.ledger.rows[0].planned.flops == counted + 2 * norms * 26


@pytest.mark.filterwarnings("ignore:.*quantiz:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@torch.no_grad()
def test_packed_weights_count_as_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 8 bits as torch packs them, and in 4 as two in a byte."""
    engines = [name for name in torch.backends.quantized.supported_engines if name != "none"]
    if not engines:
        pytest.skip("torch without quantized kernels")
    model, inputs = tiny_llava("qwen2"), batch(prompt(4, "image", 6))  # some of it has biases
    monkeypatch.setattr(torch.backends.quantized, "engine", engines[-1])
    packed = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8)
    flops = []
    for one in (model, packed):
        with lk.attach(one, lk.LightKVConfig([lk.Stage(1, 2, 0.5)])) as handle:
            one(**inputs)
        flops.append([(row.planned.flops, row.observed_flops) for row in handle.ledger.rows])
    assert flops[0] == flops[1]


def test_weights_are_counted_once_under_wrappers() -> None:
    plain = torch.nn.Linear(6, 4)
    halves = torch.nn.Linear(6, 4)
    halves.weight = torch.nn.Parameter(torch.zeros(12, 1, dtype=torch.uint8), requires_grad=False)
    wrapper = torch.nn.Sequential(halves, torch.nn.Linear(6, 2), torch.nn.Linear(2, 4))
    wrapper.in_features, wrapper.out_features = 6, 4  # as those of low-rank adapters
    assert count_weights(plain) == count_weights(halves) == 28
    assert count_weights(wrapper) == 28 + 14 + 12


CHOSEN = ("qwen3_vl_moe", "glm4v_moe", "aria", "ernie4_5_vl_moe")
CHOSEN_TOO = ("qwen3_omni_moe_thinker", "minimax_m3_vl", "step3p7", "deepseek_ocr2")


@pytest.mark.parametrize(
    "family",
    [name for name in CHOSEN if name in MORE]
    + full(*(name for name in CHOSEN_TOO if name in MORE)),
)
def test_flops_are_those_of_the_experts_that_are_chosen(family: str) -> None:
    """Of each layer: with GLM, the first one has no experts and the others a shared one too.

    With ERNIE, vision tokens have smaller ones than text.
    """
    model = more_model_of(family)
    model.set_experts_implementation("eager")
    inputs, _ = samples(family, model)
    counter = FlopCounterMode(display=False)
    after = lk.adapter_for(model).legal_layers[0]
    config = lk.LightKVConfig([lk.Stage(after, 1, 0.5)])
    with torch.no_grad(), lk.attach(model, config) as handle, counter:
        model(**inputs)
    counts, rows = counter.get_flop_counts(), handle.ledger.rows
    for row, layer in zip(rows, model.model.language_model.layers, strict=True):
        if row.layer == after + 1:
            continue  # torch counts the stage with it
        (by_operator,) = (
            v for k, v in counts.items() if k.endswith(f"language_model.layers.{row.layer}")
        )
        # Neither norms nor biases are matrices; as many of those are in experts of either kind.
        others = sum(
            weight.numel()
            for name, weight in layer.named_parameters()
            if (weight.ndim == 1 or name.endswith("_bias")) and "vision_moe" not in name
        )
        flops = sum(by_operator.values()) + 2 * others * row.planned.tokens
        assert row.planned.flops == row.observed_flops == flops
    assert rows[-1].planned.vision_tokens < rows[0].planned.vision_tokens


def test_totals(billed: tuple[lk.Ledger, torch.nn.Module, Any]) -> None:
    ledger, _, cache = billed
    totals = ledger.totals()
    held = sum(sum(vision) for vision in VISION) * 2 / (LAYERS * sum(VISION[0]))
    assert ledger.retention == totals["retention"] == pytest.approx(held)
    assert totals["layers"] == LAYERS
    in_cache = sum(x.numel() * 4 for layer in cache.layers for x in (layer.keys, layer.values))
    assert totals["kv_bytes"] == totals["kv_bytes_observed"] == in_cache
    assert totals["kv_bytes_full"] == LAYERS * ledger.rows[0].planned.kv_bytes
    assert totals["kv_ratio"] == pytest.approx(totals["kv_bytes"] / totals["kv_bytes_full"])
    assert totals["flops"] == sum(row.planned.flops for row in ledger.rows)
    assert totals["flops_full"] == LAYERS * ledger.rows[0].planned.flops
    assert totals["flops_ratio"] == pytest.approx(totals["flops"] / totals["flops_full"])
    assert 0 < totals["kv_ratio"] < totals["flops_ratio"] + 0.2 < 1.2
    assert totals["compressor_seconds"] == ledger.compressor_seconds > 0


def test_without_a_cache_nothing_is_observed() -> None:
    model = tiny_llava()
    with torch.no_grad(), lk.attach(model, lk.LightKVConfig(STAGES)) as handle:
        model(**batch(*PROMPTS), use_cache=False)
    check_ledger(handle.ledger, None)
    assert handle.ledger.totals()["kv_bytes_observed"] is None
    assert all(line.split()[5] == "-" for line in str(handle.ledger).splitlines()[2:-1])


def test_plain_values(billed: tuple[lk.Ledger, torch.nn.Module, Any]) -> None:
    ledger = billed[0]
    values = ledger.to_dict()
    assert json.loads(json.dumps(values)) == values
    assert values["totals"] == ledger.totals()
    assert [row["layer"] for row in values["rows"]] == list(range(LAYERS))
    assert values["rows"][4]["planned"]["tokens"] == sum(LENGTHS[2])


def test_printed_as_one_row_per_layer(billed: tuple[lk.Ledger, torch.nn.Module, Any]) -> None:
    ledger = billed[0]
    over, head, *rows, last = str(ledger).splitlines()
    assert over.split() == ["tokens", "KV", "KiB", "MFLOP"]
    assert head.split()[:4] == ["layer", "vision", "all", "observed"]
    assert head.index("planned") < over.index("KV") < head.index("share") < over.index("MFLOP")
    assert [int(row.split()[0]) for row in rows] == list(range(LAYERS))
    columns = list(zip(*(map(int, row.split()[1:4]) for row in rows), strict=True))
    assert list(columns[0]) == [row.planned.vision_tokens for row in ledger.rows]
    assert list(columns[1]) == [row.planned.tokens for row in ledger.rows]
    assert list(columns[2]) == [row.observed_tokens for row in ledger.rows]
    assert len({len(line) for line in (head, *rows)}) == 1
    assert last.startswith(f"retention {ledger.retention:.1%}, KV bytes")
    assert f"{ledger.totals()['kv_ratio']:.1%}" in last


def test_notebooks_and_debuggers_show_it(billed: tuple[lk.Ledger, torch.nn.Module, Any]) -> None:
    ledger = billed[0]
    shares = str(ledger).splitlines()[-1].partition(" of full")[0]
    assert repr(ledger) == f"Ledger({LAYERS} layers, {shares})"
    head, *rows = ledger._repr_html_().partition("</table>")[0].split("<tr>")[1:]
    assert len(set(re.findall("<th>(.*?)</th>", head))) == 10  # each column has its own name
    cells = [re.findall("<td>(.*?)</td>", row) for row in rows]
    assert cells == [line.split() for line in str(ledger).splitlines()[2:-1]]


@pytest.mark.parametrize("lengths", [(5,), (5, 9), (1, 1, 1)])
def test_cost_of_a_layer(lengths: tuple[int, ...]) -> None:
    size = DecoderSize(parameters=100, attention_channels=12, kv_channels=6, bytes_per_value=2)
    cost = size.cost(lengths, 3, max(lengths))
    assert cost.tokens == sum(lengths)
    assert cost.vision_tokens == 3
    assert cost.kv_bytes == 2 * len(lengths) * 6 * max(lengths) * 2
    assert cost.flops == sum(200 * n + 48 * n**2 for n in lengths)


def test_later_turns_are_billed_for_themselves() -> None:
    model, inputs = tiny_llava(), batch(PROMPTS[0])
    with torch.no_grad(), lk.attach(model, lk.LightKVConfig(STAGES)) as handle:
        cache = model(**inputs)[CACHE]
        first = handle.ledger.to_dict()["rows"]
        model(input_ids=torch.tensor([[4, 5, 6]]), **{CACHE: cache})
        assert handle.ledger.to_dict()["rows"] == first  # of the last prefill with pictures
        call = {"input_ids": inputs["input_ids"], "pixel_values": inputs["pixel_values"]}
        model(**call, **{CACHE: cache})
        second = handle.ledger.rows
    assert [row.planned.kv_bytes for row in second] == [row["planned"]["kv_bytes"] for row in first]
    assert all(row.observed_kv_bytes == row.planned.kv_bytes for row in second)


def test_drawn_as_bars(billed: tuple[lk.Ledger, torch.nn.Module, Any]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    ledger = billed[0]
    tokens, cache = ledger.draw().axes
    for ax, field, unit in ((tokens, "vision_tokens", 1), (cache, "kv_bytes", 1024)):
        full, held = ax.containers
        for bars, which in ((full, "full"), (held, "planned")):
            expected = [getattr(getattr(row, which), field) / unit for row in ledger.rows]
            assert [bar.get_height() for bar in bars] == expected
