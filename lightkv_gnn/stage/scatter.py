"""What a stage reduces, by torch, by torch-scatter or by Triton kernels."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch_geometric.nn.aggr import Aggregation

from lightkv_gnn.choices import SCATTER, ScatterName
from lightkv_gnn.stage.guidance import text_shares
from lightkv_graphs import greedy_ranks, nearest_destinations
from lightkv_graphs.greedy import Greedy


class ScatterBackend(Protocol):
    """Sums and maxima over edges that share a target, and the other costly parts of a stage.

    ``index`` holds the target of each edge, `[edge]`, ascending; every one of the ``size`` targets
    has at least one edge.
    """

    def check_device(self, device: torch.device) -> None:
        """Raises ValueError if it cannot work there."""

    def sum(self, src: Tensor, index: Tensor, size: int) -> Tensor:
        """Sum per target: `[edge, ...]` to `[size, ...]`."""

    def max(self, src: Tensor, index: Tensor, size: int) -> Tensor:
        """Maximum per target: `[edge]` to `[size]`."""

    def weighted_sum(
        self, x: Tensor, source: Tensor, weight: Tensor, index: Tensor, size: int
    ) -> Tensor:
        """Sum per target of ``weight * x[source]``: `[row, channel]` to `[size, channel]`.

        Summed in float32 at least, in the dtype of ``x`` then.  A weight of zero adds nothing, of a
        NaN neither.
        """

    def nearest(self, x: Tensor, sources: Tensor, destinations: Tensor) -> tuple[Tensor, Tensor]:
        """See :func:`lightkv_graphs.nearest_destinations`."""

    @property
    def greedy(self) -> Greedy:
        """See :func:`lightkv_graphs.greedy_ranks`."""

    def text_shares(
        self,
        text: Tensor,
        vision: Tensor,
        scaling: float,
        softcap: float | None = None,
        vision_mask: Tensor | None = None,
    ) -> Tensor:
        """See :func:`lightkv_gnn.stage.guidance.text_shares`."""


class TorchBackend:
    """Plain torch: ``index_add``, ``scatter_reduce`` and ``embedding_bag``."""

    def check_device(self, device: torch.device) -> None:
        """Works everywhere."""

    def sum(self, src: Tensor, index: Tensor, size: int) -> Tensor:
        """Sum per target: `[edge, ...]` to `[size, ...]`."""
        return src.new_zeros(size, *src.shape[1:]).index_add(0, index, src)

    def max(self, src: Tensor, index: Tensor, size: int) -> Tensor:
        """Maximum per target: `[edge]` to `[size]`."""
        return src.new_full((size,), -torch.inf).scatter_reduce(0, index, src, "amax")

    def weighted_sum(
        self, x: Tensor, source: Tensor, weight: Tensor, index: Tensor, size: int
    ) -> Tensor:
        """Sum per target of ``weight * x[source]``; reads each row once and writes no message.

        What weighs nothing is read from another row of its target.
        """
        speaks = torch.where(weight > 0, source, 0)
        other = speaks.new_zeros(size).scatter_reduce(0, index, speaks, "amax")
        wide = _wide(x)
        bags = torch.nn.functional.embedding_bag(
            torch.where(weight == 0, other[index], source),
            wide,
            _pointers(index, size)[:-1],
            mode="sum",
            per_sample_weights=weight.to(wide.dtype),
        )
        assert isinstance(bags, Tensor)
        return bags.to(x.dtype)

    def nearest(self, x: Tensor, sources: Tensor, destinations: Tensor) -> tuple[Tensor, Tensor]:
        """One product for each padded window."""
        return nearest_destinations(x, sources, destinations)

    @property
    def greedy(self) -> Greedy:
        """All windows at once, one choice after the other."""
        return greedy_ranks

    def text_shares(
        self,
        text: Tensor,
        vision: Tensor,
        scaling: float,
        softcap: float | None = None,
        vision_mask: Tensor | None = None,
    ) -> Tensor:
        """Products in pieces that fit the memory."""
        return text_shares(text, vision, scaling, softcap, vision_mask)


class TorchScatterBackend(TorchBackend):
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
        spoken = weight[:, None] * _wide(x).index_select(0, source)
        spoken = spoken.masked_fill((weight == 0)[:, None], 0)
        return self.sum(spoken, index, size).to(x.dtype)


class TritonBackend(TorchBackend):
    """Triton kernels where most of the time goes, plain torch for the rest and for gradients."""

    def __init__(self) -> None:
        try:
            from lightkv_gnn.stage.kernels import (
                check_device,
                greedy_ranks,
                nearest_destinations,
                text_shares,
                weighted_sum,
            )
        except ImportError as error:
            raise ImportError(
                'scatter="triton" needs Triton, which is not installed: run `pip install triton`, '
                'or use the default scatter="torch"'
            ) from error
        self._check, self._shares, self._sum = check_device, text_shares, weighted_sum
        self._nearest, self._greedy = nearest_destinations, greedy_ranks

    def check_device(self, device: torch.device) -> None:
        """Works on a GPU, and elsewhere in Triton's interpreter."""
        self._check(device)

    def weighted_sum(
        self, x: Tensor, source: Tensor, weight: Tensor, index: Tensor, size: int
    ) -> Tensor:
        """Sum per target of ``weight * x[source]``; the same input gives the same bits."""
        if _wants_gradient(x, weight):
            return super().weighted_sum(x, source, weight, index, size)
        weight = weight.to(_wide(x[:0]).dtype)
        return self._sum(x, source, weight, _pointers(index, size))

    def nearest(self, x: Tensor, sources: Tensor, destinations: Tensor) -> tuple[Tensor, Tensor]:
        """Norms, products and maximum in one pass."""
        return self._nearest(x, sources, destinations)

    @property
    def greedy(self) -> Greedy:
        """All choices in one pass, each window on its own."""
        return self._greedy

    def text_shares(
        self,
        text: Tensor,
        vision: Tensor,
        scaling: float,
        softcap: float | None = None,
        vision_mask: Tensor | None = None,
    ) -> Tensor:
        """Products and softmax in two passes, with no logits in memory."""
        if _wants_gradient(text, vision):
            return super().text_shares(text, vision, scaling, softcap, vision_mask)
        return self._shares(text, vision, scaling, softcap, vision_mask)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _wants_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _pointers(index: Tensor, size: int) -> Tensor:
    return torch.searchsorted(index, torch.arange(size + 1, device=index.device))


def backend(name: ScatterName) -> ScatterBackend:
    """The backend of that name.

    Raises:
        ValueError: Unknown name.
        ImportError: torch-scatter or Triton is asked for and not installed.
    """
    if name == "torch":
        return TorchBackend()
    if name == "torch_scatter":
        return TorchScatterBackend()
    if name == "triton":
        return TritonBackend()
    raise ValueError(f"scatter is {name!r}: expected one of {SCATTER}")


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
