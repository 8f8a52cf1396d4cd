"""Tables for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def html_table(head: Sequence[object], rows: Iterable[Sequence[object]], note: str = "") -> str:
    """A table as HTML, of text that need not be escaped.

    Args:
        head: Of each column.
        rows: Cells of each.
        note: Lines below it.
    """
    lines = [_row("th", head), *(_row("td", row) for row in rows)]
    below = "".join(f"<div>{escape(line)}</div>" for line in note.splitlines())
    return f"<table>{''.join(lines)}</table>{below}"


def _row(kind: str, cells: Sequence[object]) -> str:
    inside = "".join(f"<{kind}>{escape(str(cell))}</{kind}>" for cell in cells)
    return f"<tr>{inside}</tr>"
