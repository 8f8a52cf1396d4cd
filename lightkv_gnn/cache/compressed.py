"""What all cache layers that hold fewer entries than the tokens they stand for have in common."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

OUTSIDE = (
    "this cache was compressed by lightkv_gnn and is used outside the context that compressed it: "
    "keep prefill and decoding inside one `with attach(...)`"
)
"""The error of a layer that is used where nobody looks after the call."""


class Expected(NamedTuple):
    """The entries of a layer's next update.

    Attributes:
        source: The token of the call that each entry holds, `[batch, entry]`; -1 for padding.
        past: Tokens before the call.
        length: Tokens of the call.
        tail: Trailing entries that are the call's last tokens, one by one.
        ragged: Whether ``source`` holds padding.
        merged: To be added to the layer's, or None.
        log_mass: Logarithm of how many tokens each entry stands for, `[batch, entry]`, where
            attention is to hear it; or None.
    """

    source: Tensor
    past: int
    length: int
    tail: int
    ragged: bool
    merged: Tensor | None
    log_mass: Tensor | None

    @property
    def removed(self) -> int:
        """Tokens of the call without an entry of their own."""
        return self.length - self.source.shape[1]


class CompressedMixin:
    """Makes a cache layer know which logical tokens its physical entries hold.

    Lengths are reported in logical tokens, as if nothing had been merged: masks, positions and
    ``generate`` then need no change.  Of the physical entries, the first ones have an explicit
    logical index; each later one has its own plus ``shift``.  Both stay as they are after a
    prefill, so that a decoding step changes nothing here and reads nothing back from the device.

    Attributes:
        logical: Logical index of the first physical entries, `[batch, entry]`; -1 for padding.
        shift: Logical minus physical length.
        merged: Tokens of each sample merged away, `[batch, 1]`; None unless positions close up.
            Where they count entries `[batch, 2]`: tokens without one, padding too, and those of
            them that were merged away.
        log_mass: Logarithm of how many tokens each of the first entries stands for, like
            ``logical``, in float32; None where attention does not hear it.  Later ones have 0.
        tail: Entries at the end of ``logical`` that follow each other one by one.
        ragged: Whether ``logical`` holds padding.
        guard: Whether another layer of its cache was compressed.  The first layer is told, and
            refuses for all of them before anything is written.
        open: Whether the next update comes from a forward pass that compression looks after.
    """

    logical: Tensor | None = None
    shift: int = 0
    merged: Tensor | None = None
    log_mass: Tensor | None = None
    tail: int = 0
    ragged: bool = False
    guard: bool = False
    open: bool = False
    _pending: Expected | None = None
    _padding: Tensor | None = None

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

    @property
    def announced(self) -> bool:
        """Whether entries were announced that no update has brought yet."""
        return self._pending is not None

    def entries(self) -> int:
        """Physical entries written so far, forgotten ones included."""
        return super().get_seq_length()  # type: ignore[misc]

    def get_seq_length(self) -> int:
        """Logical length."""
        physical = self.entries()
        return physical + self.shift if physical else 0

    def get_max_length(self) -> int:
        """Logical tokens it has room for; -1 without bound."""
        length: int = super().get_max_length()  # type: ignore[misc]
        return length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Logical length of keys and offset, for the masks that transformers makes."""
        if not self.compressed:
            return super().get_mask_sizes(query_length)  # type: ignore[misc]
        return self._logical_mask_sizes(query_length)

    def _logical_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def announce(self, entries: Expected) -> None:
        """Announces the entries of the next update, which will commit them."""
        self._pending = entries
        self.open = True

    def allow_update(self, padding: Tensor | None = None) -> None:
        """Lets the next update through.

        Args:
            padding: To be added to ``merged``, where positions count entries; or None.
        """
        self.open, self._padding = True, padding

    def cancel(self) -> None:
        """The call that announced entries, or was let through, has failed."""
        self._pending, self._padding, self.open = None, None, False

    def columns(self, queries: int, batch: int, device: torch.device) -> tuple[Tensor, bool]:
        """Where the keys of the next update's attention are in the masks of transformers.

        Args:
            queries: Entries of the update.
            batch: Samples.
            device: Of the result.

        Returns:
            `[batch, key]`, -1 for keys that nobody may see; and whether there may be such ones.
        """
        first, last = self.span(queries)
        width, offset = self.get_mask_sizes(
            queries if self._pending is None else self._pending.length
        )
        logical, shift, ragged = self._state()
        later = torch.arange(max(first, logical.shape[1]), last, device=device) + shift
        known = logical[:, first:].to(device).expand(batch, -1)
        index = torch.cat([known, later.expand(batch, -1)], dim=1)
        if offset == 0 and last + shift <= width:
            return index, ragged
        index = index - offset
        return torch.where((index < 0) | (index >= width), -1, index), True

    def log_masses(self, queries: int, batch: int, device: torch.device) -> Tensor | None:
        """What attention adds to the logits of the keys that :meth:`columns` lists.

        Args:
            queries: Entries of the update.
            batch: Samples.
            device: Of the result.

        Returns:
            `[batch, key]` in float32, or None if it adds nothing.
        """
        known = self._log_mass()
        if known is None:
            return None
        first, last = self.span(queries)
        later = last - max(first, known.shape[1])
        return pad(known[:, first:].to(device).expand(batch, -1), (0, later))

    def _log_mass(self) -> Tensor | None:
        """``log_mass`` once what was announced is committed."""
        known, new = self.log_mass, self._pending
        if new is None or (known is None and new.log_mass is None):
            return known
        added = torch.zeros_like(new.source).float() if new.log_mass is None else new.log_mass
        before = new.past - self.shift  # entries
        if before == 0:
            return added
        if known is None:
            return pad(added, (before, 0))
        known = pad(known, (0, before - known.shape[1])).to(added.device)
        return torch.cat([known.expand(added.shape[0], -1), added], dim=1)

    def span(self, queries: int) -> tuple[int, int]:
        """First physical entry that the next update returns, and the one after the last."""
        return 0, self.entries() + queries

    def _state(self) -> tuple[Tensor, int, bool]:
        """``logical``, ``shift`` and ``ragged`` once what was announced is committed."""
        known = (
            torch.empty(1, 0, dtype=torch.int64, device="cpu")
            if self.logical is None
            else self.logical
        )
        new = self._pending
        if new is None:
            return known, self.shift, self.ragged
        if new.past == 0:
            return new.source, new.removed, new.ragged
        batch, device = new.source.shape[0], new.source.device
        between = torch.arange(known.shape[1], new.past - self.shift, device=device) + self.shift
        added = torch.where(new.source < 0, -1, new.source + new.past)
        parts = known.to(device).expand(batch, -1), between.expand(batch, -1), added
        return torch.cat(parts, dim=1), self.shift + new.removed, self.ragged or new.ragged

    def _commit(self, new: Expected) -> None:
        """Takes over what was announced."""
        self.log_mass = self._log_mass()
        self.logical, self.shift, self.ragged = self._state()
        self.tail, self._pending = new.tail, None
        if new.merged is not None:
            self.merged = new.merged if self.merged is None else self.merged + new.merged

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Adds entries, `[batch, head, entry, channel]`, and commits what was announced of them.

        Raises:
            RuntimeError: The cache is compressed and nobody looks after the call.
        """
        if (self.compressed or self.guard) and not self.open:
            raise RuntimeError(OUTSIDE)
        if self._pending is not None:
            self._commit(self._pending)
        if self._padding is not None and self.merged is not None:
            self.merged, self._padding = self.merged + self._padding, None
        self.open = False
        return super().update(key_states, value_states, *args, **kwargs)  # type: ignore[misc]

    def reset(self) -> None:
        """Empties the layer; it is an ordinary one again."""
        super().reset()  # type: ignore[misc]
        self.logical, self.shift, self.merged, self.tail = None, 0, None, 0
        self.log_mass = None
        self._pending, self._padding = None, None
        self.open, self.ragged, self.guard = False, False, False
