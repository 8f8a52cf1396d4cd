"""Two hundred calls hold no more than fifty did."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from models import batch, greedy, prompt, tiny_llava

import lightkv_gnn as lk

PAGE = 4096
STATUS = Path("/proc/self/statm")


class Held(NamedTuple):
    """What a process holds.

    Attributes:
        tensors: Tensors that Python knows of.
        objects: Objects that its collector knows of.
        resident: Bytes of memory; 0 where the system does not tell.
    """

    tensors: int
    objects: int
    resident: int

    @classmethod
    def now(cls) -> Held:
        gc.collect()
        objects = gc.get_objects()
        resident = int(STATUS.read_text().split()[1]) * PAGE if STATUS.exists() else 0
        return cls(sum(issubclass(type(x), torch.Tensor) for x in objects), len(objects), resident)


def check_growth(work: Callable[[int], object], early: int, late: int) -> None:
    """Runs ``work`` and compares what is held after so many calls.

    What other tests left behind is not looked at, nor that it may go meanwhile.
    """
    gc.collect()
    gc.freeze()
    try:
        for number in range(early):
            work(number)
        before = Held.now()
        for number in range(early, late):
            work(number)
        after = Held.now()
    finally:
        gc.unfreeze()
        gc.freeze()  # as it was
    assert after.tensors == before.tensors
    assert after.objects - before.objects < (late - early) // 4
    assert after.resident - before.resident < (late - early) * 16 * 1024


JOBS = [
    batch(prompt(4, "image", 6, side=2), side=2),
    batch(prompt(2, "image", 3, "image", 4, side=2), prompt(2, "image", side=2), side=2),
    batch(prompt(5)),
]
CONFIG = lk.LightKVConfig([lk.Stage(0, 1, 0.5)])


@pytest.mark.slow
@torch.no_grad()
def test_hundreds_of_answers() -> None:
    model = tiny_llava(layers=2, side=2)
    with lk.attach(model, CONFIG) as handle:
        check_growth(lambda n: greedy(model, JOBS[n % 3], 1), 50, 200)
        assert len(handle.trace) == 1


@pytest.mark.slow
@torch.no_grad()
def test_many_contexts() -> None:
    """In each of them a prefill is interrupted."""
    model = tiny_llava(layers=2, side=2)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    def work(number: int) -> None:
        with lk.attach(model, CONFIG):
            model(**JOBS[number % 2])
            hook = model.model.language_model.layers[1].mlp.register_forward_pre_hook(fail)
            with pytest.raises(KeyboardInterrupt):
                model(**JOBS[number % 2])
            hook.remove()

    check_growth(work, 25, 75)
