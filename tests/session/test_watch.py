"""What is told of a call is that call's own: of a block and thread, and never of one before."""

from __future__ import annotations

import asyncio
import itertools
import threading
from contextlib import suppress
from typing import Any

import pytest
import torch
from models import CACHE, batch, greedy, left_untouched, prompt, tiny_llava

import lightkv_gnn as lk
from lightkv_gnn.session.results import Results

CONFIG = lk.LightKVConfig([lk.Stage(1, 2, 0.5), lk.Stage(3, 1, 0.5)])
JOBS = [
    batch(prompt(4, "image", 6)),
    batch(prompt(3, "image", 2, "image", 5)),
    batch(prompt(7, "image", 1), prompt(2, "image", 3)),
]
TEXT = batch(prompt(9))
NO_PICTURES = "nothing to tell: the last prefill had no pictures"


def same(one: lk.Results, other: lk.Results) -> bool:
    graphs = [[results.graph(n).to_dict() for n in range(2)] for results in (one, other)]
    alike = [
        all(
            torch.equal(first[kind][name], second[kind][name])
            for kind in first
            if isinstance(first[kind], dict)
            for name in first[kind]
            if isinstance(first[kind][name], torch.Tensor)
        )
        for first, second in zip(*graphs, strict=True)
    ]
    rows = [results.ledger.to_dict()["rows"] for results in (one, other)]
    return rows[0] == rows[1] and all(alike)


def alone(model: Any, handle: lk.Handle) -> list[lk.Watch]:
    found = []
    for inputs in JOBS:
        with handle.watch() as call:
            greedy(model, inputs, 3)
        found.append(call)
    return found


def test_a_watch_tells_of_its_threads_calls() -> None:
    """All prefills have begun before any goes on."""
    model = tiny_llava()
    start, watched = threading.Barrier(len(JOBS)), {}
    with lk.attach(model, CONFIG) as handle:
        expected = alone(model, handle)

        def work(number: int) -> None:
            with handle.watch() as watched[number]:
                start.wait(60)
                greedy(model, JOBS[number], 3)
                start.wait(60)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(len(JOBS))]
        with handle.watch() as elsewhere:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
    assert all(same(watched[number], expected[number]) for number in range(len(JOBS)))
    assert not same(expected[0], expected[1])
    assert [len(watched[number].calls) for number in range(len(JOBS))] == [1, 1, 1]
    assert elsewhere.calls == ()
    with pytest.raises(RuntimeError, match="no prefill with pictures has run in this block"):
        _ = elsewhere.ledger


def test_a_watch_tells_of_an_asynchronous_tasks_calls() -> None:
    """Of those in threads that it awaits, and not of other tasks on its own thread."""
    model = tiny_llava()
    with lk.attach(model, CONFIG) as handle:
        expected = alone(model, handle)

        async def work(number: int) -> lk.Watch:
            with handle.watch() as call:
                await asyncio.sleep(0)
                greedy(model, JOBS[number], 1)
                await asyncio.to_thread(greedy, model, JOBS[number], 1)
            return call

        async def all_at_once() -> list[lk.Watch]:
            return await asyncio.gather(*map(work, range(len(JOBS))))

        for call, own in zip(asyncio.run(all_at_once()), expected, strict=True):
            assert [same(one, own) for one in call.calls] == [True, True]


def test_watches_nest_and_end_with_their_blocks() -> None:
    model, other = tiny_llava(), tiny_llava(seed=1)
    with left_untouched(model, JOBS[0]):
        with lk.attach(model, CONFIG) as handle, lk.attach(other, CONFIG) as elsewhere:
            with handle.watch() as outer, elsewhere.watch() as of_other:
                greedy(model, JOBS[0], 1)
                with suppress(ZeroDivisionError), handle.watch() as inner:
                    greedy(model, JOBS[1], 1)
                    raise ZeroDivisionError
                greedy(model, JOBS[2], 1)
            greedy(model, JOBS[0], 1)
            expected = alone(model, handle)
        assert [same(one, two) for one, two in zip(outer.calls, expected, strict=True)] == [
            True
        ] * 3
        assert same(outer, expected[2])  # the last
        assert [same(one, expected[1]) for one in inner.calls] == [True]
        assert same(inner, expected[1])
        assert of_other.calls == ()


def test_a_prefill_without_pictures_leaves_nothing_to_tell() -> None:
    model = tiny_llava()
    with lk.attach(model, CONFIG) as handle, handle.watch() as call:
        greedy(model, JOBS[0], 1)
        before = handle.ledger
        greedy(model, TEXT, 3)
        for tell in (lambda: handle.ledger, lambda: handle.trace, lambda: call.graph(0)):
            with pytest.raises(RuntimeError, match=NO_PICTURES):
                tell()
        assert handle._repr_html_() is None
        assert [one.ledger.rows for one in call.calls] == [before.rows]
        greedy(model, JOBS[1], 1)
        assert same(handle, call)


@torch.no_grad()
def test_what_goes_on_from_a_cache_leaves_what_is_told() -> None:
    model = tiny_llava()
    with lk.attach(model, CONFIG) as handle:
        (own, *_) = alone(model, handle)
        cache = model(**JOBS[0])[CACHE]
        model(input_ids=torch.tensor([[5]]), **{CACHE: cache})
        model(input_ids=torch.tensor([[5, 6, 7]]), **{CACHE: cache})
        assert same(handle, own)


def test_a_call_that_failed_changes_nothing() -> None:
    model = tiny_llava()
    wrong = {**JOBS[1], "pixel_values": JOBS[1]["pixel_values"][:1]}
    with lk.attach(model, CONFIG) as handle, handle.watch() as call:
        greedy(model, JOBS[0], 1)
        with pytest.raises(ValueError, match=r"[Ii]mage features and image tokens"):
            model(**wrong)
        with pytest.raises(IndexError):  # after the first hooks, and without pictures
            model(input_ids=torch.tensor([[5, 10**6]]))
        (before,) = call.calls
        assert same(before, handle)
        assert same(before, call)


def test_a_view_is_of_one_prefill_though_another_ends_meanwhile() -> None:
    model = tiny_llava()
    with lk.attach(model, CONFIG) as handle:
        one, two, _ = alone(model, handle)
    ended = itertools.cycle([one._call, two._call, two._call])

    class Busy(Results):
        """Of whichever prefill ended last, which may be another one whenever it is looked at."""

        _call = property(lambda self: next(ended), lambda self, call: None)

    view = Busy("").view()
    assert view.layers is not None
    assert view.layers[0].full == len(view.trace.layout)
