"""What a method could reach that knew which tokens the answer depends on."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from lightkv_gnn.baselines.method import Budget, Hints, StageMethod
from lightkv_gnn.config import LightKVConfig
from lightkv_gnn.guidance import GuidanceBlock

_LITTLE = 1e-6


class Oracle(StageMethod):
    """Merging guided by the tokens that the answer depends on, as the question's maker knows."""

    def config(self, budget: Budget, hints: Hints) -> LightKVConfig:
        """The usual one, with what is known in place of the prompt."""

        def known(block: GuidanceBlock) -> Tensor:
            if hints.relevant is None:
                raise ValueError("the oracle needs to be told which tokens matter: Batch.relevant")
            relevant = hints.relevant.to(block.query.device, block.query.dtype)
            return relevant.clamp(min=_LITTLE)

        return replace(super().config(budget, hints), guidance=known)


ORACLE = Oracle("oracle", "merging guided by the tokens that the answer is known to depend on")
