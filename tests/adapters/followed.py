"""What stages must do to tokens that carry their places, told from the places alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from carried import Place, carried
from reference import piece
from torch import Tensor

from lightkv_gnn import Stage
from lightkv_graphs import Grid, MergeTrace, StageTrace, TokenLayout

Token = tuple[int, Place]
"""A vision token with its sample."""

Window = tuple[int, ...]
"""Sample, kind, picture and number of a tile, then row and column of one of its windows, if any."""


class Followed:
    """The vision tokens of a batch on their way through the layers.

    Args:
        samples: Places of each sample's vision tokens.
        real: Which tokens of the prompts are no padding, `[sample, token]`.
    """

    def __init__(self, samples: Sequence[Sequence[Place]], real: Tensor) -> None:
        self.tokens = [(sample, place) for sample, own in enumerate(samples) for place in own]
        self.rows = [own.nonzero()[:, 0] for own in real]
        self.grids: dict[Window, Grid] = {}
        for sample, (*tile, row, col) in self.tokens:
            rows, cols = self.grids.get((sample, *tile), (0, 0))
            self.grids[(sample, *tile)] = max(rows, row + 1), max(cols, col + 1)

    def check(self, hidden: Sequence[Tensor], stages: Sequence[Stage], trace: MergeTrace) -> None:
        """Asserts that all layers are given the right tokens, and that the trace says so too."""
        assert self.laid_out(trace.layout) == self.tokens
        traced = list(trace)
        for number, states in enumerate(hidden):
            for stage in stages:
                if stage.layer == number - 1 and self.merged(stage):
                    self.check_stage(states, stage, traced.pop(0))
            assert self.carried(states) == self.tokens
        assert not traced

    def check_stage(self, states: Tensor, stage: Stage, traced: StageTrace) -> None:
        """Goes on to the tokens after a stage, which are those that the layer is given."""
        before, merged = self.tokens, self.merged(stage)
        windows = [self.window(token, stage) for token in before]
        width = states.shape[1]
        for sample, rows in enumerate(self.rows):
            gone = sum(count for window, count in merged.items() if window[0] == sample)
            self.rows[sample] = torch.arange(width - len(rows) + gone, width)
        self.tokens = after = self.carried(states)
        assert after == [token for token in before if token in set(after)]
        assert Counter(self.window(token, stage) for token in after) == Counter(windows) - merged
        assert self.laid_out(traced.layout) == after
        survivors = [after[row] for row in traced.survivor]
        assert [self.window(token, stage) for token in survivors] == windows
        placed = [(n, w) for n, w in zip(traced.window.tolist(), windows, strict=True) if w[4:]]
        assert len({n for n, _ in placed}) == len({w for _, w in placed}) == len(set(placed))

    def window(self, token: Token, stage: Stage) -> Window:
        """The window that a token lies in, or only its tile where it has no place."""
        sample, (*tile, row, col) = token
        rows, cols = self.grids[(sample, *tile)]
        if row < 0:
            return sample, *tile
        return sample, *tile, piece(row, rows, stage.windows), piece(col, cols, stage.windows)

    def merged(self, stage: Stage) -> Counter[Window]:
        """How many tokens a stage takes from each window."""
        sizes = Counter(self.window(token, stage) for token in self.tokens)
        return +Counter({w: int(stage.ratio * n) for w, n in sizes.items() if w[4:]})

    def carried(self, states: Tensor) -> list[Token]:
        """The tokens that a layer is given."""
        pairs = enumerate(zip(states, self.rows, strict=True))
        return [(sample, place) for sample, (own, rows) in pairs for place in carried(own[rows])]

    def laid_out(self, layout: TokenLayout) -> list[Token]:
        """The tokens that a layout tells, each tile an image of its own."""
        tiles = list(self.grids)
        assert list(layout.grids) == list(self.grids.values())
        assert layout.protected.tolist() == (layout.row < 0).tolist()
        columns = (layout.sample, layout.image, layout.row, layout.col)
        found = []
        for sample, image, row, col in zip(*(x.tolist() for x in columns), strict=True):
            assert tiles[image][0] == sample
            found.append((sample, Place(*tiles[image][1:], row, col)))
        return found
