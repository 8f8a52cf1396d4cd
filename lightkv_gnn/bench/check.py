"""What has to hold on a device before its figures count."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch

from lightkv_gnn.bench.cases import StageCase
from lightkv_gnn.bench.measure import without_waiting
from lightkv_gnn.bench.prefill import Contest
from lightkv_gnn.bench.subjects import SUBJECTS, NoGPUError
from lightkv_gnn.session.attach import attach
from lightkv_gnn.stage.scatter import backend
from lightkv_graphs import coverage_matching, greedy_ranks, window_partition

NEAR = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""How far two ways to compute the same features may be apart, relative to their size."""


@dataclass(frozen=True)
class CheckRow:
    """One check.

    Attributes:
        check: What was looked at.
        passed: Whether it holds; None where it cannot be looked at on this device.
        detail: What was seen.
    """

    check: str
    passed: bool | None
    detail: str


def check_all(case: StageCase, contest: Contest) -> Iterator[CheckRow]:
    """Checks a stage's subjects against each other, and that a prefill waits for nothing."""
    for name in ("lean", "triton", "compiled", "graphed"):
        yield _row(f"{name} computes what ours does", partial(_agrees, case, name))
    yield _row("coverage loses as little with kernels", partial(_loses_alike, case))
    yield _row("a stage waits for nothing", partial(_stage_waits_not, case))
    yield _row("the layers of a prefill wait for nothing", partial(_layers_wait_not, contest))


def _row(check: str, look: Callable[[], str]) -> CheckRow:
    try:
        return CheckRow(check, True, look())
    except NoMeaningError as reason:
        return CheckRow(check, None, str(reason))
    except Exception as error:  # whatever a compiler or a device comes up with
        lines = str(error).strip().splitlines() or [""]
        return CheckRow(check, False, f"{type(error).__name__}: {lines[0]}")


class NoMeaningError(Exception):
    """A check has no meaning on this device."""


@torch.no_grad()
def _agrees(case: StageCase, name: str) -> str:
    try:
        step = SUBJECTS[name](case)
    except (NoGPUError, ImportError) as error:
        raise NoMeaningError(str(error)) from error
    found, expected = step().double(), SUBJECTS["ours"](case)().double()
    assert found.shape == expected.shape, f"{list(found.shape)} instead of {list(expected.shape)}"
    # Rounding may turn a near tie of two destinations: a few survivors then differ.
    apart = (found - expected).norm(dim=1) / expected.norm(dim=1).clamp(min=1e-12)
    close = float((apart <= NEAR[case.dtype]).double().mean())
    assert close >= 0.99, f"only {close:.1%} of the survivors agree"
    return f"{close:.1%} of the survivors agree"


@torch.no_grad()
def _loses_alike(case: StageCase) -> str:
    """Sums in another order turn near ties, and with them who stays; what is lost tells."""
    try:
        kernels = backend("triton")
        kernels.check_device(case.device)
    except (ValueError, ImportError) as error:
        raise NoMeaningError(str(error)) from error
    partition = window_partition(case.layout, case.plan)
    lost = []
    for greedy in (kernels.greedy, greedy_ranks):
        matching = coverage_matching(case.features, partition, None, case.layout, greedy)
        assert matching.certificate is not None
        lost.append(matching.certificate.shares()[0])
    found, expected = lost
    seen = f"{found:.3%} is lost, without kernels {expected:.3%}"
    assert abs(found - expected) <= 2e-3 * expected, seen
    return seen


def _stage_waits_not(case: StageCase) -> str:
    _check_gpu(case.device)
    for name in ("ours", "coverage"):
        step = SUBJECTS[name](case)
        step()
        without_waiting(step)
    return "nothing waited"


def _layers_wait_not(contest: Contest) -> str:
    """From the first layer to the last; before them the host has to read where the pictures are."""
    _check_gpu(contest.device)
    layers = contest.model.get_decoder().layers
    with attach(contest.model, contest.config), ExitStack() as undo:
        contest.prefill()
        undo.callback(torch.cuda.set_sync_debug_mode, torch.cuda.get_sync_debug_mode())
        for hook in (
            layers[0].register_forward_pre_hook(_wait_is("error")),
            layers[-1].register_forward_hook(_wait_is("default")),
        ):
            undo.callback(hook.remove)
        contest.prefill()
    return "nothing waited"


def _wait_is(mode: str) -> Callable[..., None]:
    return lambda *_: torch.cuda.set_sync_debug_mode(mode)


def _check_gpu(device: torch.device) -> None:
    if device.type != "cuda":
        raise NoMeaningError("only a GPU is waited for")
