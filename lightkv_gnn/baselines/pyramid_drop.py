"""PyramidDrop: what the last instruction token attends to least is dropped, stage by stage."""

from __future__ import annotations

from lightkv_gnn.baselines.attention import last_token_attention
from lightkv_gnn.baselines.pruning import Staged, keep_highest

PYRAMID_DROP = Staged(
    "pyramid_drop",
    "PyramidDrop (Xing et al. 2024): equal fractions dropped at equally spaced layers, ranked by "
    "the last instruction token's attention; number and ratio of stages follow the budget, and "
    "the tokens of the prompt's end, such as 'ASSISTANT:', count as instruction",
    {"guidance": last_token_attention, "matcher": keep_highest},
)
