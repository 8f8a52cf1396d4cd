"""The processes that a decoder's attention heads are split over by tensor parallelism."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightkv_gnn.errors import UnsupportedInputError
from lightkv_graphs import Certificate, Matching


class Ranks:
    """Lets every process know what the others' heads say, so that all merge alike.

    Under tensor parallelism each process has some of a layer's heads, with their part of the cache,
    while hidden states are the same on all of them.  What is computed from heads is summed here;
    and where tokens are matched, the first process decides for all.

    Args:
        heads: Query heads of a layer, of all processes together; unchecked if not given.
        group: The processes; None if every head is here.

    Attributes:
        size: Number of processes.
    """

    def __init__(self, heads: int | None = None, group: Any = None) -> None:
        self._heads, self._group = heads, group
        self.size = 1 if group is None else dist.get_world_size(group)

    def check(self, query: Tensor) -> None:
        """Raises UnsupportedInputError if `[batch, head, token, channel]` is no equal share."""
        if self._heads is not None and query.shape[1] * self.size != self._heads:
            raise UnsupportedInputError(
                f"a layer's attention has {query.shape[1]} heads here, expected "
                f"{self._heads // self.size}, of {self._heads} on {self.size} processes: the model "
                "was split by something else than transformers' own plan; load it with "
                "from_pretrained(..., distributed_config=DistributedConfig(tp_size=...))"
            )

    def summed(self, shares: Tensor) -> Tensor:
        """Sums what heads give over all processes; logarithms, each in the unit of one head.

        Its gradient is each process's own, as for all that tensor parallelism replicates.
        """
        if self.size == 1:
            return shares
        most = shares.detach().clone()
        dist.all_reduce(most, dist.ReduceOp.MAX, group=self._group)
        total: Tensor = _Sum.apply((shares - most).exp(), self._group)
        return total.log() + most

    def joined(self, states: Tensor) -> Tensor:
        """The heads of all processes, `[batch, head, token, channel]`, in their order."""
        if self.size == 1:
            return states
        own = states.contiguous()
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own.detach(), group=self._group)
        parts[dist.get_rank(self._group)] = own
        return torch.cat(parts, dim=1)

    def agreed(self, matching: Matching) -> Matching:
        """The first process's matching, which may be random, or rounded otherwise than here."""
        if self.size == 1:
            return matching
        dropped, certificate = matching.dropped, matching.certificate
        return Matching(
            self._first(matching.edge_index),
            self._first(matching.similarity),
            None if dropped is None else self._first(dropped.to(torch.uint8)).bool(),
            None if certificate is None else Certificate(*map(self._first, certificate)),
        )

    def _first(self, x: Tensor) -> Tensor:
        received = x.detach().clone(memory_format=torch.contiguous_format)
        dist.broadcast(received, group=self._group, group_src=0)
        return received


class _Sum(torch.autograd.Function):
    """All-reduce; the gradient of a result that every process has is that of its own part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
