"""A compressed prefill and decoding written out, for one unpadded sample of any family.

Only the model's weights are used, through its embedding, norms, projections and MLPs, and the
picture features it computes itself.  Attention, rotary positions, what sees what, caches and
stages are loops of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from families.loop_families import (
    TRAITS,
    Inputs,
    decoder_of,
    features_of,
    groups_of,
    kinds_of,
    paces_of,
    places_of,
    window_of,
)
from families.loop_layer import (
    Layer,
    Sees,
    attention_cap_of,
    capped,
    channels_of,
    final_cap_of,
    scaling_of,
)
from families.loop_rotary import (
    Position,
    Rotary,
    Tile,
    axes_of,
    grid_positions,
    plain_positions,
    theta_of,
)
from families.loop_stage import OwnGuidance, OwnMessage, Row, StageLoop


class FamilyLoop:
    """Runs a model layer by layer on one prompt.

    Args:
        model: The model.
        family: A key of :data:`families.loop_families.TRAITS`.
        stages: ``(layer, windows, ratio)`` of each stage.
        guidance: A name, or an :data:`families.loop_stage.OwnGuidance`.
        rotary: Whether guidance sees rotated queries and keys.
        message: A name, or an :data:`families.loop_stage.OwnMessage`.
        positions: "preserve" or "reindex".
        attention: "plain", or "mass": a row counts as often as the tokens it stands for.
        sees: Which tokens of a window see which, instead of the past and their own group.
    """

    def __init__(
        self,
        model: nn.Module,
        family: str,
        stages: Sequence[tuple[int, int, float]] = (),
        *,
        guidance: str | OwnGuidance = "text_to_vision",
        rotary: bool = True,
        message: str | OwnMessage = "guided_mean",
        positions: str = "preserve",
        attention: str = "plain",
        sees: Sees | None = None,
    ) -> None:
        self.model, self.traits, self.stages = model, TRAITS[family], stages
        self.rotary, self.positions = rotary, positions
        self.sees, self.attention = sees, attention
        decoder = decoder_of(model)
        self.embed, self.norm = decoder.embed_tokens, decoder.norm
        config = self.config = decoder.config
        sections = config.rope_parameters.get("mrope_section", ())
        axes = axes_of(self.traits.rope, channels_of(config) // 2, sections)
        self.layers = []
        for number, block in enumerate(decoder.layers):
            rotary = Rotary(theta_of(config, number), axes)
            self.layers.append(Layer(block, config, window_of(config, number), rotary))
        caps = (scaling_of(config), attention_cap_of(config))
        self.stage = StageLoop(guidance, message, *caps)
        self.groups: list[int] = []
        """Group of each original token, see :func:`families.loop_families.groups_of`."""
        self.next = self.traits.first
        """Position of the token that comes next."""

    @property
    def seen(self) -> int:
        """Tokens of the sequence so far."""
        return len(self.groups)

    @property
    def lengths(self) -> list[int]:
        """Entries that each layer of the model's cache would hold."""
        return [layer.length for layer in self.layers]

    @property
    def margin(self) -> float:
        """How far the closest decision of a matching was from being another one."""
        return self.stage.margin

    @torch.no_grad()
    def run(self, inputs: Inputs, tiles: Sequence[Tile] = ()) -> Tensor:
        """Appends a prompt to the sequence; returns the logits of each token.

        Args:
            inputs: The model's inputs for one sample without padding.
            tiles: Tiles of its pictures, in the order of their tokens.

        Returns:
            `[token, vocabulary]`; a merged token has its survivor's.
        """
        seen, ids = self.seen, inputs["input_ids"][0]
        kinds = kinds_of(self.model.config, inputs)
        vision = torch.tensor([kind != "text" for kind in kinds])
        rows = self._rows(inputs, kinds, tiles)
        self.groups += groups_of(self.traits.sight, kinds, inputs)
        # Placeholders may be beyond the vocabulary.
        hidden = self.embed(ids.masked_fill(vision, 0))
        deep: list[Tensor] = []
        if vision.any():
            features, deep = features_of(self.model, self.traits, inputs, kinds)
            hidden[vision] = features.to(hidden.dtype)
        for number, layer in enumerate(self.layers):
            hidden, query, key = self._layer(layer, hidden, rows, seen)
            if number < len(deep):
                assert len(rows) == len(ids), "features join tokens that have been merged"
                hidden[vision] += deep[number]
            for at, windows, ratio in self.stages:
                if at == number and vision.any():
                    grids = [(tile.rows, tile.cols) for tile in tiles]
                    merging = (grids, hidden, rows, query, key)
                    hidden, rows = self.stage(windows, ratio, *merging)
        logits = capped(self.model.lm_head(self.norm(hidden)), final_cap_of(self.config))
        owner = {member: number for number, row in enumerate(rows) for member in row.members}
        return logits[[owner[member] for member in range(len(ids))]]

    def run_text(self, ids: Sequence[int]) -> Tensor:
        """Appends text to the sequence; returns the logits of each token."""
        return self.run({"input_ids": torch.tensor([list(ids)])})

    def greedy(self, first: Tensor, steps: int) -> tuple[list[int], Tensor]:
        """Decodes after ``first``, the logits of the last token of the prompt.

        Returns:
            The tokens and the logits each was taken from, `[step, vocabulary]`.
        """
        tokens, logits = [], [first]
        for _ in range(steps):
            tokens.append(int(logits[-1].argmax()))
            if len(tokens) < steps:
                logits.append(self.run_text(tokens[-1:])[-1])
        return tokens, torch.stack(logits)

    def _rows(self, inputs: Inputs, kinds: Sequence[str], tiles: Sequence[Tile]) -> list[Row]:
        """One row per token, and moves ``next`` on behind them."""
        places = places_of(tiles)
        assert len(places) == sum(kind != "text" for kind in kinds), "tiles and placeholders"
        left = iter(places)
        if self.traits.rope == "plain":
            positions, self.next = plain_positions(len(kinds), self.next)
        else:
            paces = paces_of(self.model.config, inputs)
            positions, self.next = grid_positions(kinds, tiles, self.next, paces)
        return [
            Row([number], position, kind != "text", None if kind == "text" else next(left))
            for number, (kind, position) in enumerate(zip(kinds, positions, strict=True))
        ]

    def _layer(
        self, layer: Layer, hidden: Tensor, rows: list[Row], seen: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One decoder layer; also returns queries and keys `[head, token, channel]`."""
        turned: list[Position] = [row.position for row in rows]
        before = len(layer.keys)
        whole = before + len(rows) == self.seen
        # Three coordinates have no order to close up: they stay for as long as nothing is gone.
        if self.positions == "reindex" and not (whole and self.traits.rope != "plain"):
            turned, _ = plain_positions(len(rows), self.traits.first + before)
        places = [seen + row.members[0] for row in rows]
        sees = partial(self._sees, layer.window)
        counts = [row.mass if self.attention == "mass" else 1 for row in rows]
        hidden, plain, rotated = layer(hidden, places, turned, sees, counts)
        return (hidden, *(rotated if self.rotary else plain))

    def _sees(self, window: int | None, i: int, j: int) -> bool:
        within = window is None or j > i - window
        if self.sees is not None:
            return within and self.sees(i, j)
        together = self.groups[i] == self.groups[j] >= 0
        if self.traits.sight == "prefix":  # windows do not limit it
            return together or (within and j <= i)
        return within and (together or j <= i)
