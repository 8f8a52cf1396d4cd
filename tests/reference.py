"""A slow and obvious reference of the method, and the batches it is compared on.

Everything is loops over Python numbers (float64): nothing is shared with the library, whose
tensors serve as containers at the borders only.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from lightkv_graphs import Grid, TokenLayout

# --- one stage --------------------------------------------------------------------------------


@dataclass
class Token:
    """One vision token; ``members`` are the original tokens it stands for."""

    sample: int
    image: int
    row: int
    col: int
    x: list[float]
    mass: int
    protected: bool
    members: list[int]


@dataclass
class Stage:
    """What the reference made of one stage."""

    tokens: list[Token]
    kept: list[int]
    survivor: list[int]
    edges: list[tuple[int, int]]
    share: list[float]


def tokens_of(x: Tensor, layout: TokenLayout) -> list[Token]:
    columns = (layout.sample, layout.image, layout.row, layout.col)
    rows = zip(
        *(column.tolist() for column in (*columns, x, layout.mass, layout.protected)), strict=True
    )
    return [Token(*row, [number]) for number, row in enumerate(rows)]


def piece(coordinate: int, size: int, windows: int) -> int:
    """The piece of a side of ``size`` cells; pieces begin at ``ceil(k * size / windows)``."""
    begins = [math.ceil(Fraction(k * size, windows)) for k in range(windows + 1)]
    (found,) = [k for k in range(windows) if begins[k] <= coordinate < begins[k + 1]]
    return found


def windows_of(tokens: list[Token], grids: Sequence[Grid], windows: int) -> list[list[int]]:
    """Mergeable tokens of each window that has some, in raster order."""
    groups: dict[tuple[int, int, int], list[int]] = {}
    for number, token in enumerate(tokens):
        if not token.protected:
            rows, cols = grids[token.image]
            place = (piece(token.row, rows, windows), piece(token.col, cols, windows))
            groups.setdefault((token.image, *place), []).append(number)
    for group in groups.values():
        group.sort(key=lambda number: (tokens[number].row, tokens[number].col))
    return [groups[key] for key in sorted(groups)]


def cosine(a: list[float], b: list[float]) -> float:
    lengths = math.sqrt(sum(v * v for v in a)) * math.sqrt(sum(v * v for v in b))
    return sum(v * w for v, w in zip(a, b, strict=True)) / lengths if lengths else 0.0


def match(tokens: list[Token], window: list[int], merges: int) -> list[tuple[int, int]]:
    """The ``merges`` least divergent of the edges from each source to its nearest destination."""
    candidates = []
    for rank, source in enumerate(window):
        if rank % 2 == 0 and len(window) > 1:
            nearest, highest = window[1], -math.inf
            for destination in window[1::2]:
                similarity = cosine(tokens[source].x, tokens[destination].x)
                if similarity > highest:
                    nearest, highest = destination, similarity
            candidates.append((1 - highest, source, nearest))
    candidates.sort()
    return [(source, destination) for _, source, destination in candidates[:merges]]


def log_weight(message: str, guidance: float, mass: int, stays: bool) -> float:
    if message == "guided_mean":
        return guidance
    if message == "mean":
        return 0.0
    if message == "mass_mean":
        return math.log(mass)
    if message == "destination_only":
        return 0.0 if stays else -math.inf
    raise ValueError(message)


def shares(logs: list[float]) -> list[float]:
    top = max(logs)
    weights = [1.0 if top == -math.inf else math.exp(log - top) for log in logs]
    return [weight / sum(weights) for weight in weights]


def run_stage(
    tokens: list[Token],
    grids: Sequence[Grid],
    windows: int,
    ratio: Fraction,
    guidance: list[float] | None = None,
    message: str = "guided_mean",
) -> Stage:
    """One stage; ``guidance`` holds logarithms."""
    guidance = guidance or [0.0] * len(tokens)
    edges = []
    for window in windows_of(tokens, grids, windows):
        edges += match(tokens, window, math.floor(ratio * len(window)))
    return pass_messages(tokens, sorted(edges), guidance, message)


def pass_messages(
    tokens: list[Token], edges: list[tuple[int, int]], guidance: list[float], message: str
) -> Stage:
    gone = {source for source, _ in edges}
    kept = [number for number in range(len(tokens)) if number not in gone]
    survivor, share, after = [-1] * len(tokens), [0.0] * len(tokens), []
    for row, destination in enumerate(kept):
        group = [destination, *(s for s, d in edges if d == destination)]
        logs = [
            log_weight(message, guidance[n], tokens[n].mass, stays=n == destination) for n in group
        ]
        x = [0.0] * len(tokens[destination].x)
        for number, weight in zip(group, shares(logs), strict=True):
            survivor[number], share[number] = row, weight
            for channel, value in enumerate(tokens[number].x):
                x[channel] += weight * value
        after.append(
            replace(
                tokens[destination],
                x=x if len(group) > 1 else tokens[destination].x,
                mass=sum(tokens[number].mass for number in group),
                members=sorted(m for number in group for m in tokens[number].members),
            )
        )
    return Stage(after, kept, survivor, edges, share)


# --- guidance ---------------------------------------------------------------------------------


def guidance_of(
    kind: str,
    query: list[list[list[float]]],
    key: list[list[list[float]]],
    vision: list[int],
    text: list[int],
    scaling: float,
) -> list[float]:
    """Weight of each vision token of one sample; ``query[head][position][channel]``."""
    if kind == "none" or not text or not vision:
        return [1.0] * len(vision)
    weight = [0.0] * len(vision)
    for head, queries in enumerate(query):
        keys = key[head * len(key) // len(query)]
        for position in text[-1:] if kind == "last_token" else text:
            logits = []
            for token in vision:
                pair = (queries[token], keys[position])
                if kind != "vision_to_text":
                    pair = (queries[position], keys[token])
                logits.append(scaling * sum(a * b for a, b in zip(*pair, strict=True)))
            for number, share in enumerate(shares(logits)):
                weight[number] += share
    return weight


# --- batches ----------------------------------------------------------------------------------

GRIDS: dict[str, list[list[Grid]]] = {
    "square": [[(4, 4)]],
    "one row": [[(1, 11)]],
    "odd": [[(5, 7)]],
    "wide": [[(3, 10)]],
    "two images": [[(4, 6), (3, 3)]],
    "ragged samples": [[(4, 4)], [(5, 3), (2, 8)], [(6, 5)]],
    "a sample without images": [[], [(3, 4)]],
}

RATIOS = {
    "0": Fraction(0),
    "1/10": Fraction(1, 10),
    "1/4": Fraction(1, 4),
    "3/10": Fraction(3, 10),
    "1/3": Fraction(1, 3),
    "1/2": Fraction(1, 2),
}


def make_layout(
    grids: list[list[Grid]], *, newlines: bool = False, protect: int = 0, holes: int = 0
) -> TokenLayout:
    """A layout of ``grids[sample][image]``.

    ``newlines`` ends each row of an image with a protected token without a place, ``protect``
    protects every so-manieth cell, and ``holes`` leaves every so-manieth cell empty.
    """
    rows: list[tuple[int, int, int, int, bool]] = []
    images = [(sample, grid) for sample, group in enumerate(grids) for grid in group]
    for image, (sample, (height, width)) in enumerate(images):
        for cell in range(height * width):
            if not holes or cell % holes != 1:
                protected = bool(protect) and cell % protect == 2
                rows.append((sample, image, cell // width, cell % width, protected))
            if newlines and cell % width == width - 1:
                rows.append((sample, image, -1, -1, True))
    columns = torch.tensor(rows, dtype=torch.int64).reshape(-1, 5).unbind(1)
    names = ("sample", "image", "row", "col", "protected")
    return TokenLayout.from_tokens(
        **dict(zip(names, columns, strict=True)), grids=[grid for _, grid in images]
    )


def features(layout: TokenLayout, seed: int = 0, channels: int = 6) -> tuple[Tensor, Tensor]:
    """Random features `[token, channel]` and logarithms of guidance `[token]`, in float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(layout), channels, generator=generator, dtype=torch.float64)
    guidance = 2 * torch.randn(len(layout), generator=generator, dtype=torch.float64)
    return x, guidance


def require_torch_scatter() -> None:
    """Skips the test without torch-scatter, or fails it where LIGHTKV_REQUIRE_SCATTER is set."""
    try:
        importlib.import_module("torch_scatter")
    except ImportError:
        if os.environ.get("LIGHTKV_REQUIRE_SCATTER", "0") not in ("", "0"):
            pytest.fail("LIGHTKV_REQUIRE_SCATTER is set and torch-scatter cannot be imported")
        pytest.skip("torch-scatter is not installed")
