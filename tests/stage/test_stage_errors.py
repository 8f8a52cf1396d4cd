"""A stage says what does not fit before it does anything."""

from __future__ import annotations

import pytest
from reference import features, make_layout
from stages import compress
from torch_geometric.nn import SAGEConv

from lightkv_gnn.stage.compressor import TokenCompressor
from lightkv_graphs import plan_stage


def test_wrong_shapes_are_named() -> None:
    layout = make_layout([[(4, 4)]])
    x, guidance = features(layout)
    with pytest.raises(ValueError, match=r"x has shape \[15, 6\]: .* with 16 tokens"):
        compress(x[1:], layout)
    with pytest.raises(ValueError, match=r"x has shape \[1, 16, 6\]: expected \[token, channel\]"):
        compress(x[None], layout)
    with pytest.raises(ValueError, match=r"guidance has shape \[15\]: expected \[token\] = \[16\]"):
        compress(x, layout, guidance[1:])
    with pytest.raises(ValueError, match=r"guidance has shape \[16, 1\]"):
        compress(x, layout, guidance[:, None])


def test_the_plan_must_be_of_the_layout() -> None:
    layout, other = make_layout([[(4, 4)]]), make_layout([[(4, 4)], [(4, 4)]])
    plan = plan_stage(other.occupancy, 2, 0.5)
    with pytest.raises(ValueError, match="the plan was made from another layout"):
        TokenCompressor()(features(layout)[0], layout, plan)


def test_a_convolution_without_edge_weights_is_refused() -> None:
    with pytest.raises(TypeError, match=r"SAGEConv takes no edge_weight: .* such as SimpleConv"):
        TokenCompressor(SAGEConv(4, 4))
