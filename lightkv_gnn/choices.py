"""What options and configurations choose among; the command line needs it before torch."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from lightkv_gnn.errors import ScheduleError

GuidanceName = Literal["text_to_vision", "vision_to_text", "last_token", "none"]
GUIDANCE: tuple[GuidanceName, ...] = ("text_to_vision", "vision_to_text", "last_token", "none")

MessageName = Literal["guided_mean", "mean", "mass_mean", "destination_only"]

MatcherName = Literal["coverage", "cosine", "random", "stride", "resisting", "protecting"]
"""In configurations each is also known with ``_matching`` behind it, as its function is."""

AttentionName = Literal["plain", "mass"]
ATTENTION: tuple[AttentionName, ...] = ("plain", "mass")

ScatterName = Literal["torch", "torch_scatter", "triton"]
SCATTER: tuple[ScatterName, ...] = ("torch", "torch_scatter", "triton")


def named(name: str, known: Collection[str]) -> str | None:
    """The known name that one stands for, with or without ``_matching``; None for no such."""
    return next((own for own in (name, f"{name}_matching") if own in known), None)


def check_retention(retention: float) -> None:
    """Raises ScheduleError for a share of vision tokens that cannot be kept."""
    if not 0 < retention <= 1:
        raise ScheduleError(f"retention is {retention}: expected a fraction above 0, at most 1")
