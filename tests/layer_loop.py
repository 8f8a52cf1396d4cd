"""A compressed prefill and decoding written out, for one unpadded sample.

Only the model's weights are used, through its embedding, norms, projections and MLPs; attention,
rotary positions, causality, caches and stages are loops of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from models import IMAGE_TOKEN
from reference import Token, cosine, guidance_of, run_stage, windows_of
from torch import Tensor, nn

Heads = list[list[list[float]]]
"""``states[head][token][channel]``."""

OwnGuidance = Callable[[Heads, Heads, list[int], list[int]], list[float]]
"""``guidance(query, key, vision, text)``: one weight per vision token."""

OwnMessage = Callable[[Tensor, Tensor, Tensor], Tensor]

Sees = Callable[[int, int], bool]
"""``sees(i, j)``: whether token i of the sequence attends to token j, in original positions."""


@dataclass
class Row:
    """One token of the sequence; ``members`` are the positions in the prompt it stands for."""

    members: list[int]
    place: tuple[int, int, int] | None = None
    """Image, row and column of a vision token that may be merged."""

    vision: bool = False
    mass: int = 1


@dataclass
class Layer:
    """What one decoder layer remembers."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    """Position of each entry in the original sequence."""


class LayerLoop:
    """Runs a LLaVA layer by layer on one prompt.

    Args:
        model: The model.
        stages: ``(layer, windows, ratio)`` of each stage.
        guidance: A name, or an :data:`OwnGuidance`.
        rotary: Whether guidance sees rotated queries and keys.
        message: A name, or a callable ``(x_i, x_j, weight)``.
        positions: "preserve" or "reindex".
        side: Rows and columns of an image.
        extra: Tokens without a place before each image's patches.
        sees: Which tokens see which; causal if not given.
    """

    def __init__(
        self,
        model: nn.Module,
        stages: Sequence[tuple[int, int, float]],
        *,
        guidance: str | OwnGuidance = "vision_to_text",
        rotary: bool = True,
        message: str | OwnMessage = "guided_mean",
        positions: str = "preserve",
        side: int = 4,
        extra: int = 0,
        sees: Sees = lambda i, j: j <= i,
    ) -> None:
        self.model, self.stages, self.side, self.extra = model, stages, side, extra
        self.guidance, self.rotary, self.message = guidance, rotary, message
        self.positions, self.sees = positions, sees
        decoder = model.model.language_model
        self.blocks, self.norm, self.embed = decoder.layers, decoder.norm, decoder.embed_tokens
        config = decoder.config
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.channels = config.hidden_size // config.num_attention_heads
        self.theta = config.rope_parameters["rope_theta"]
        self.layers = [Layer() for _ in self.blocks]
        self.seen = 0
        self.margin = math.inf
        """How far the closest decision of a matching was from being another one."""

    @property
    def lengths(self) -> list[int]:
        """Entries of each layer's cache."""
        return [len(layer.keys) for layer in self.layers]

    @torch.no_grad()
    def run(self, ids: Sequence[int], images: Tensor | None = None) -> Tensor:
        """Appends tokens to the sequence; returns the logits of each, `[token, vocabulary]`.

        A merged token has its survivor's.  With ``images`` the vision tokens are merged.
        """
        hidden = self.embed(torch.tensor(ids))
        rows = [Row([number]) for number in range(len(ids))]
        if images is not None:
            features = torch.cat(list(self.model.model.get_image_features(images).pooler_output))
            self._place(ids, rows)
            hidden[[row.vision for row in rows]] = features.to(hidden.dtype)
        for number, block in enumerate(self.blocks):
            hidden, query, key = self._block(block, self.layers[number], hidden, rows)
            for stage in self.stages:
                if stage[0] == number and images is not None:
                    hidden, rows = self._stage(stage, hidden, rows, query, key)
        self.seen += len(ids)
        logits = self.model.lm_head(self.norm(hidden))
        owner = {member: number for number, row in enumerate(rows) for member in row.members}
        return logits[[owner[member] for member in range(len(ids))]]

    def greedy(self, first: Tensor, steps: int) -> tuple[list[int], Tensor]:
        """Decodes after ``first``, the logits of the last token of the prompt.

        Returns:
            The tokens and the logits each was taken from, `[step, vocabulary]`.
        """
        tokens, logits = [], [first]
        for _ in range(steps):
            tokens.append(int(logits[-1].argmax()))
            if len(tokens) < steps:
                logits.append(self.run(tokens[-1:])[-1])
        return tokens, torch.stack(logits)

    def _place(self, ids: Sequence[int], rows: list[Row]) -> None:
        count = 0
        for token, row in zip(ids, rows, strict=True):
            if token == IMAGE_TOKEN:
                image, cell = divmod(count, self.side**2 + self.extra)
                row.vision = True
                if cell >= self.extra:
                    row.place = (image, *divmod(cell - self.extra, self.side))
                count += 1

    def _block(
        self, block: nn.Module, layer: Layer, hidden: Tensor, rows: list[Row]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One decoder layer; also returns queries and keys `[head, token, channel]`."""
        attention, x = block.self_attn, block.input_layernorm(hidden)
        plain = [
            project(x).reshape(len(rows), -1, self.channels).transpose(0, 1)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        ]
        places = [self.seen + row.members[0] for row in rows]
        turned = places
        if self.positions == "reindex":
            turned = list(range(len(layer.keys), len(layer.keys) + len(rows)))
        query, key = self._rotate(plain[0], turned), self._rotate(plain[1], turned)
        layer.places += places
        layer.keys += key.unbind(1)
        layer.values += plain[2].unbind(1)
        keys, values = torch.stack(layer.keys, 1), torch.stack(layer.values, 1)
        blind = torch.tensor([[not self.sees(i, j) for j in layer.places] for i in places])
        out = []
        for head in range(self.heads):
            shared = head // (self.heads // self.kv_heads)
            logits = query[head] @ keys[shared].T / math.sqrt(self.channels)
            out.append(logits.masked_fill(blind, -math.inf).softmax(1) @ values[shared])
        hidden = hidden + attention.o_proj(torch.cat(out, dim=1))
        hidden = hidden + block.mlp(block.post_attention_layernorm(hidden))
        return (hidden, query, key) if self.rotary else (hidden, plain[0], plain[1])

    def _rotate(self, states: Tensor, positions: list[int]) -> Tensor:
        half = self.channels // 2
        speed = torch.tensor([self.theta ** (-pair / half) for pair in range(half)])
        angle = torch.tensor(positions)[:, None] * speed
        cos, sin = angle.cos(), angle.sin()
        first, second = states[..., :half], states[..., half:]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def _stage(
        self,
        stage: tuple[int, int, float],
        hidden: Tensor,
        rows: list[Row],
        query: Tensor,
        key: Tensor,
    ) -> tuple[Tensor, list[Row]]:
        _, windows, ratio = stage
        vision = [number for number, row in enumerate(rows) if row.vision]
        text = [number for number, row in enumerate(rows) if not row.vision]
        guide = guidance_of if isinstance(self.guidance, str) else self.guidance
        heads = (query.tolist(), key.tolist())
        if isinstance(self.guidance, str):
            scaling = 1 / math.sqrt(self.channels)
            weights = guide(self.guidance, *heads, vision, text, scaling)
        else:
            weights = guide(*heads, vision, text)
        tokens = [
            Token(
                0,
                *(rows[number].place or (0, -1, -1)),
                hidden[number].tolist(),
                rows[number].mass,
                rows[number].place is None,
                rows[number].members,
            )
            for number in vision
        ]
        images = 1 + max(token.image for token in tokens)
        grids = [(self.side, self.side)] * images
        share = Fraction(ratio).limit_denominator(1000)
        named = self.message if isinstance(self.message, str) else "guided_mean"
        logs = [math.log(weight) if weight else -math.inf for weight in weights]
        done = run_stage(tokens, grids, windows, share, logs, named)
        self._note_margin(tokens, windows_of(tokens, grids, windows), share)
        after: list[Tensor] = []
        new_rows: list[Row] = []
        survivor = {vision[number]: row for row, number in enumerate(done.kept)}
        for number, row in enumerate(rows):
            if not row.vision:
                after.append(hidden[number])
                new_rows.append(row)
            elif number in survivor:
                token = done.tokens[survivor[number]]
                members = [row.members[0], *(set(token.members) - {row.members[0]})]
                new_rows.append(Row(members, row.place, vision=True, mass=token.mass))
                x = torch.tensor(token.x, dtype=hidden.dtype)
                if not isinstance(self.message, str):
                    group = [n for n, s in enumerate(done.survivor) if s == survivor[number]]
                    x = self._own_message(hidden[vision], done.share, group, vision.index(number))
                after.append(x)
        return torch.stack(after), new_rows

    def _own_message(
        self, hidden: Tensor, share: list[float], group: list[int], own: int
    ) -> Tensor:
        if len(group) == 1:
            return hidden[own]
        assert not isinstance(self.message, str)
        total = torch.zeros_like(hidden[own])
        for number in group:
            weight = torch.tensor([share[number]], dtype=hidden.dtype)
            total = total + self.message(hidden[own][None], hidden[number][None], weight)[0]
        return total

    def _note_margin(self, tokens: list[Token], groups: list[list[int]], ratio: Fraction) -> None:
        for group in groups:
            best = []
            for source in group[0::2]:
                near = sorted(-cosine(tokens[source].x, tokens[d].x) for d in group[1::2])
                best += near[:1]
                if len(near) > 1:
                    self.margin = min(self.margin, near[1] - near[0])
            best.sort()
            taken = math.floor(ratio * len(group))
            if 0 < taken < len(best):
                self.margin = min(self.margin, best[taken] - best[taken - 1])
