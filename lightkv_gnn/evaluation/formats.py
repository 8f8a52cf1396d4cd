"""Numbers and text as a page's tables have them, in Markdown."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence


def as_share(value: float) -> str:
    """A fraction in per cent."""
    return f"{value:.1%}" if math.isfinite(value) else "–"


def as_points(low: float, high: float, sign: str = "+") -> str:
    """An interval of fractions in percentage points."""
    return f"[{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def as_p_value(value: float) -> str:
    """A p value."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def as_list(values: Sequence[float]) -> str:
    """Numbers in a row."""
    return ", ".join(f"{value:.3f}" if math.isfinite(value) else "–" for value in values) or "–"


def as_bytes(value: float) -> str:
    """A size in binary units."""
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} GiB"


def as_count(value: float) -> str:
    """A count in powers of a thousand."""
    for unit in ("", " k", " M", " G"):
        if value < 1000:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g} T"


def as_text(text: object) -> str:
    """Text that Markdown takes literally, on one line."""
    line = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*_\[\]|#~$!])", r"\\\1", line) or "(no name)"


def as_code(text: str) -> str:
    """A command as code, whatever backticks it has."""
    line = " ".join(text.split())
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    return f"{fence} {line} {fence}" if "`" in line else f"`{line}`"
