"""Windows as the authors' release cuts them: over the sequence folded on a square."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from lightkv_gnn.stage.compressor import Compressed, TokenCompressor
from lightkv_graphs import StagePlan, TokenLayout, leading_cut, plan_stage


class SquareFolded(TokenCompressor):
    """Partition and matching on squares, whatever the pictures' grids are.

    An image's N tokens, in the order of the sequence, are laid on a square of side ceil(sqrt(N)),
    row by row, and that is cut into windows; in a later stage, what is left is folded anew.  On a
    square grid a first stage is the same as with true windows.  Every image gives up as many tokens
    as planned, and the survivors keep their true rows and columns.

    Source: the authors' released module, as :mod:`lightkv_gnn.stage.official` has it.  Unlike
    there, a window may give up the larger half of an odd number of tokens, where the plan asks for
    it.
    """

    def __call__(
        self, x: Tensor, layout: TokenLayout, plan: StagePlan, guidance: Tensor | None = None
    ) -> Compressed:
        """Runs one stage; see :class:`TokenCompressor`.

        Raises:
            ValueError: The folded windows cannot give up as many tokens as planned.
        """
        folded = folded_layout(layout)
        done = super().__call__(x, folded, _planned(folded, plan), guidance)
        names = ("sample", "image", "row", "col", "protected")
        moved = {name: getattr(layout, name)[done.kept] for name in names}
        after = replace(
            layout,
            **moved,
            mass=done.layout.mass,
            counts=done.layout.counts,
            occupancy=plan.occupancy,
        )
        return done._replace(layout=after)


def folded_layout(layout: TokenLayout) -> TokenLayout:
    """Each image's tokens, in the order of the sequence, on a square of side ceil(sqrt(count))."""
    number = torch.tensor(layout.counts, device="cpu")
    image = torch.arange(len(number), device="cpu").repeat_interleave(number)
    token = torch.arange(len(layout), device="cpu") - (number.cumsum(0) - number)[image]
    sides = [math.isqrt(count - 1) + 1 for count in layout.counts]
    side = torch.tensor(sides, device="cpu")[image]
    folded = TokenLayout.from_tokens(
        sample=layout.sample,
        image=image,
        row=torch.div(token, side, rounding_mode="floor"),
        col=token % side,
        grids=[(side, side) for side in sides],
        mass=layout.mass,
        protected=layout.protected,
    )
    return folded.to(layout.image.device)


def _planned(folded: TokenLayout, plan: StagePlan) -> StagePlan:
    """The plan's merges, in windows of the folded images."""
    own = plan_stage(folded.occupancy, plan.windows, plan.ratio, cut=leading_cut)
    for number, (image, merges) in enumerate(zip(folded.occupancy, plan.merges, strict=True)):
        sizes = image.in_windows(plan.windows, leading_cut)
        assert sizes is not None  # single cells lie in one window each
        most = int(((sizes[sizes > 1] + 1) // 2).sum())
        if merges > most:
            raise ValueError(
                f"image {number}, of {image.tokens} tokens folded on a square, can give up {most} "
                f"in {plan.windows}x{plan.windows} windows: {merges} are planned; use fewer windows"
            )
    after = tuple(
        image.blurred(merges) for image, merges in zip(folded.occupancy, plan.merges, strict=True)
    )
    return replace(own, merges=plan.merges, occupancy=after, leaving=None)
