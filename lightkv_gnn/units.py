"""Units that fit what a table shows: bytes, and floating-point operations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

BYTES = ("B", "KiB", "MiB", "GiB", "TiB")
FLOPS = ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP")


@dataclass(frozen=True)
class Unit:
    """What the numbers of one column are divided by.

    Attributes:
        name: As a heading has it.
        size: What one of it is.
        digits: Decimal places, of which the largest number has four digits in all.
    """

    name: str
    size: int
    digits: int

    def text(self, number: float | None) -> str:
        """A number in this unit, without its name; a dash for None."""
        return "-" if number is None else f"{number / self.size:.{self.digits}f}"


def fitting(numbers: Iterable[float | None], names: Sequence[str]) -> Unit:
    """The largest unit of which the largest number has at least one.

    Args:
        numbers: All that are shown in the unit; None is skipped.
        names: :data:`BYTES`, in steps of 1,024, or :data:`FLOPS`, in steps of 1,000.
    """
    step = 1024 if names is BYTES else 1000
    largest = max((number for number in numbers if number is not None), default=0)
    size, name = 1, names[0]
    for next_name in names[1:]:
        if largest < size * step:
            break
        size, name = size * step, next_name
    whole = max(largest / size, 1)
    return Unit(name, size, max(0, 3 - math.floor(math.log10(whole))) if size > 1 else 0)
