"""The graph of a stage says all that the stage did."""

from __future__ import annotations

import torch
from reference import GRIDS, run_stage, tokens_of
from stages import HALF, batch, compress, every_message

from lightkv_gnn.stage.messages import WeightedMean
from lightkv_graphs import message_edges


@every_message
def test_the_graph_alone_gives_the_result(message: WeightedMean, scatter: str) -> None:
    x, layout, guidance = batch(GRIDS["ragged samples"])
    found = compress(x, layout, guidance, message=message, scatter=scatter)
    graph = found.graph
    survivors = graph["vision", "keeps", "vision"].edge_index[0].tolist()
    rows = {survivor: torch.zeros(x.shape[1], dtype=torch.float64) for survivor in survivors}
    for kind in ("keeps", "merges_into"):
        edges = graph["vision", kind, "vision"]
        for (source, destination), weight in zip(
            edges.edge_index.t().tolist(), edges.weight, strict=True
        ):
            rows[destination] += weight * x[source]
    torch.testing.assert_close(torch.stack([rows[s] for s in survivors]), found.hidden_states)


def test_graph_weights_equal_the_reference(scatter: str) -> None:
    x, layout, guidance = batch(GRIDS["two images"])
    found = compress(x, layout, guidance, scatter=scatter)
    expected = run_stage(tokens_of(x, layout), layout.grids, 2, HALF, guidance.tolist())
    edge_index, weight = message_edges(found.graph)
    share = torch.tensor(expected.share, dtype=torch.float64)[edge_index[0]]
    torch.testing.assert_close(weight, share)
