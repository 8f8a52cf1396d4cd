"""Several models and several threads: each answer is what it is alone."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch
from models import batch, footprint, greedy, left_untouched, prompt, tiny_llava
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import lightkv_gnn as lk
from lightkv_gnn.attention import capture

INPUTS = batch(prompt(4, "image", 6), prompt(2, "image", 3, "image", 4, seed=1))
CONFIGS = [
    lk.LightKVConfig([lk.Stage(1, 2, 0.5), lk.Stage(3, 1, 0.5)]),
    lk.LightKVConfig([lk.Stage(2, 2, 0.25)], guidance="last_token", positions="reindex"),
    lk.LightKVConfig([lk.Stage(0, 1, 0.5)], guidance="none", message=lk.mean),
]
PATIENCE = 60
"""Seconds after which a thread counts as stuck."""


def together(*jobs: Callable[[], Any]) -> list[Any]:
    """What the jobs return or raise, each in a thread of its own, all begun at once."""
    found: list[Any] = [None] * len(jobs)
    start = threading.Barrier(len(jobs))

    def work(number: int) -> None:
        try:
            start.wait(PATIENCE)
            found[number] = jobs[number]()
        except BaseException as error:
            found[number] = error

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)
    return found


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_models_in_threads_of_their_own(attention: str) -> None:
    models = [tiny_llava(attention=attention, seed=seed) for seed in range(len(CONFIGS))]

    def run(model: Any, config: lk.LightKVConfig) -> tuple[list[torch.Tensor], list[int]]:
        tokens = []
        for _ in range(3):
            with lk.attach(model, config) as handle:
                tokens.append(greedy(model, INPUTS, 4))
        return tokens, [row.planned.vision_tokens for row in handle.ledger.rows]

    pairs = list(zip(models, CONFIGS, strict=True))
    alone = [run(*pair) for pair in pairs]
    before = [footprint(model) for model in models]
    found = together(*(lambda pair=pair: run(*pair) for pair in pairs))
    for (tokens, held), (expected, planned) in zip(found, alone, strict=True):
        assert held == planned
        assert all(torch.equal(one, expected[0]) for one in tokens)
    assert [footprint(model) for model in models] == before


def test_a_handle_tells_of_the_prefill_that_ended_last() -> None:
    """As a whole: never of two at once."""
    model = tiny_llava()
    jobs = [batch(prompt(4, "image", 6)), batch(prompt(3, "image", 2, "image", 5))]
    totals = []
    with lk.attach(model, CONFIGS[0]) as handle:
        for inputs in jobs:
            model(**inputs)
            totals.append(handle.ledger.to_dict()["rows"])
        assert totals[0] != totals[1]
        together(*(lambda inputs=inputs: model(**inputs) for inputs in jobs))
        assert handle.ledger.to_dict()["rows"] in totals


def test_one_of_two_threads_attaches_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """However their steps interleave; here both would be past the first check at once."""
    model = tiny_llava()
    both, check = threading.Barrier(2), lk.session.attach.check_backend

    def meet(*args: Any) -> None:
        with suppress(threading.BrokenBarrierError):
            both.wait(0.5)
        check(*args)

    monkeypatch.setattr(lk.session.attach, "check_backend", meet)
    with left_untouched(model, INPUTS):
        found = together(*[lambda: lk.attach(model, CONFIGS[0])] * 2)
        (handle,) = [one for one in found if isinstance(one, lk.Handle)]
        (error,) = [one for one in found if one is not handle]
        assert isinstance(error, RuntimeError)
        assert "attached already" in str(error)
        handle.remove()


# --- models that nobody detached ------------------------------------------------------------------


@contextmanager
def collecting_by_hand() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("others", [("sdpa", "eager"), ("sdpa", "sdpa"), ("eager", "sdpa")])
def test_a_model_is_collected_while_another_is_attached(
    others: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry is asked to forget a model in the middle of learning of another."""
    registry = dict(ALL_ATTENTION_FUNCTIONS._local_mapping)
    model = tiny_llava(attention=others[1])
    with lk.attach(model, CONFIGS[0]):
        expected = greedy(model, INPUTS, 2)
    listening = capture._recording

    def collected(function: Any) -> Any:
        gc.collect()
        return listening(function)

    with collecting_by_hand():
        lk.attach(tiny_llava(attention=others[0]), CONFIGS[0])  # never removed, and garbage now
        monkeypatch.setattr(capture, "_recording", collected)

        def run() -> torch.Tensor:
            with lk.attach(model, CONFIGS[0]):
                gc.collect()
                return greedy(model, INPUTS, 2)

        (found,) = together(run)
    assert torch.equal(found, expected)
    assert registry == ALL_ATTENTION_FUNCTIONS._local_mapping
