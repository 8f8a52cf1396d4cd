"""Information loss, as it is measured: what every stage of every prefill did to the features."""

from __future__ import annotations

import time
from dataclasses import dataclass

from torch import Tensor

from lightkv_gnn.stage.compressor import Compressed, TokenCompressor
from lightkv_graphs import StagePlan, TokenLayout


class MeasuredCompressor(TokenCompressor):
    """A compressor that keeps account of what another one loses.

    Args:
        inner: Does the work.

    Attributes:
        losses: Of each stage since the account began.
        seconds: That measuring them took on the host.
    """

    def __init__(self, inner: TokenCompressor) -> None:
        super().__init__(inner.message, inner.matcher)
        self._inner = inner
        self.fused = inner.fused
        self.losses: list[Loss] = []
        self.seconds = 0.0

    def __call__(
        self, x: Tensor, layout: TokenLayout, plan: StagePlan, guidance: Tensor | None = None
    ) -> Compressed:
        """Runs one stage and measures it; see :meth:`TokenCompressor.__call__`."""
        done = self._inner(x, layout, plan, guidance)
        started = time.perf_counter()
        self.losses.append(Loss.of(x, done))
        self.seconds += time.perf_counter() - started
        return done

    def forget(self) -> None:
        """Starts a new account."""
        self.losses.clear()
        self.seconds = 0.0


@dataclass(frozen=True, eq=False)
class Loss:
    """What one stage of one prefill lost, in sums that can be added up over prefills.

    Attributes:
        before: Vision tokens before the stage.
        after: Vision tokens after it.
        divergence: Sum over the tokens that left of ``1 - cos`` with the survivor's features
            before the stage.
        squared_error: Sum of ``|x - unmerge(x')|^2`` over the tokens before the stage.
        squared_norm: Sum of ``|x|^2``.
    """

    before: int
    after: int
    divergence: Tensor
    squared_error: Tensor
    squared_norm: Tensor

    @classmethod
    def of(cls, x: Tensor, done: Compressed) -> Loss:
        """Measures a stage.

        Args:
            x: Features before it, `[token, channel]`.
            done: What it left.
        """
        wide = x.detach().float()
        error = wide - done.hidden_states.detach().float()[done.survivor]
        similarity = done.merges.matching.similarity
        return cls(
            before=x.shape[0],
            after=len(done.kept),
            divergence=(1 - similarity).sum(),
            squared_error=error.square().sum(),
            squared_norm=wide.square().sum(),
        )
