"""Rows as a table of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MILLISECONDS = ("seconds", "low", "high", "seconds_full", "first_token", "first_token_loaded")
"""Fields in seconds that are printed in milliseconds."""


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """One line a row, under the names of its fields; rows have the same fields."""
    if not rows:
        return "no rows"
    cells = [list(rows[0]), *([_cell(name, value) for name, value in row.items()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = (
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    )
    return "\n".join(lines)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple | list):
        return " ".join(_cell(name, one) for one in value)
    if name in MILLISECONDS:
        return f"{value * 1e3:.3f} ms"
    if name == "extra_bytes":
        return f"{value / 2**20:.2f} MiB"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
