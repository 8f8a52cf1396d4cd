"""One compression step, against references: time, memory, launches and waits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from lightkv_gnn.bench.cases import StageCase
from lightkv_gnn.bench.measure import Timing, extra_bytes, launches_and_waits, side_by_side
from lightkv_gnn.bench.subjects import subject_of

MOST_LOGITS = 2**30
"""Elements beyond which a whole sequence's logits are not computed."""


DISTURBING = {"full_logits"}
"""Subjects timed after the others: what they hold drives the others' memory out of the caches."""


@dataclass(frozen=True)
class StageRow:
    """What one subject took for one case.

    Attributes:
        subject: Its name.
        tokens: Vision tokens of the largest picture.
        channels: Of the hidden states.
        windows: Windows per side.
        batch: Samples.
        ragged: Whether the pictures have different sizes.
        dtype: Of the inputs.
        seconds: Median wall time.
        low: Lower quartile.
        high: Upper quartile.
        rounds: Calls that these are from.
        extra_bytes: Most memory held at once, beyond the inputs.
        launches: Kernels; None on a CPU.
        waits: How often the host waited for the GPU; None on a CPU.
        seconds_ratio: Of the time of ``lean`` in the same run; None where that did not run.
        bytes_ratio: Of its extra memory.
    """

    subject: str
    tokens: int
    channels: int
    windows: int
    batch: int
    ragged: bool
    dtype: str
    seconds: float
    low: float
    high: float
    rounds: int
    extra_bytes: int
    launches: int | None
    waits: int | None
    seconds_ratio: float | None
    bytes_ratio: float | None


def sweep(base: StageCase, *, quick: bool) -> list[StageCase]:
    """The cases of a run: sizes, then windows and batches around ``base``.

    Quick: two sizes, and a ragged batch.
    """
    if quick:
        small = replace(base, tokens=576)
        return [small, base, replace(small, batch=4, ragged=True)]
    sizes = [
        replace(base, tokens=tokens, channels=channels)
        for channels in (1024, 4096)
        for tokens in (576, 1024, 2880, 11520)
    ]
    windows = [replace(base, windows=windows) for windows in (1, 2, 8)]
    batches = [replace(base, batch=4), replace(base, batch=16)]
    return [*sizes, *windows, *batches, replace(base, batch=4, ragged=True)]


@torch.no_grad()
def compare(case: StageCase, names: Sequence[str], rounds: int) -> Iterator[StageRow]:
    """Runs the subjects of one case side by side; those that cannot are left out.

    Args:
        case: Sizes.
        names: Of the subjects; see :func:`lightkv_gnn.bench.subjects.subject_of`.
        rounds: Calls of each that count.
    """
    steps = {name: subject_of(name)(case) for name in names if fits(case, name)}
    times: dict[str, Timing] = {}
    for turn in (set(steps) - DISTURBING, set(steps) & DISTURBING):
        together = {name: step for name, step in steps.items() if name in turn}
        times |= side_by_side(together, case.device, rounds=rounds) if together else {}
    memory = {name: extra_bytes(step, case.device) for name, step in steps.items()}
    for name, step in steps.items():
        time, lean = times[name], times.get("lean")
        launches, waits = launches_and_waits(step, case.device)
        yield StageRow(
            subject=name,
            tokens=case.tokens,
            channels=case.channels,
            windows=case.windows,
            batch=case.batch,
            ragged=case.ragged,
            dtype=str(case.dtype).removeprefix("torch."),
            seconds=time.seconds,
            low=time.low,
            high=time.high,
            rounds=time.rounds,
            extra_bytes=memory[name],
            launches=launches,
            waits=waits,
            seconds_ratio=time.seconds / lean.seconds if lean else None,
            bytes_ratio=memory[name] / memory["lean"] if lean else None,
        )


def fits(case: StageCase, name: str) -> bool:
    """Whether a subject's logits can be held; those of the whole sequence soon cannot."""
    length = case.block.query.shape[2]
    return name != "full_logits" or case.batch * case.heads * length**2 <= MOST_LOGITS
