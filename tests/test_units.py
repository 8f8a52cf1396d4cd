"""Units fit the largest number of a column, and lose no more than its fourth digit."""

from __future__ import annotations

import pytest

from lightkv_gnn.units import BYTES, FLOPS, fitting


@pytest.mark.parametrize(
    ("number", "names", "words"),
    [
        (0, FLOPS, "0 FLOP"),
        (999, FLOPS, "999 FLOP"),
        (1_000, FLOPS, "1.000 kFLOP"),
        (86_123_456, FLOPS, "86.12 MFLOP"),
        (3_904_000_000_000, FLOPS, "3.904 TFLOP"),
        (10**19, FLOPS, "10000 PFLOP"),
        (1_023, BYTES, "1023 B"),
        (1_024, BYTES, "1.000 KiB"),
        (276 * 2**20, BYTES, "276.0 MiB"),
    ],
)
def test_units_fit_the_number(number, names, words):
    unit = fitting([number], names)
    assert f"{unit.text(number)} {unit.name}" == words


@pytest.mark.parametrize("names", [BYTES, FLOPS])
def test_every_number_of_a_column_comes_back(names):
    numbers = [int(1.7**power) for power in range(90)]
    for largest in numbers:
        unit = fitting([largest, 0, None], names)
        assert float(unit.text(largest)) * unit.size == pytest.approx(largest, rel=5e-4, abs=0.5)
        assert float(unit.text(largest)) >= 1 or largest == 0
    assert unit.text(None) == "-"
