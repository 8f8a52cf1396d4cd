"""Reductions of edges into their target nodes, by torch or by torch-scatter."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor
from torch_geometric.nn.aggr import Aggregation

ScatterName = Literal["torch", "torch_scatter"]


class ScatterBackend(Protocol):
    """Sums and maxima over edges that share a target.

    ``index`` holds the target of each edge, `[edge]`, ascending; every one of the ``size`` targets
    has at least one edge.
    """

    def sum(self, src: Tensor, index: Tensor, size: int) -> Tensor:
        """Sum per target: `[edge, ...]` to `[size, ...]`."""

    def max(self, src: Tensor, index: Tensor, size: int) -> Tensor:
        """Maximum per target: `[edge]` to `[size]`."""

    def weighted_sum(
        self, x: Tensor, source: Tensor, weight: Tensor, index: Tensor, size: int
    ) -> Tensor:
        """Sum per target of ``weight * x[source]``: `[row, channel]` to `[size, channel]`."""


class TorchBackend:
    """Plain torch: ``index_add``, ``scatter_reduce`` and ``embedding_bag``."""

    def sum(self, src: Tensor, index: Tensor, size: int) -> Tensor:
        """Sum per target: `[edge, ...]` to `[size, ...]`."""
        return src.new_zeros(size, *src.shape[1:]).index_add(0, index, src)

    def max(self, src: Tensor, index: Tensor, size: int) -> Tensor:
        """Maximum per target: `[edge]` to `[size]`."""
        return src.new_full((size,), -torch.inf).scatter_reduce(0, index, src, "amax")

    def weighted_sum(
        self, x: Tensor, source: Tensor, weight: Tensor, index: Tensor, size: int
    ) -> Tensor:
        """Sum per target of ``weight * x[source]``; reads each row once and writes no message."""
        starts = _pointers(index, size)[:-1]
        bags = torch.nn.functional.embedding_bag(
            source, x, starts, mode="sum", per_sample_weights=weight
        )
        assert isinstance(bags, Tensor)
        return bags


class TorchScatterBackend:
    """torch-scatter's segment kernels; deterministic on a GPU, because edges are sorted."""

    def __init__(self) -> None:
        try:
            from torch_scatter import segment_csr
        except ImportError as error:
            raise ImportError(
                'scatter="torch_scatter" needs torch-scatter, which is not installed: '
                "run `pip install --no-build-isolation torch-scatter`, or use the default "
                'scatter="torch"'
            ) from error
        self._segment = segment_csr

    def sum(self, src: Tensor, index: Tensor, size: int) -> Tensor:
        """Sum per target: `[edge, ...]` to `[size, ...]`."""
        return self._segment(src, _pointers(index, size), reduce="sum")

    def max(self, src: Tensor, index: Tensor, size: int) -> Tensor:
        """Maximum per target: `[edge]` to `[size]`."""
        highest = self._segment(src, _pointers(index, size), reduce="max")
        # The kernel starts from the lowest finite number instead of minus infinity.
        return highest.masked_fill(highest == torch.finfo(src.dtype).min, -torch.inf)

    def weighted_sum(
        self, x: Tensor, source: Tensor, weight: Tensor, index: Tensor, size: int
    ) -> Tensor:
        """Sum per target of ``weight * x[source]``: `[row, channel]` to `[size, channel]`."""
        return self.sum(weight[:, None] * x.index_select(0, source), index, size)


def _pointers(index: Tensor, size: int) -> Tensor:
    return torch.searchsorted(index, torch.arange(size + 1, device=index.device))


def backend(name: ScatterName) -> ScatterBackend:
    """The backend of that name.

    Raises:
        ValueError: Unknown name.
        ImportError: torch-scatter is asked for and not installed.
    """
    if name == "torch":
        return TorchBackend()
    if name == "torch_scatter":
        return TorchScatterBackend()
    raise ValueError(f'scatter is {name!r}: expected "torch" or "torch_scatter"')


class ScatterSum(Aggregation):
    """PyG aggregation that sums through a :class:`ScatterBackend`."""

    def __init__(self, scatter: ScatterBackend) -> None:
        super().__init__()
        self.scatter = scatter

    def forward(
        self,
        x: Tensor,
        index: Tensor | None = None,
        ptr: Tensor | None = None,
        dim_size: int | None = None,
        dim: int = -2,
    ) -> Tensor:
        """Sums ``x`` `[edge, channel]` per target; PyG always gives ``index`` and ``dim_size``."""
        assert index is not None
        assert dim_size is not None
        return self.scatter.sum(x, index, dim_size)


def softmax_per_target(
    log_weight: Tensor, index: Tensor, size: int, scatter: ScatterBackend
) -> Tensor:
    """Normalises weights given as logarithms, so that those of each target sum to one.

    Shifting a target's logarithms by a constant changes nothing: the weights neither vanish nor
    overflow.  A target whose weights are all zero shares equally.

    Args:
        log_weight: `[edge]`.
        index: Target of each edge, `[edge]`, ascending.
        size: Number of targets.
        scatter: The reductions.
    """
    highest = scatter.max(log_weight.detach(), index, size)[index]
    relative = torch.where(highest == -torch.inf, 0.0, log_weight - highest)
    share = relative.exp()
    return share / scatter.sum(share, index, size)[index]
