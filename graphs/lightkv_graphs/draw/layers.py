"""Bars of what each decoder layer holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_layers(
    compressed: Sequence[float],
    full: Sequence[float],
    *,
    label: str = "vision tokens",
    ax: Axes | None = None,
) -> Axes:
    """What each decoder layer holds, before what it would hold without compression.

    Args:
        compressed: Tokens, bytes or operations of each layer.
        full: The same without compression.
        label: What they are, with their unit.
        ax: Axes to draw into; new ones if not given.

    Raises:
        ValueError: There are no layers, or not as many of both.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if not compressed or len(compressed) != len(full):
        raise ValueError(
            f"{len(compressed)} layers compressed and {len(full)} in full: expected as many, some"
        )
    if ax is None:
        ax = Figure(figsize=(6.4, 2.8), layout="constrained").subplots()
    layers = range(len(compressed))
    ax.bar(layers, full, width=0.9, color="0.88", label="full")
    ax.bar(layers, compressed, width=0.9, color="#0072B2", label="compressed")
    ax.set_xlabel("decoder layer", fontsize=9)
    ax.set_ylabel(label, fontsize=9)
    ax.tick_params(labelsize=8)
    ax.set_xlim(-0.6, len(compressed) - 0.4)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[["top", "right"]].set_visible(False)
    share = sum(compressed) / sum(full) if sum(full) else 1.0
    ax.set_title(f"{label}: {share:.0%} of full over all layers", fontsize=9, loc="left")
    ax.legend(fontsize=8, frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 0.99))
    return ax
