"""One window of a stage as the bipartite graph that its messages passed over."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from lightkv_graphs.build import MERGES
from lightkv_graphs.trace import MergeTrace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import LineCollection
    from PIL.Image import Image

PAIR = 8.8
"""Width of a column of pairs, in patches."""

ALONE = 2.6
"""Width of a column of tokens that stayed alone, in patches."""


class Spots(NamedTuple):
    """Where tokens are drawn, in patches, from the top left.

    Attributes:
        leaving: Centre of each token that is merged away, by its number.
        staying: Centre of each that receives.
        alone: Centre of each other one.
        width: Of all.
        height: Of all.
    """

    leaving: dict[int, tuple[float, float]]
    staying: dict[int, tuple[float, float]]
    alone: dict[int, tuple[float, float]]
    width: float
    height: int


def draw_window(
    trace: MergeTrace,
    window: int,
    picture: Image | None = None,
    *,
    stage: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """The tokens of a window that leave, on the left, and the ones they join, on the right.

    An edge is as wide as its token's share in the survivor, and coloured by the divergence of the
    two.  The survivor's own share stands beside it.  Tokens that stayed alone are at the far right.

    Args:
        trace: From ``handle.trace``.
        window: Window number in the batch, as in ``handle.graph``.
        picture: What the model saw of the window's image, for its patches; if not given, tokens
            are boxes.
        stage: Which stage.
        ax: Axes to draw into; new ones if not given.

    Raises:
        IndexError: No such stage.
        ValueError: The window has no tokens that may be merged.
    """
    from matplotlib.figure import Figure

    graph = trace.to("cpu").graph(stage, window=window)
    vision, merges = graph["vision"], graph[MERGES]
    if bool(vision.protected.any()):
        raise ValueError(f"window {window} has protected tokens only, which are never merged")
    spots = _spots(merges.edge_index, vision.num_nodes)
    if ax is None:
        unit = min(0.34, 11 / spots.width)
        size = (max(5.0, spots.width * unit + 0.9), spots.height * unit + 0.7)
        ax = Figure(figsize=size, layout="constrained").subplots()
    else:
        unit = ax.get_window_extent().width / ax.figure.get_dpi() / spots.width
    cells = None
    if picture is not None:
        cells = _cells_of_picture(picture, trace.layout.grids[int(vision.image[0])])
    _draw_tokens(ax, graph, spots, cells, font=min(8.0, unit * 72 * 0.36))
    if merges.num_edges:
        edges = _edges(graph, spots, unit)
        ax.add_collection(edges)
        bar = ax.figure.colorbar(edges, ax=ax, shrink=0.7, pad=0.01)
        bar.set_label("feature divergence, 1 - cosine", fontsize=8)
        bar.ax.tick_params(labelsize=8)
    ax.set(aspect="equal", xlim=(0, spots.width), ylim=(spots.height, 0))
    ax.axis("off")
    ax.set_title(
        f"window {window} after layer {trace.stages[stage].layer}: {vision.num_nodes} tokens, "
        f"{merges.num_edges} join another, {len(spots.alone)} stay alone\n"
        "width: share in the survivor; %: the survivor's own",
        fontsize=9,
    )
    return ax


def _draw_tokens(
    ax: Axes,
    graph: HeteroData,
    spots: Spots,
    cells: Callable[[int, int], Image] | None,
    font: float,
) -> None:
    """Each token as its patch, or as a box, with its row and column."""
    from matplotlib.patches import Rectangle

    vision, merges, half = graph["vision"], graph[MERGES], 0.44
    joined = merges.weight.new_zeros(vision.num_nodes)
    joined = joined.index_add(0, merges.edge_index[1], merges.weight)
    for group, side in ((spots.leaving, -1), (spots.staying, 1), (spots.alone, 1)):
        for token, (x, y) in group.items():
            row, col = int(vision.row[token]), int(vision.col[token])
            if cells is not None:
                extent = (x - half, x + half, y + half, y - half)
                ax.imshow(cells(row, col), extent=extent)
            corner = (x - half, y - half)
            box = Rectangle(corner, 2 * half, 2 * half, fill=False, edgecolor="0.4", linewidth=0.5)
            ax.add_patch(box)
            text = f"{row},{col}"
            if group is spots.staying:
                text += f"  {1 - float(joined[token]):.0%}"
            align = "left" if side > 0 else "right"
            ax.text(x + 0.6 * side, y, text, fontsize=font, va="center", ha=align)


def _edges(graph: HeteroData, spots: Spots, unit: float) -> LineCollection:
    """The merges, in a unit of so many inches."""
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection
    from matplotlib.colors import ListedColormap

    merges = graph[MERGES]
    pairs = zip(*merges.edge_index.tolist(), strict=True)
    starts_ends = [(spots.leaving[source], spots.staying[end]) for source, end in pairs]
    divergence = (1 - merges.similarity).masked_fill(~merges.similarity.isfinite(), torch.nan)
    colours = ListedColormap(
        colormaps["viridis"](torch.linspace(0, 0.85, 256, device="cpu").numpy())
    )
    return LineCollection(
        [[(left + 0.5, y), (right - 0.5, z)] for (left, y), (right, z) in starts_ends],
        linewidths=(unit / 0.34 * (0.6 + 5 * merges.weight)).tolist(),
        cmap=colours.with_extremes(bad="0.6"),
        array=divergence.double().numpy(),
        capstyle="round",
    )


def _cells_of_picture(picture: Image, grid: tuple[int, int]) -> Callable[[int, int], Image]:
    """What the model saw at a row and a column of the grid."""
    side = max(1, math.ceil(max(picture.height / grid[0], picture.width / grid[1])))
    even = picture.convert("RGB").resize((grid[1] * side, grid[0] * side))

    def cell(row: int, col: int) -> Image:
        return even.crop((col * side, row * side, (col + 1) * side, (row + 1) * side))

    return cell


def _spots(edge_index: Tensor, tokens: int) -> Spots:
    """Places such that no two edges cross: what joins one survivor stands together."""
    groups: dict[int, list[int]] = {}
    for source, destination in sorted(zip(*edge_index.tolist(), strict=True)):
        groups.setdefault(destination, []).append(source)
    gone = set(edge_index[0].tolist())
    alone = [token for token in range(tokens) if token not in gone and token not in groups]
    largest, slots = max(map(len, groups.values()), default=1), edge_index.shape[1]
    tall = max(8, largest, math.ceil(math.sqrt(5 * slots + 2 * len(alone))))
    tall = max(4, largest, math.ceil(slots / max(1, math.ceil(slots / tall))) + 1)
    leaving, staying, x, y, height = {}, {}, 0.0, 0, min(tall, len(alone))
    for destination, sources in sorted(groups.items()):
        if y + len(sources) > tall:
            x, y = x + PAIR, 0
        for place, source in enumerate(sources):
            leaving[source] = (x + 1.9, y + place + 0.5)
        staying[destination] = (x + 5.5, y + len(sources) / 2)
        y += len(sources)
        height = max(height, y)
    x = x + PAIR if groups else 0.0
    single = {
        token: (x + 0.7 + ALONE * (n // height), n % height + 0.5) for n, token in enumerate(alone)
    }
    columns = math.ceil(len(alone) / height) if alone else 0
    return Spots(leaving, staying, single, x + ALONE * columns, height)
