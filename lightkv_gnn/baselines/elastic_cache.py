"""Like ElasticCache: important entries of the cache are anchors that take the others in."""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor

from lightkv_gnn.attention import capture
from lightkv_gnn.baselines.cache_method import CacheMethod, Shrinker
from lightkv_gnn.stage.guidance import at_once, attention_logits


class ElasticShrinker(Shrinker):
    """Keeps entries by the attention that they got, and averages the others into them."""

    def install(self, undo: ExitStack) -> None:
        """Listens to the attention of all layers too."""
        super().install(undo)
        self._sums: dict[int, Tensor] = {}
        backend = self.adapter.decoder.config._attn_implementation
        capture.install(backend)
        undo.callback(capture.uninstall, backend)
        for number in range(self.adapter.layers):
            module = self.adapter.attention(number)
            capture.start(module, partial(self._record, number))
            undo.callback(capture.stop, module)

    def _record(
        self, number: int, query: Tensor, key: Tensor, scaling: float, softcap: float | None
    ) -> None:
        if self.request is not None:
            started = time.perf_counter()
            real = self.request.real.to(query.device)
            with torch.no_grad():
                own = key[:, :, : query.shape[2]]  # a cache may have room for more
                self._sums[number] = received(query, own, real, scaling, softcap)
            self.seconds += time.perf_counter() - started

    def importance(self, number: int, real: Tensor) -> Tensor:
        """Sums of the attention that entries got, `[batch, entry]`."""
        if number not in self._sums:
            raise RuntimeError(
                f"the attention of decoder layer {number} did not pass through transformers' "
                "attention interface, so there is nothing to rank its entries by"
            )
        return self._sums.pop(number)

    def shortened(self, states: Tensor, kept: Tensor, real: Tensor) -> Tensor:
        """Means of each anchor and the entries that are nearest to it; see the parent."""
        return averaged(states, kept, real)


def received(
    query: Tensor, key: Tensor, real: Tensor, scaling: float, softcap: float | None = None
) -> Tensor:
    """Attention that each key gets from all queries that may see it, averaged over heads.

    Causal attention among the real tokens of a call is assumed.  The square matrix is never held
    as a whole.

    Args:
        query: `[batch, head, token, channel]`.
        key: `[batch, key-value head, token, channel]`.
        real: Tokens that are not padding, `[batch, token]` bool.
        scaling: Factor of the logits.
        softcap: Bound of the logits; see :class:`lightkv_gnn.stage.guidance.GuidanceBlock`.

    Returns:
        `[batch, token]`.
    """
    batch, heads, tokens, _ = query.shape
    place = torch.arange(tokens, device=query.device)
    total = torch.zeros(batch, tokens, device=query.device)
    step = at_once(batch * heads * tokens, key.device)
    for start in range(0, tokens, step):
        rows = slice(start, start + step)
        logits = attention_logits(query[:, :, rows], key, scaling, softcap)
        seen = (place[None, :] <= place[rows, None]) & real[:, None, :]
        share = logits.masked_fill_(~seen[:, None], torch.finfo(logits.dtype).min / 4).softmax(
            dim=3
        )
        total += torch.einsum("bhqk,bq->bk", share, real[:, rows].to(share.dtype)) / heads
    return total


def averaged(states: Tensor, anchors: Tensor, real: Tensor) -> Tensor:
    """Every anchor with the mean of itself and of the entries that it is the nearest anchor of.

    Near is what has a near position; between two, the earlier.

    Args:
        states: `[batch, head, entry, channel]`.
        anchors: Ascending, `[batch, anchor]`; -1 for padding.
        real: Entries that are not padding, `[batch, entry]` bool.

    Returns:
        `[batch, head, anchor, channel]`.
    """
    batch, heads, entries, channels = states.shape
    place = torch.arange(entries, device=states.device)
    # Halfway to the next anchor is still this one's.
    middle = (anchors[:, 1:] + anchors[:, :-1]).masked_fill(anchors[:, :-1] < 0, -1)
    nearest = torch.searchsorted(middle.contiguous(), 2 * place.expand(batch, -1).contiguous())
    wide = states.to(torch.promote_types(states.dtype, torch.float32))
    weight = real.to(wide.dtype)[:, None, :, None]
    index = nearest[:, None, :, None].expand(batch, heads, entries, channels)
    total = wide.new_zeros(batch, heads, anchors.shape[1], channels)
    total = total.scatter_add(2, index, wide * weight)
    number = wide.new_zeros(batch, anchors.shape[1]).scatter_add(1, nearest, weight[:, 0, :, 0])
    return (total / number.clamp(min=1)[:, None, :, None]).to(states.dtype)


ELASTIC_CACHE_LIKE = CacheMethod(
    "elastic_cache_like",
    "after ElasticCache (Liu et al. 2024): entries ranked by the attention they got in the "
    "prefill, averaged over heads; the others are averaged into the nearest one in the "
    "sequence; nothing more leaves while decoding",
    ElasticShrinker,
)
