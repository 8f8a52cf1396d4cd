"""Merging and pruning that are told which tokens the answer depends on."""

from __future__ import annotations

import torch
from torch import Tensor

from lightkv_gnn.baselines.method import Hints, StageMethod
from lightkv_gnn.baselines.pruning import Once
from lightkv_gnn.config import LightKVConfig
from lightkv_gnn.stage.compressor import Compressed, TokenCompressor
from lightkv_graphs import Matching, StagePlan, TokenLayout, WindowPartition, drop_lowest

_LITTLE = 1e-6


class TellingCompressor(TokenCompressor):
    """Guides every stage by what is known to matter; a survivor matters if any of its tokens does.

    Args:
        config: How to compress otherwise.
        hints: What is known.
    """

    def __init__(self, config: LightKVConfig, hints: Hints) -> None:
        super().__init__(config.message, config.matcher, config.scatter)
        self._hints = hints
        self._left: tuple[TokenLayout, Tensor] | None = None

    def __call__(
        self, x: Tensor, layout: TokenLayout, plan: StagePlan, guidance: Tensor | None = None
    ) -> Compressed:
        """Runs one stage; see :meth:`TokenCompressor.__call__`."""
        if self._left is not None and self._left[0] is layout:
            relevant = self._left[1]
        else:
            relevant = self._first(layout)
        done = super().__call__(x, layout, plan, relevant.float().clamp(min=_LITTLE).log())
        after = torch.zeros(len(done.kept), dtype=torch.int64, device=x.device)
        after = after.index_add(0, done.survivor, relevant.long()) > 0
        self._left = done.layout, after
        return done

    def _first(self, layout: TokenLayout) -> Tensor:
        """What is known of each token before the first stage, `[token]`."""
        relevant, sample = self._hints.relevant, layout.sample
        if relevant is None:
            raise ValueError("the oracle needs to be told which tokens matter: Hints.relevant")
        number = torch.bincount(sample)
        widest = int(number.max()) if len(number) else 0
        if relevant.shape[0] < len(number) or relevant.shape[1] < widest:
            raise ValueError(
                f"Hints.relevant has shape {list(relevant.shape)}: expected [batch, vision], here "
                f"at least [{len(number)}, {widest}]"
            )
        place = torch.arange(len(layout), device=sample.device)
        place = place - (number.cumsum(0) - number)[sample]
        return relevant.to(sample.device)[sample, place]


class Oracle(StageMethod):
    """Merging guided by the tokens that the answer depends on, as the question's maker knows."""

    def compressor(self, config: LightKVConfig, hints: Hints) -> TokenCompressor:
        """One that is told."""
        return TellingCompressor(config, hints)


class OraclePruning(Once):
    """Pruning that keeps the tokens that the answer depends on."""

    def compressor(self, config: LightKVConfig, hints: Hints) -> TokenCompressor:
        """One that is told."""
        return TellingCompressor(config, hints)


def keep_known(x: Tensor, partition: WindowPartition, guidance: Tensor) -> Matching:
    """Drops at random, but tokens with more guidance only when no others are left."""
    score = guidance.float() + torch.rand(x.shape[0], device=x.device)
    return drop_lowest(score, x, partition)


ORACLE = Oracle(
    "oracle",
    "merging guided by the tokens that the answer is known to depend on",
    {"guidance": "none"},
)
ORACLE_PRUNING = OraclePruning(
    "oracle_pruning",
    "the tokens that the answer is known to depend on are kept, and of the rest as many as the "
    "budget allows, at random; once",
    {"guidance": "none", "matcher": keep_known},
)
