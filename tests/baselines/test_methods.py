"""What every method owes: its budget, its name, batches, and a model left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from marks import full
from models import (
    CACHE,
    alone,
    batch,
    check_ledger,
    footprint,
    greedy,
    left_untouched,
    near,
    prompt,
    tiny_llava,
)
from torch import Tensor

import lightkv_gnn as lk
from lightkv_gnn.baselines import METHODS, Applied, Budget, StageMethod
from lightkv_graphs import MergeTrace

SIDE = 8
RANDOM = {"random_attention", "random_weights", "random_pruning", "random_cache", "oracle_pruning"}
AFTERWARDS = {"random_cache", "elastic_cache_like"}
MATCHERS = ("scope_like", "cdpruner_like", "anchorprune_like", "d2pruner_like", "apet_like")
"""Methods that differ from ``divprune_like`` in the matcher alone."""
every = pytest.mark.parametrize("name", METHODS)
every_kind = pytest.mark.parametrize(
    "name", [*(name for name in METHODS if name not in MATCHERS), *full(*MATCHERS)]
)


def ragged(side: int = SIDE) -> list[tuple[list[int], int]]:
    return [
        prompt(4, "image", 6, side=side),
        prompt(2, "image", 3, "image", 4, side=side, seed=1),
        prompt("image", 9, side=side, seed=2),
    ]


@contextmanager
def applied_to(
    model: torch.nn.Module, name: str, retention: float = 0.6, depth: int = 1
) -> Iterator[tuple[Applied, Any]]:
    """The method, told what it may be told, and its batch of prompts."""
    with METHODS[name].applied(model, Budget.of(model, retention, depth)) as applied:
        side = round(SIDE * applied.side)
        generator = torch.Generator().manual_seed(0)
        applied.hints.relevant = torch.rand(3, 2 * SIDE * SIDE, generator=generator) < 0.1
        yield applied, (ragged(side), batch(*ragged(side), side=side))


def test_the_methods_are_in_the_order_of_tables() -> None:
    assert list(METHODS) == [
        *("none", "ours", "guided", "guided_mass", "coverage", "coverage_mass"),
        *("vision_to_text", "mean", "mass_mean"),
        *("random_attention", "random_weights", "random_pruning", "random_cache", "stride"),
        *("pooling", "downsample", "fastv", "window_fastv"),
        *("pyramid_drop", "sparsevlm_like", "divprune_like", "scope_like", "cdpruner_like"),
        *("anchorprune_like", "d2pruner_like", "apet_like", "visiontrim_like", "visionzip_like"),
        "elastic_cache_like",
        *("oracle", "oracle_pruning"),
    ]
    for name, method in METHODS.items():
        assert method.name == name
        assert method.source


@every_kind
@pytest.mark.each
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_model_is_left_as_it_was(name: str, attention: str) -> None:
    model = tiny_llava(attention=attention, side=SIDE)
    with left_untouched(model, batch(*ragged(), side=SIDE)):
        before = footprint(model)
        with applied_to(model, name) as (_, (_, inputs)):
            model(**inputs)
            greedy(model, inputs, 3)
            assert footprint(model) != before


@every_kind
def test_the_model_is_left_as_it_was_after_an_error(name: str) -> None:
    model = tiny_llava(side=SIDE)

    def fail(*args: object) -> None:
        raise ZeroDivisionError

    def broken() -> None:
        with applied_to(model, name) as (_, (_, inputs)):
            hook = model.model.language_model.layers[4].register_forward_pre_hook(fail)
            try:
                model(**inputs)
            finally:
                hook.remove()

    with left_untouched(model, batch(*ragged(), side=SIDE)), pytest.raises(ZeroDivisionError):
        broken()


@every
@pytest.mark.parametrize(
    ("retention", "depth"), [(0.6, 0), pytest.param(0.6, 1, marks=pytest.mark.full), (0.8, 2)]
)
@torch.no_grad()
def test_the_budget_is_kept(name: str, retention: float, depth: int, tmp_path: Path) -> None:
    model = tiny_llava(side=SIDE)
    torch.manual_seed(0)
    with applied_to(model, name, retention, depth) as (applied, (_, inputs)):
        cache = model(**inputs)[CACHE]
        bill, ledger = applied.bill(), applied.handle.ledger
    if name == "none":
        assert bill.retention == 1
    else:
        assert bill.retention == pytest.approx(
            retention, abs=0.05 if name == "downsample" else 0.02
        )
    assert bill.kv_bytes == sum(4 * (x.keys.numel() + x.values.numel()) for x in cache.layers)
    full = ledger.totals()["flops_full"]
    if name in AFTERWARDS | {"none", "downsample"}:
        assert bill.flops == full
    else:
        check_ledger(ledger, cache)
        assert bill.flops < full
        assert applied.handle.trace.stages[0].layer == depth
        assert applied.compressor.losses
        losses = applied.compressor.losses
        trace = applied.handle.trace
        assert losses[-1].after == len(trace.stages[-1].layout)
        trace.save(tmp_path / "trace")
        assert repr(MergeTrace.load(tmp_path / "trace")) == repr(trace)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in RANDOM])
@pytest.mark.parametrize("padding", ["left", "right"])
@torch.no_grad()
def test_a_batch_is_its_samples(name: str, padding: str) -> None:
    model = tiny_llava(side=SIDE)
    with applied_to(model, name) as (applied, (prompts, inputs)):
        side = round(SIDE * applied.side)
        inputs = batch(*prompts, side=side, padding=padding)
        known = applied.hints.relevant
        assert known is not None
        together = model(**inputs)
        for number, (where, single) in enumerate(alone(inputs, *prompts)):
            applied.hints.relevant = known[number : number + 1]
            own = model(**single)
            near(together.logits[number, where][-1], own.logits[0, -1])
            check_entries(together[CACHE], own[CACHE], number)


def check_entries(together: Any, own: Any, sample: int) -> None:
    """Keys turn with the padding before them; values do not."""
    for layer, single in zip(together.layers, own.layers, strict=True):
        if getattr(layer, "logical", None) is not None:
            found = layer.values[sample][:, layer.logical[sample] >= 0]
            torch.testing.assert_close(found, single.values[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(RANDOM))
@torch.no_grad()
def test_random_methods_follow_the_generator(name: str) -> None:
    model = tiny_llava(side=SIDE)
    found: list[Tensor] = []
    with applied_to(model, name) as (_, (_, inputs)):
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            cache = model(**inputs)[CACHE]
            found.append(cache.layers[-1].keys)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@torch.no_grad()
def test_no_two_methods_do_the_same() -> None:
    model = tiny_llava(side=SIDE)
    found: list[Tensor] = []
    for name in METHODS:
        torch.manual_seed(0)
        with applied_to(model, name) as (_, (_, inputs)):
            found.append(model(**inputs)[CACHE].layers[-1].values)
    for number, values in enumerate(found):
        assert not any(torch.equal(values, other) for other in found[:number])


def test_depths_are_tried_where_they_matter() -> None:
    model = tiny_llava(side=SIDE)
    for name, method in METHODS.items():
        budgets = method.budgets(model, [0.7, 0.9], [0, 1])
        found = [(budget.retention, budget.depth) for budget in budgets]
        if name == "none":
            assert found == [(1, -1)]
        elif name in AFTERWARDS | {"downsample"}:
            assert found == [(0.7, -1), (0.9, -1)]
        else:
            assert found == [(0.7, 0), (0.7, 1), (0.9, 0), (0.9, 1)]


@every_kind
def test_greedy_answers_are_the_same_with_every_backend(name: str) -> None:
    answers = []
    for attention in ("eager", "sdpa"):
        model = tiny_llava(attention=attention, side=SIDE)
        torch.manual_seed(0)
        with applied_to(model, name) as (_, (_, inputs)):
            answers.append(greedy(model, inputs, 6))
    assert torch.equal(*answers)


def test_what_a_stage_method_cannot_keep_to_is_refused() -> None:
    model = tiny_llava(side=SIDE)
    before = footprint(model)
    for name, method in METHODS.items():
        if not isinstance(method, StageMethod) or name == "none":
            continue
        with (
            pytest.raises(
                lk.ScheduleError, match=r"no stages? (from layer 4 of 6 on|on 6 layers) keeps? 30%"
            ),
            method.applied(model, Budget.of(model, 0.3, 4)),
        ):
            pass
    assert footprint(model) == before
