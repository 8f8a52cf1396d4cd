"""Cache layers that hold fewer entries than the tokens they stand for, kind by kind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import cache_utils

from lightkv_gnn import seams
from lightkv_gnn.cache.compressed import CompressedMixin
from lightkv_gnn.cache.layerwise import LayerwiseMixin, Siblings
from lightkv_gnn.cache.sizes import holds_state
from lightkv_gnn.cache.states import StateLayer
from lightkv_gnn.errors import UnsupportedInputError

try:
    from transformers.cache_utils import (
        Cache,
        DynamicLayer,
        DynamicSlidingWindowLayer,
        HQQQuantizedLayer,
        LinearAttentionLayer,
        QuantoQuantizedLayer,
        StaticLayer,
        StaticSlidingWindowLayer,
    )
except ImportError as error:
    raise seams.with_versions(error) from error


class _GrowingMixin(LayerwiseMixin):
    """A layer whose keys and values are tensors that grow."""

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every sample."""
        for layer in self._concerned():
            layer.check_rows("repeat samples")
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        self._select(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Picks samples."""
        for layer in self._concerned():
            layer.check_rows("pick samples")
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._select(lambda x: x[indices.to(x.device)])


class CompressedLayer(_GrowingMixin, DynamicLayer):
    """A growing layer."""

    def rewrite(self, keys: Tensor, values: Tensor, logical: Tensor) -> None:
        """Puts other entries in the place of all that it holds; its logical length stays.

        Each counts once from then on.

        Args:
            keys: `[batch, head, entry, channel]`.
            values: The same.
            logical: Logical index of each entry, ascending, `[batch, entry]`; -1 for padding,
                which comes first.
        """
        length = self.get_seq_length()
        self.keys, self.values = keys, values
        self.logical, self.shift, self.log_mass = logical, length - logical.shape[1], None
        self.ragged = bool((logical < 0).any())
        last = torch.arange(self.shift, length, device=logical.device)
        in_line = (logical == last).all(0).flip(0).long().cumprod(0)
        self.tail, self.turns = int(in_line.sum()), ()


class CompressedSlidingLayer(_GrowingMixin, DynamicSlidingWindowLayer):
    """A growing layer that forgets.

    The window is one of logical tokens.  The layer holds a window's number of physical entries,
    which reach further back wherever tokens were merged; the mask leaves out what is too far.
    """

    def _logical_mask_sizes(self, query_length: int) -> tuple[int, int]:
        seen = self.get_seq_length()
        offset = max(seen - self.sliding_window + 1, 0)
        return seen + query_length - offset, offset

    def check_forgotten(self) -> None:
        """Raises RuntimeError past the window, unless what is forgotten was recorded."""
        if self.get_seq_length() >= self.sliding_window and not getattr(self, "record_past", False):
            raise RuntimeError(
                f"the cache holds {self.get_seq_length()} tokens, more than a sliding window of "
                f"{self.sliding_window} remembers, so none can be dropped: call "
                "cache.activate_past_recording() before the prefill"
            )

    def span(self, queries: int) -> tuple[int, int]:
        """Entries of a window's length, and those of the update."""
        seen = self.entries()
        held = 0 if self.keys is None else self.keys.shape[-2]
        return seen - min(held, self.sliding_window - 1), seen + queries


class CompressedStaticLayer(LayerwiseMixin, StaticLayer):
    """A layer of fixed size.

    An empty one is allocated anew when it is compressed, with ``max_cache_len`` slots less the
    tokens merged away: that memory is saved.  One that held tokens before keeps all its slots.
    Slots not written yet stand for tokens to come, which the masks of transformers hide.

    Attributes:
        spared: Slots that are not allocated.
    """

    spared: int = 0

    def get_seq_length(self) -> Any:
        """Logical length; a tensor on the layer's device once there is anything."""
        return self.cumulative_length + self.shift if self.is_initialized else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Logical length of keys and offset, for the masks that transformers makes."""
        return self.get_max_length(), 0

    def get_max_length(self) -> int:
        """Logical tokens it has room for."""
        return self.max_cache_len + self.spared

    def span(self, queries: int) -> tuple[int, int]:
        """All slots, written or not."""
        new = self._pending
        if new is not None and new.past == 0:
            return 0, self.get_max_length() - new.removed
        return 0, self.max_cache_len

    def _commit(self, new: Any) -> None:
        super()._commit(new)
        if new.past == 0:
            self._allocate_without(new.removed)

    def _allocate_without(self, spared: int) -> None:
        """Lets the next update allocate all slots but ``spared``."""
        self.max_cache_len, self.spared = self.get_max_length() - spared, spared
        self.keys = self.values = None
        self.is_initialized = False

    def reset(self) -> None:
        """Empties the layer; it is an ordinary one again, allocated with all its slots."""
        super().reset()
        if self.spared:
            self._allocate_without(0)


class CompressedStaticSlidingLayer(LayerwiseMixin, StaticSlidingWindowLayer):
    """A layer of fixed size that forgets; it keeps its slots, which saves operations only.

    See :class:`CompressedSlidingLayer` for what the window means.
    """

    def _logical_mask_sizes(self, query_length: int) -> tuple[int, int]:
        seen = self.get_seq_length()
        offset = max(seen - self.max_cache_len + 1, 0)
        return max(seen + query_length - offset, self.max_cache_len), offset

    def check_forgotten(self) -> None:
        """Raises RuntimeError past the window."""
        if self.entries() > self.max_cache_len:
            raise RuntimeError(
                f"the cache's sliding window of {self.max_cache_len} entries has forgotten some of "
                f"{self.entries()}, so none can be dropped: use a dynamic cache"
            )

    def span(self, queries: int) -> tuple[int, int]:
        """All slots, or a window's length and the update where that is longer."""
        seen, slots = self.entries(), self.max_cache_len
        if seen + queries <= slots:
            return 0, slots
        return max(seen - slots + 1, 0) if seen >= slots else 0, seen + queries


class _QuantizedMixin(LayerwiseMixin):
    """A layer that holds most of its entries in a form of its own, packed for all samples.

    What transformers would do to a part of them only is refused for a compressed cache.
    """

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Refused for a compressed cache."""
        self.check_rows("repeat samples")
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Refused for a compressed cache."""
        self.check_rows("pick samples")
        super().batch_select_indices(indices)  # type: ignore[misc]

    def check_forgotten(self) -> None:
        """Raises UnsupportedInputError."""
        self.check_rows("drop tokens")

    def check_rows(self, what: str) -> None:
        """Raises UnsupportedInputError for a compressed cache."""
        if self.compressed or self.guard:
            raise UnsupportedInputError(
                f"a quantized cache cannot {what}: expected a dynamic cache, such as "
                "DynamicCache(), for prompt lookup, assisted decoding and copies of samples"
            )

    def check_reorder(self) -> None:
        """Raises UnsupportedInputError where transformers would pick from only a part."""
        if not hasattr(cache_utils, "BaseQuantizedLayer"):
            self.check_rows("reorder beams in this version of transformers")


class CompressedQuantoLayer(_QuantizedMixin, QuantoQuantizedLayer):
    """A growing layer of few bits, by optimum-quanto."""


class CompressedHQQLayer(_QuantizedMixin, HQQQuantizedLayer):
    """A growing layer of few bits, by hqq."""


_COMPRESSED: dict[type, type[LayerwiseMixin]] = {
    DynamicLayer: CompressedLayer,
    DynamicSlidingWindowLayer: CompressedSlidingLayer,
    StaticLayer: CompressedStaticLayer,
    StaticSlidingWindowLayer: CompressedStaticSlidingLayer,
    QuantoQuantizedLayer: CompressedQuantoLayer,
    HQQQuantizedLayer: CompressedHQQLayer,
}

if hasattr(cache_utils, "Fp8QuantizedLayer"):  # transformers 5.17 does not have it

    class CompressedFp8Layer(_QuantizedMixin, cache_utils.Fp8QuantizedLayer):
        """A growing layer of 8-bit floating-point numbers."""

    _COMPRESSED[cache_utils.Fp8QuantizedLayer] = CompressedFp8Layer


def compressed_layer(cache: Cache, index: int) -> LayerwiseMixin:
    """The cache's layer as one that can be compressed, put in its place if it is not yet.

    So are the layers before it, which must know whether it can do what the cache is asked for.  The
    first one is told to refuse calls that nobody looks after.

    Args:
        cache: Checked by :func:`check_cache`.
        index: Of the layer.
    """
    while len(cache.layers) <= index:
        cache.layers.append((cache.layer_class_to_replicate or DynamicLayer)())
    layers = [_compressible(cache, n) for n in range(index + 1) if not holds_state(cache.layers[n])]
    first = layers[0]
    first.guard = True
    siblings = first.siblings or Siblings()
    for layer in layers:
        if layer.siblings is not siblings:
            siblings.join(layer)
    for number, state in enumerate(cache.layers):
        if type(state) is LinearAttentionLayer:
            cache.layers[number] = state = StateLayer.of(state)
        if isinstance(state, StateLayer) and state.siblings is not siblings:
            siblings.join(state)
    return layers[-1]


def _compressible(cache: Cache, index: int) -> LayerwiseMixin:
    layer = cache.layers[index]
    if isinstance(layer, LayerwiseMixin):
        return layer
    compressed = cache.layers[index] = _COMPRESSED[type(layer)].of(layer)
    return compressed


def cancel(cache: Cache | None) -> None:
    """Takes back what a failed call announced to the cache's layers."""
    for layer in [] if cache is None else cache.layers:
        if isinstance(layer, CompressedMixin):
            layer.cancel()


def check_cache(cache: Cache, index: int) -> None:
    """Raises UnsupportedInputError if the cache's layer cannot hold fewer entries."""
    name = type(cache).__name__
    if getattr(cache, "offloading", False):
        raise UnsupportedInputError(
            f"{name} moves its layers to the CPU and back, which is not supported: expected a "
            "cache without offloading, such as DynamicCache() or cache_implementation='static'"
        )
    if index < len(cache.layers) and isinstance(cache.layers[index], LinearAttentionLayer):
        if not holds_state(cache.layers[index]):
            raise UnsupportedInputError(
                f"{name} has layers of type {type(cache.layers[index]).__name__}, which hold a "
                "state and entries too: compression works with either"
            )
        return
    if index < len(cache.layers):
        kind = type(cache.layers[index])
    else:
        kind = cache.layer_class_to_replicate or DynamicLayer
    if not issubclass(kind, CompressedMixin) and kind not in _COMPRESSED:
        raise UnsupportedInputError(
            f"{name} has layers of type {kind.__name__}: compression works with dynamic caches, "
            "static and quantized ones; leave out cache_implementation, or pass DynamicCache()"
        )


def mask_widths(cache: Cache | None, length: int) -> set[int]:
    """Keys in the masks that transformers makes for a call of ``length`` tokens."""
    if cache is None:
        return set()
    numbers = [n for n, layer in enumerate(cache.layers) if not holds_state(layer)]
    return {cache.get_mask_sizes(length, number)[0] for number in numbers}
