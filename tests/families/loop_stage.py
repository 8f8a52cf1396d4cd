"""One stage between two decoder layers, by way of the slow reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from reference import Stage, Token, cosine, guidance_of, run_stage, windows_of
from torch import Tensor

from families.loop_layer import capped
from families.loop_rotary import Position

Heads = list[list[list[float]]]
"""``states[head][token][channel]``."""

OwnGuidance = Callable[[Heads, Heads, list[int], list[int]], list[float]]
"""``guidance(query, key, vision, text)``: one weight per vision token."""

OwnMessage = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``message(x_i, x_j, weight)``."""

Grid = tuple[int, int]


@dataclass
class Row:
    """One token of a call; ``members`` are the tokens of the call it stands for, itself first."""

    members: list[int]
    position: Position
    vision: bool = False
    place: tuple[int, int, int] | None = None
    """Tile, row and column of a vision token that may be merged."""

    mass: int = 1


@dataclass
class StageLoop:
    """What merges, apart from where and how much.

    Args:
        guidance: A name, or an :data:`OwnGuidance`.
        message: A name, or an :data:`OwnMessage`.
        scaling: What attention multiplies its logits by.
        cap: The bound that they approach, or None.
    """

    guidance: str | OwnGuidance
    message: str | OwnMessage
    scaling: float
    cap: float | None = None
    margin: float = math.inf
    """How far the closest decision of a matching was from being another one."""

    def __call__(
        self,
        windows: int,
        ratio: float,
        grids: Sequence[Grid],
        hidden: Tensor,
        rows: list[Row],
        query: Tensor,
        key: Tensor,
    ) -> tuple[Tensor, list[Row]]:
        """Hidden states and rows after a stage; ``query`` and ``key`` are `[head, token, d]`."""
        vision = [number for number, row in enumerate(rows) if row.vision]
        text = [number for number, row in enumerate(rows) if not row.vision]
        weights = self._weights(query, key, vision, text)
        tokens = [token_of(rows[number], hidden[number]) for number in vision]
        share = Fraction(ratio).limit_denominator(1000)
        logs = [math.log(weight) if weight else -math.inf for weight in weights]
        named = self.message if isinstance(self.message, str) else "guided_mean"
        done = run_stage(tokens, grids, windows, share, logs, named)
        self.margin = min(self.margin, margin_of(tokens, windows_of(tokens, grids, windows), share))
        survivor = {vision[number]: row for row, number in enumerate(done.kept)}
        after: list[Tensor] = []
        left: list[Row] = []
        for number, row in enumerate(rows):
            if not row.vision:
                after.append(hidden[number])
                left.append(row)
            elif number in survivor:
                token = done.tokens[survivor[number]]
                after.append(self._state(done, survivor[number], hidden[vision]))
                left.append(grown(row, token))
        return torch.stack(after), left

    def _weights(
        self, query: Tensor, key: Tensor, vision: list[int], text: list[int]
    ) -> list[float]:
        if not isinstance(self.guidance, str):
            return self.guidance(query.tolist(), key.tolist(), vision, text)
        scaling = self.scaling
        if self.cap is not None:  # queries of capped logits, and keys that read them off
            key = key.repeat_interleave(len(query) // len(key), 0)
            query, scaling = capped(query @ key.mT * scaling, self.cap), 1.0
            key = torch.eye(query.shape[1])[None]
        return guidance_of(self.guidance, query.tolist(), key.tolist(), vision, text, scaling)

    def _state(self, done: Stage, survivor: int, hidden: Tensor) -> Tensor:
        """Hidden state of a survivor; ``hidden`` are those of the vision tokens before."""
        own = done.kept[survivor]
        group = [number for number, s in enumerate(done.survivor) if s == survivor]
        if len(group) == 1:
            return hidden[own]
        if isinstance(self.message, str):
            return torch.tensor(done.tokens[survivor].x, dtype=hidden.dtype)
        total = torch.zeros_like(hidden[own])
        for number in group:
            weight = torch.tensor([done.share[number]], dtype=hidden.dtype)
            total = total + self.message(hidden[own][None], hidden[number][None], weight)[0]
        return total


def token_of(row: Row, x: Tensor) -> Token:
    """A vision token; one without a place is protected."""
    place = row.place or (0, -1, -1)
    return Token(0, *place, x.tolist(), row.mass, row.place is None, row.members)


def grown(row: Row, token: Token) -> Row:
    own = row.members[0]
    others = [member for member in token.members if member != own]
    return Row([own, *others], row.position, True, row.place, token.mass)


def margin_of(tokens: list[Token], groups: list[list[int]], ratio: Fraction) -> float:
    """The least change of a divergence that could change a matching."""
    margin = math.inf
    for group in groups:
        best = []
        for source in group[0::2]:
            near = sorted(-cosine(tokens[source].x, tokens[d].x) for d in group[1::2])
            best += near[:1]
            if len(near) > 1:
                margin = min(margin, near[1] - near[0])
        best.sort()
        taken = math.floor(ratio * len(group))
        if 0 < taken < len(best):
            margin = min(margin, best[taken] - best[taken - 1])
    return margin
