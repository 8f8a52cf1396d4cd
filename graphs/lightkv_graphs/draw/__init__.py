"""Static pictures of traces (needs matplotlib)."""

from lightkv_graphs.draw.canvas import CELL
from lightkv_graphs.draw.guidance import draw_guidance
from lightkv_graphs.draw.layers import draw_layers
from lightkv_graphs.draw.lineage import draw_lineage
from lightkv_graphs.draw.merges import draw_merges, draw_stages, draw_windows
from lightkv_graphs.draw.window import draw_window

__all__ = [
    "CELL",
    "draw_guidance",
    "draw_layers",
    "draw_lineage",
    "draw_merges",
    "draw_stages",
    "draw_window",
    "draw_windows",
]
