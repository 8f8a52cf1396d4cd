"""What a method could reach that knew which tokens the answer depends on."""

from __future__ import annotations

import torch
from torch import Tensor

from lightkv_gnn.baselines.method import Hints, StageMethod
from lightkv_gnn.compressor import Compressed, TokenCompressor
from lightkv_gnn.config import LightKVConfig
from lightkv_graphs import StagePlan, TokenLayout

_LITTLE = 1e-6


class Oracle(StageMethod):
    """Merging guided by the tokens that the answer depends on, as the question's maker knows."""

    def compressor(self, config: LightKVConfig, hints: Hints) -> TokenCompressor:
        """Takes what is known in place of the prompt's guidance."""
        return Knowing(config, hints)


class Knowing(TokenCompressor):
    """A compressor whose guidance is which tokens matter.

    Args:
        config: Message, matcher and scatter backend.
        hints: Told of every prefill before it starts.
    """

    def __init__(self, config: LightKVConfig, hints: Hints) -> None:
        super().__init__(config.message, config.matcher, config.scatter)
        self._hints = hints
        self._relevant: Tensor | None = None

    def __call__(
        self, x: Tensor, layout: TokenLayout, plan: StagePlan, guidance: Tensor | None = None
    ) -> Compressed:
        """Runs one stage; a survivor matters if anything in it does.

        Raises:
            ValueError: Nobody said what matters in this prefill.
        """
        told, self._hints.relevant = self._hints.relevant, None
        if told is not None:
            self._relevant = flat(told, layout).to(x.device)
        relevant = self._relevant
        if relevant is None or len(relevant) != len(layout):
            raise ValueError("the oracle needs to be told which tokens matter: Batch.relevant")
        done = super().__call__(x, layout, plan, relevant.float().clamp(min=_LITTLE).log())
        matters = relevant.new_zeros(len(done.kept), dtype=torch.int64)
        self._relevant = matters.index_add(0, done.survivor, relevant.long()) > 0
        return done


def flat(relevant: Tensor, layout: TokenLayout) -> Tensor:
    """The entries of `[batch, vision]` that are tokens of a layout, `[token]`."""
    counts = [0] * relevant.shape[0]
    for sample, count in zip(layout.samples, layout.counts, strict=True):
        counts[sample] += count
    return torch.cat([row[:count] for row, count in zip(relevant, counts, strict=True)])


ORACLE = Oracle(
    "oracle",
    "merging guided by the tokens that the answer is known to depend on",
    {"guidance": "none"},
)
