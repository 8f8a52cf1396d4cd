"""Spatial windows: planned on the host, then laid over the tokens on their device."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from numbers import Real

import torch
from torch import Tensor

from lightkv_graphs.host import to_device
from lightkv_graphs.layout import Tiles, TokenLayout
from lightkv_graphs.occupancy import Cut, MergeCount, Occupancy, balanced_cut, exact_count


@dataclass(frozen=True, eq=False)
class StagePlan:
    """Sizes of one stage, known before it runs.

    Attributes:
        windows: Windows per side, W.
        ratio: Fraction of the tokens that is merged away.
        merges: Tokens merged away in each image.
        largest: An upper bound on the mergeable tokens in one window.
        before: Occupancy of each image before the stage; a plan fits the layout it came from.
        occupancy: Of each image after the stage.
        cut: How a side is cut into pieces.
        count: How many tokens a window of n tokens gives up.
        leaving: Tokens merged away in each window of each image, `[window]`; None where that
            depends on the data.
    """

    windows: int
    ratio: float
    merges: tuple[int, ...]
    largest: int
    before: tuple[Occupancy, ...]
    occupancy: tuple[Occupancy, ...]
    cut: Cut = field(default=balanced_cut)
    count: MergeCount = field(default=exact_count)
    leaving: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.leaving is None:
            return
        size = self.windows**2
        own = (self.leaving[n : n + size] for n in range(0, len(self.leaving), size))
        if tuple(map(sum, own)) != self.merges:
            raise ValueError(
                f"leaving is {self.leaving}: expected numbers of {size} windows for each image, "
                f"which sum to merges, {self.merges}; None if they are not known"
            )

    @property
    def total(self) -> int:
        """Tokens merged away in the whole batch."""
        return sum(self.merges)

    def check(self, layout: TokenLayout) -> None:
        """Raises ValueError if this is the plan of another layout."""
        if self.before is not layout.occupancy:
            raise ValueError(
                f"the plan was made from another layout than {layout}: plan this stage from its "
                "own layout.occupancy, plan_stage(layout.occupancy, windows, ratio)"
            )


def plan_stage(
    occupancy: tuple[Occupancy, ...],
    windows: int,
    ratio: float,
    *,
    cut: Cut = balanced_cut,
    count: MergeCount = exact_count,
) -> StagePlan:
    """Plans one stage from what the host knows; no device is touched.

    Where every window is a union of blocks of known counts (always so in a first stage, and
    whenever W divides the W of the stage before), each window of n tokens gives up
    ``count(n, ratio)`` of them.  Otherwise the windows' sizes depend on the data; the image then
    gives up the largest number that every distribution of its tokens over the windows allows.

    Args:
        occupancy: Of each image before the stage.
        windows: Windows per side.
        ratio: Fraction merged away, 0 to 0.99; alternating sources and destinations allow 0.5.
        cut: How a side is cut into ``windows`` pieces.
        count: Tokens a window of n tokens gives up.

    Raises:
        ValueError: ``windows`` is below 1 or ``ratio`` outside 0 to 0.99.
        TypeError: ``windows`` is no integer, ``ratio`` no number, or ``occupancy`` no tuple.
    """
    if not isinstance(occupancy, tuple):
        raise TypeError(f"occupancy is {occupancy!r}: expected that of a layout, layout.occupancy")
    if not isinstance(windows, int):
        raise TypeError(f"windows is {windows!r}: expected an integer")
    if not isinstance(ratio, Real):
        raise TypeError(f"ratio is {ratio!r}: expected a number")
    if windows < 1:
        raise ValueError(f"windows is {windows}: expected at least one window per side")
    if not 0 <= ratio <= 0.99:
        raise ValueError(f"ratio is {ratio}: expected a fraction merged away from 0 to 0.99")
    images = [_plan_image(image, windows, ratio, cut, count) for image in occupancy]
    merges, largest, after, left = zip(*images, strict=True) if images else ((), (), (), ())
    most = max(largest, default=0)
    leaving = None if None in left else tuple(chain.from_iterable(left))
    return StagePlan(windows, ratio, merges, most, occupancy, after, cut, count, leaving)


@lru_cache(maxsize=1024)
def _plan_image(
    image: Occupancy, windows: int, ratio: float, cut: Cut, count: MergeCount
) -> tuple[int, int, Occupancy, tuple[int, ...] | None]:
    """Tokens merged away, the largest window, what is left, and tokens merged away in each window.

    The largest window is an upper bound; the last is None where it depends on the data.
    Remembered: full grids of one size share their occupancy, and so what follows from it.
    """
    per_window = image.in_windows(windows, cut)
    if per_window is None:
        tokens = image.tokens
        spread = windows**2  # at worst every window holds a token that cannot leave
        most = tokens - spread if ratio > 0.5 else (tokens - spread + 1) // 2
        total = max(0, min(int(count(torch.tensor(tokens, device="cpu"), ratio)), most))
        return total, image.largest_window(windows, cut), image.blurred(total), None
    gone = count(per_window, ratio)
    leaving = tuple(int(number) for number in gone.flatten())
    return sum(leaving), int(per_window.max()), image.merged(per_window, gone, cut), leaving


@dataclass(frozen=True, eq=False)
class WindowPartition:
    """Every token's window; the windows of all images of a batch, numbered through.

    Attributes:
        window: Window of each token, `[token]`, int64, image by image and row by row; tokens that
            are never merged have the number after the last window.
        plan: The sizes it was made from.
        known_slots: What :meth:`slots` returns, where it is remembered.
    """

    window: Tensor
    plan: StagePlan
    known_slots: Tensor | None = None

    @property
    def images(self) -> int:
        """Images in the batch."""
        return len(self.plan.merges)

    @property
    def per_image(self) -> int:
        """Windows in one image."""
        return self.plan.windows**2

    @property
    def total(self) -> int:
        """Windows in the whole batch."""
        return self.images * self.per_image

    def sizes(self) -> Tensor:
        """Mergeable tokens of each window, `[window]`, int64."""
        ones = torch.ones_like(self.window)
        return self.window.new_zeros(self.total + 1).index_add_(0, self.window, ones)[:-1]

    def slots(self) -> Tensor:
        """The windows as padded rows of tokens; not to be written to.

        Returns:
            Token numbers `[window, slot]`, int64, with an even number of slots: each window's
            tokens in raster order, then the number of tokens as padding.
        """
        if self.known_slots is not None:
            return self.known_slots
        tokens = self.window.shape[0]
        order = self.window.argsort(stable=True)
        of_slot = self.window[order]
        ends = self.sizes().cumsum(0)
        starts = torch.cat([ends.new_zeros(1), ends])
        rank = torch.arange(tokens, device=order.device) - starts[of_slot]
        width = max(2, self.plan.largest + self.plan.largest % 2)
        table = order.new_full((self.total + 1, width), tokens)
        table[of_slot, rank.clamp(max=width - 1)] = order
        return table[:-1]


def window_partition(layout: TokenLayout, plan: StagePlan) -> WindowPartition:
    """Lays a plan's windows over the tokens by their true rows and columns.

    Runs on the layout's device, with shapes that depend on the plan alone.

    Raises:
        ValueError: The plan is another layout's.
    """
    plan.check(layout)
    return lay_windows(layout, plan)


def lay_windows(layout: TokenLayout, plan: StagePlan) -> WindowPartition:
    """As :func:`window_partition`, for a plan that was checked.

    Windows of tiles, in which nothing was merged yet, are remembered.
    """
    if layout.tiles is None or torch.compiler.is_compiling():
        return WindowPartition(_windows(layout, plan), plan)
    device = layout.image.device
    window, slots = _of_tiles(layout.tiles, plan.windows, plan.cut, plan.largest, device)
    return WindowPartition(window.clone(), plan, slots)


@lru_cache(maxsize=64)
def _of_tiles(
    tiles: Tiles, windows: int, cut: Cut, largest: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Window of each token, and slots, on the device."""
    with torch.inference_mode(False):
        layout = TokenLayout.from_tiles(tiles).to(device)
        kept = layout.occupancy
        plan = StagePlan(windows, 0, (0,) * len(kept), largest, kept, kept, cut)
        partition = WindowPartition(_windows(layout, plan), plan)
        return partition.window, partition.slots()


def _windows(layout: TokenLayout, plan: StagePlan) -> Tensor:
    """Window of each token, `[token]`."""
    windows = plan.windows
    size = to_device(layout.grids, layout.image.device).reshape(-1, 2)
    rows, cols = size[layout.image].unbind(1)
    row_piece = plan.cut(layout.row.clamp(min=0), rows, windows)
    col_piece = plan.cut(layout.col.clamp(min=0), cols, windows)
    window = (layout.image * windows + row_piece) * windows + col_piece
    outside = len(layout.counts) * windows**2
    return window.masked_fill(layout.protected, outside)
