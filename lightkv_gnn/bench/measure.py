"""Time and memory of callables, side by side in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import torch

Call = Callable[[], object]

LARGE_BLOCK = 31 * 2**20
"""Bytes; just below the largest block that glibc learns from."""


@dataclass(frozen=True)
class Timing:
    """Wall time of one call.

    Attributes:
        seconds: Median.
        low: Lower quartile.
        high: Upper quartile.
        rounds: Calls it is from.
    """

    seconds: float
    low: float
    high: float
    rounds: int


def side_by_side(
    subjects: Mapping[str, Call],
    device: torch.device,
    *,
    rounds: int = 20,
    warmup: int = 3,
) -> dict[str, Timing]:
    """Times subjects in turn, round by round, so that a busy moment is shared.

    Every round begins with another subject, so that none always follows the same one.  A GPU is
    waited for before and after each call.

    Args:
        subjects: What to call, by name.
        device: Where they run.
        rounds: Calls of each that count; 2 or more.
        warmup: Calls of each before.

    Raises:
        ValueError: Too few rounds.
    """
    if rounds < 2:
        raise ValueError(f"rounds is {rounds}: expected 2 or more, for a spread")
    settle_memory()
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    names = list(subjects)
    for number in range(warmup + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(_timed(subjects[name], device))
    return {name: _timing(own[warmup:]) for name, own in seconds.items()}


def settle_memory() -> None:
    """Lets this process keep the memory that it frees, as one that ran a model does.

    Until a large block was freed, glibc returns smaller ones to the system: each call would then
    pay for fresh pages, and what holds more memory would look slower than it is beside a model.
    """
    torch.empty(LARGE_BLOCK, dtype=torch.uint8)  # glibc maps it for itself, and learns
    torch.empty(LARGE_BLOCK, dtype=torch.uint8).fill_(1)  # pages that stay with the process


def _timed(call: Call, device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - started


def _timing(seconds: list[float]) -> Timing:
    low, _, high = quantiles(seconds, n=4, method="inclusive")
    return Timing(median(seconds), low, high, len(seconds))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def extra_bytes(call: Call, device: torch.device) -> int:
    """Most memory that a call holds at once beyond what was there before, its result included.

    On a GPU as its allocator counts; on a CPU from torch's profiler, which sees every tensor's
    memory but none that a library takes for itself.
    """
    if device.type == "cuda":
        _wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        kept = call()
        _wait(device)
        peak = torch.cuda.max_memory_allocated(device) - before
        del kept
        return peak
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        call()
    held = most = 0
    for _, change in sorted(_changes(profile), key=lambda event: event[0]):
        held += change
        most = max(most, held)
    return most


def _changes(profile: Any) -> list[tuple[int, int]]:
    """When how many bytes were taken, or given back, in order."""
    events = profile.kineto_results.events()
    return [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]


def launches_and_waits(call: Call, device: torch.device) -> tuple[int | None, int | None]:
    """Kernels that a call launches on a GPU, and how often it waits for it; None on a CPU."""
    if device.type != "cuda":
        return None, None
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    call()
    _wait(device)
    with torch.profiler.profile(activities=activities) as profile:
        call()
    names = [event.name for event in profile.events()]
    kernels = sum("LaunchKernel" in name or "GraphLaunch" in name for name in names)
    waits = sum("Synchronize" in name for name in names)
    return kernels, waits


def without_waiting(call: Call) -> None:
    """Calls it where waiting for a GPU is an error.

    Raises:
        RuntimeError: The host waited for the GPU.
    """
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode(before)


def largest(fits: Callable[[int], bool]) -> int:
    """The largest number that fits, where all smaller ones do: doubled, then halved."""
    high = 1
    while fits(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
