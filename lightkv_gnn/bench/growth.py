"""How the cost of a step grows with its tokens and with the batch: fitted exponents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lightkv_gnn.bench.cases import StageCase
from lightkv_gnn.bench.stage import StageRow, compare


@dataclass(frozen=True)
class GrowthRow:
    """Exponents of one subject: ``seconds`` is about ``tokens ** exponent``.

    Attributes:
        subject: Its name.
        over: "tokens" or "batch".
        values: What it was measured at.
        seconds: Median times there.
        exponent: Slope of a straight line through the logarithms.
        bytes_exponent: The same of the extra memory.
    """

    subject: str
    over: str
    values: tuple[int, ...]
    seconds: tuple[float, ...]
    exponent: float
    bytes_exponent: float


def growth(
    base: StageCase, over: str, values: Sequence[int], names: Sequence[str], rounds: int
) -> list[GrowthRow]:
    """Measures subjects at several sizes and fits.

    Args:
        base: Everything that stays the same.
        over: "tokens" or "batch".
        values: Sizes, two or more.
        names: Of the subjects.
        rounds: Calls of each that count.

    Raises:
        ValueError: Fewer than two sizes.
    """
    if len(values) < 2:
        raise ValueError(f"{over} has {len(values)} sizes: expected two or more to fit a line")
    found: dict[str, list[StageRow]] = {}
    for value in values:
        case = replace(base, tokens=value) if over == "tokens" else replace(base, batch=value)
        for row in compare(case, names, rounds):
            found.setdefault(row.subject, []).append(row)
    return [_fitted(name, over, values, rows) for name, rows in found.items()]


def _fitted(name: str, over: str, values: Sequence[int], rows: Sequence[StageRow]) -> GrowthRow:
    seconds = [row.seconds for row in rows]
    memory = [row.extra_bytes for row in rows]
    return GrowthRow(
        name, over, tuple(values), tuple(seconds), slope(values, seconds), slope(values, memory)
    )


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Exponent of the power law through points, by least squares of the logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
