"""FastV: what the last token attends to least is dropped, once."""

from __future__ import annotations

from lightkv_gnn.baselines.attention import last_token_attention
from lightkv_gnn.baselines.pruning import keep_top

FASTV = keep_top(
    "fastv",
    "FastV (Chen et al. 2024): vision tokens ranked by the attention they get from the last token "
    "in one layer, averaged over heads; the lowest are dropped, once",
    last_token_attention,
)
