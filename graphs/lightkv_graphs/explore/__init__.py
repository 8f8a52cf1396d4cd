"""The explorer: one HTML page, without a network, that shows how vision tokens merged."""

from lightkv_graphs.explore.page import frame, page_html, write_page
from lightkv_graphs.explore.view import LayerBar, View
from lightkv_graphs.trace import MergeTrace, show_with


def _framed(trace: MergeTrace) -> str:
    return frame(View(trace))


show_with(_framed)

__all__ = ["LayerBar", "View", "frame", "page_html", "write_page"]
