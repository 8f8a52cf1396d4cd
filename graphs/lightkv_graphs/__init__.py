"""Vision tokens of a batch as window graphs: layout, partition, matching, merge graph, lineage."""

from lightkv_graphs.build import (
    add_text,
    merge_graph,
    message_edges,
    part_of,
    stage_graph,
    survivors,
)
from lightkv_graphs.certificate import Certificate
from lightkv_graphs.coverage import CoverageMatching, coverage_matching
from lightkv_graphs.draw import (
    draw_guidance,
    draw_layers,
    draw_lineage,
    draw_merges,
    draw_stages,
    draw_window,
    draw_windows,
)
from lightkv_graphs.dropping import drop_lowest, heirs
from lightkv_graphs.explore import LayerBar, View, write_page
from lightkv_graphs.files import TraceFileError
from lightkv_graphs.greedy import greedy_ranks
from lightkv_graphs.layout import Grid, Tile, TokenLayout
from lightkv_graphs.matching import (
    Matcher,
    Matching,
    bipartition,
    cosine_matching,
    edge_cosine,
    nearest_destinations,
    random_matching,
    source_cosines,
    stride_matching,
    take_edges,
)
from lightkv_graphs.occupancy import (
    Occupancy,
    balanced_cut,
    exact_count,
    float32_count,
    leading_cut,
)
from lightkv_graphs.partition import StagePlan, WindowPartition, plan_stage, window_partition
from lightkv_graphs.prompt_matching import (
    PromptMatching,
    protecting_matching,
    resisting_matching,
)
from lightkv_graphs.stage import StageTrace
from lightkv_graphs.trace import MergeTrace

__all__ = [
    "Certificate",
    "CoverageMatching",
    "Grid",
    "LayerBar",
    "Matcher",
    "Matching",
    "MergeTrace",
    "Occupancy",
    "PromptMatching",
    "StagePlan",
    "StageTrace",
    "Tile",
    "TokenLayout",
    "TraceFileError",
    "View",
    "WindowPartition",
    "add_text",
    "balanced_cut",
    "bipartition",
    "cosine_matching",
    "coverage_matching",
    "draw_guidance",
    "draw_layers",
    "draw_lineage",
    "draw_merges",
    "draw_stages",
    "draw_window",
    "draw_windows",
    "drop_lowest",
    "edge_cosine",
    "exact_count",
    "float32_count",
    "greedy_ranks",
    "heirs",
    "leading_cut",
    "merge_graph",
    "message_edges",
    "nearest_destinations",
    "part_of",
    "plan_stage",
    "protecting_matching",
    "random_matching",
    "resisting_matching",
    "source_cosines",
    "stage_graph",
    "stride_matching",
    "survivors",
    "take_edges",
    "window_partition",
    "write_page",
]
