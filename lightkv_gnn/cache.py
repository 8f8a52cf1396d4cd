"""Cache layers that hold fewer entries than the tokens they stand for."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from lightkv_gnn.errors import UnsupportedInputError


class Expected(NamedTuple):
    """The entries of a layer's next update.

    Attributes:
        source: The token of the call that each entry holds, `[batch, entry]`; -1 for padding.
        length: Tokens of the call.
        tail: Trailing entries that are the call's last tokens, one by one.
        ragged: Whether ``source`` holds padding.
        merged: Tokens of each sample merged away in the call, `[batch, 1]`, or None.
    """

    source: Tensor
    length: int
    tail: int
    ragged: bool
    merged: Tensor | None


class CompressedMixin:
    """Makes a cache layer know which logical tokens its physical entries hold.

    Lengths are reported in logical tokens, as if nothing had been merged: masks, positions and
    ``generate`` then need no change.  Of the physical entries, the first ones have an explicit
    logical index; each later one has its own plus ``shift``.

    Attributes:
        logical: Logical index of the first physical entries, `[batch, entry]`; -1 for padding.
        shift: Logical minus physical length.
        merged: Tokens of each sample merged away, `[batch, 1]`; None unless positions close up.
        tail: Entries at the end of ``logical`` that follow each other one by one.
        ragged: Whether ``logical`` holds padding.
        open: Whether the next update comes from a forward pass that compression looks after.
    """

    logical: Tensor | None = None
    shift: int = 0
    merged: Tensor | None = None
    tail: int = 0
    ragged: bool = False
    open: bool = False
    keys: Tensor | None
    values: Tensor | None
    _pending: Expected | None = None

    @classmethod
    def of(cls, layer: Any) -> Any:
        """A compressed layer with everything that ``layer`` holds."""
        new = cls.__new__(cls)
        new.__dict__.update(layer.__dict__)
        return new

    @property
    def compressed(self) -> bool:
        """Whether it stands for more tokens than it holds, or will after the next update."""
        return self.logical is not None or self._pending is not None

    def entries(self) -> int:
        """Physical entries written so far."""
        return super().get_seq_length()  # type: ignore[misc]

    def get_seq_length(self) -> int:
        """Logical length."""
        physical = self.entries()
        return physical + self.shift if physical else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Logical length of keys and offset, for the masks that transformers makes."""
        if not self.compressed:
            return super().get_mask_sizes(query_length)  # type: ignore[misc]
        return self.get_seq_length() + query_length, 0

    def expect(self, entries: Expected) -> None:
        """Announces the entries of the next update, which will commit them."""
        self.admit(entries.length)
        self._pending = entries

    def admit(self, length: int) -> None:
        """Lets the next update, of a call of ``length`` tokens, through.

        Raises:
            UnsupportedInputError: A sliding window would have to forget tokens.
        """
        window = getattr(self, "sliding_window", None)
        if window is not None and self.get_seq_length() + length > window:
            raise UnsupportedInputError(
                f"the context grew past the sliding window of {window} tokens: compressed layers "
                "serve sliding-window models up to the window's length; use a shorter context"
            )
        self.open = True

    def index_of(self, entries: int, batch: int, device: torch.device) -> Tensor:
        """Logical index of the first ``entries`` entries, announced ones included."""
        if self._pending is not None:
            return self._with(self._pending).to(device)
        return self._committed(entries, batch, device)

    def _committed(self, entries: int, batch: int, device: torch.device) -> Tensor:
        """Logical index of the first ``entries`` entries, as far as they are committed."""
        if self.logical is None:
            known = torch.empty(batch, 0, dtype=torch.int64, device=device)
        else:
            known = self.logical.to(device)
        later = torch.arange(known.shape[1], entries, device=device) + self.shift
        return torch.cat([known, later.expand(batch, -1)], dim=1)

    def _with(self, new: Expected) -> Tensor:
        """Logical index of all entries once ``new`` is committed."""
        source = new.source
        before = self._committed(self.entries(), source.shape[0], source.device)
        return torch.cat([before, torch.where(source < 0, -1, source + self.get_seq_length())], 1)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Adds entries, `[batch, head, entry, channel]`, and commits what was announced of them.

        Raises:
            RuntimeError: The layer is compressed and nobody looks after the call.
            UnsupportedInputError: The context outgrew a sliding window.
        """
        if self.compressed and not self.open:
            raise RuntimeError(
                "this cache was compressed by lightkv_gnn and is used outside the context that "
                "compressed it: keep prefill and decoding inside one `with attach(...)`"
            )
        if self._pending is not None:
            new = self._pending
            self.logical = self._with(new)
            self._pending = None
            self.shift += new.length - new.source.shape[1]
            self.tail, self.ragged = new.tail, self.ragged or new.ragged
            if new.merged is not None:
                self.merged = new.merged if self.merged is None else self.merged + new.merged
        self.open = False
        return super().update(key_states, value_states, *args, **kwargs)  # type: ignore[misc]

    def crop(self, amount: int) -> None:
        """Drops trailing tokens: ``-n`` drops n, a positive number is the logical length to keep.

        Zero drops nothing, as ``generate`` with candidate tokens expects where all were right.

        Raises:
            ValueError: Merged tokens lie among those to drop.
        """
        drop = -amount if amount <= 0 else max(0, self.get_seq_length() - amount)
        if self.logical is None or drop == 0:
            super().crop(amount)  # type: ignore[misc]
            return
        explicit = self.logical.shape[1]
        free = self.entries() - explicit
        if drop > free + self.tail:
            raise ValueError(
                f"cannot drop the last {drop} tokens from the cache: only the last "
                f"{free + self.tail} were kept one by one, vision tokens before them are merged"
            )
        assert self.keys is not None
        assert self.values is not None
        self.keys, self.values = self.keys[..., :-drop, :], self.values[..., :-drop, :]
        if hasattr(self, "cumulative_length"):
            self.cumulative_length -= drop
        into = max(0, drop - free)
        self.logical, self.tail = self.logical[:, : explicit - into], self.tail - into

    def reset(self) -> None:
        """Empties the layer; it is an ordinary one again."""
        super().reset()  # type: ignore[misc]
        self.logical, self.shift, self.merged, self.tail = None, 0, None, 0
        self._pending, self.open, self.ragged = None, False, False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Picks samples, for beams."""
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._select(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every sample."""
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        self._select(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Picks samples."""
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._select(lambda x: x[indices.to(x.device)])

    def _select(self, rows: Any) -> None:
        self.logical = None if self.logical is None else rows(self.logical)
        self.merged = None if self.merged is None else rows(self.merged)


class CompressedLayer(CompressedMixin, DynamicLayer):
    """A growing layer."""


class CompressedSlidingLayer(CompressedMixin, DynamicSlidingWindowLayer):
    """A growing sliding-window layer, up to the length of its window."""


_COMPRESSED: dict[type, type[CompressedMixin]] = {
    DynamicLayer: CompressedLayer,
    DynamicSlidingWindowLayer: CompressedSlidingLayer,
}


def compressed_layer(cache: Cache, index: int) -> CompressedMixin:
    """The cache's layer as one that can be compressed, put in its place if it is not yet.

    Raises:
        UnsupportedInputError: The layer is of a kind that cannot hold fewer entries.
    """
    check_cache(cache, index)
    while len(cache.layers) <= index:
        cache.layers.append(DynamicLayer())
    layer = cache.layers[index]
    if isinstance(layer, CompressedMixin):
        return layer
    compressed = cache.layers[index] = _COMPRESSED[type(layer)].of(layer)
    return compressed


def check_cache(cache: Cache, index: int) -> None:
    """Raises UnsupportedInputError if the cache's layer cannot hold fewer entries."""
    if index < len(cache.layers):
        kind = type(cache.layers[index])
    else:
        kind = cache.layer_class_to_replicate or DynamicLayer
    if not issubclass(kind, CompressedMixin) and kind not in _COMPRESSED:
        raise UnsupportedInputError(
            f"{type(cache).__name__} has layers of type {kind.__name__}: compression works "
            "with dynamic caches; leave out cache_implementation, or pass DynamicCache()"
        )
