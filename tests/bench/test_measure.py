"""Subjects take turns, and memory is what tensors took."""

from __future__ import annotations

import mmap
import platform
import subprocess
import sys
from collections import Counter

import pytest
import torch

from lightkv_gnn.bench import measure
from lightkv_gnn.bench.growth import slope
from lightkv_gnn.bench.measure import extra_bytes, largest, launches_and_waits, side_by_side

CPU = torch.device("cpu")
FLOAT = 4


def test_subjects_take_turns_and_each_follows_each() -> None:
    called: list[str] = []
    subjects = {name: lambda name=name: called.append(name) for name in "abc"}
    times = side_by_side(subjects, CPU, rounds=6, warmup=3)
    assert Counter(called) == dict.fromkeys("abc", 9)
    assert ["".join(called[n : n + 3]) for n in range(0, 27, 3)] == ["abc", "bca", "cab"] * 3
    assert {time.rounds for time in times.values()} == {6}


def test_times_are_medians_and_quartiles_without_the_warm_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = iter([50.0, 9.0, 1.0, 2.0, 3.0, 4.0])
    monkeypatch.setattr(measure, "_timed", lambda call, device: next(taken))
    time = side_by_side({"a": lambda: None}, CPU, rounds=5, warmup=1)["a"]
    assert (time.seconds, time.low, time.high) == (3.0, 2.0, 4.0)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="how glibc keeps memory")
def test_subjects_are_timed_with_memory_that_the_process_has() -> None:
    """In a new process, too, tensors touch no fresh pages of the system's."""
    program = """
import resource, torch
from lightkv_gnn.bench.measure import side_by_side

def fill():
    return [torch.zeros(2**21, dtype=torch.uint8).fill_(1) for _ in range(6)]

before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
side_by_side({"fill": fill}, torch.device("cpu"), rounds=2)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    own = 31 * 2**20 // mmap.PAGESIZE  # touched before
    assert int(done.stdout) < own + 2**21 // mmap.PAGESIZE


def test_one_round_has_no_spread() -> None:
    with pytest.raises(ValueError, match="rounds is 1: expected 2 or more"):
        side_by_side({"a": lambda: None}, CPU, rounds=1)


def test_extra_memory_is_what_is_held_at_once() -> None:
    x = torch.zeros(1000)

    def chain() -> torch.Tensor:
        first = x + x
        second = first + first
        del first
        return second + second

    assert extra_bytes(lambda: x, CPU) == 0
    assert extra_bytes(lambda: x + x, CPU) == 1000 * FLOAT
    assert extra_bytes(chain, CPU) == 2 * 1000 * FLOAT


def test_a_cpu_has_no_launches() -> None:
    assert launches_and_waits(lambda: None, CPU) == (None, None)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_slopes_are_the_powers(exponent: float) -> None:
    x = [1, 2, 5, 9]
    assert slope(x, [3 * value**exponent for value in x]) == pytest.approx(exponent)


@pytest.mark.parametrize("most", [0, 1, 2, 3, 7, 8, 100, 1023])
def test_the_largest_that_fits(most: int) -> None:
    asked: list[int] = []

    def fits(number: int) -> bool:
        asked.append(number)
        return number <= most

    assert largest(fits) == most
    assert len(asked) == len(set(asked)) <= 2 * most.bit_length() + 1
