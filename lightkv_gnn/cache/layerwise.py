"""What a cache is asked for layer by layer: every layer does it, or none has changed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from lightkv_gnn.cache.compressed import CompressedMixin, Expected
from lightkv_gnn.errors import UnsupportedInputError

if TYPE_CHECKING:
    from lightkv_gnn.cache.states import StateLayer


class Siblings:
    """The layers of one cache, none of which it keeps alive.

    A copy, or what pickle makes of it, is empty: copies of the layers join it as they are made.

    Attributes:
        open: Whether a forward pass that compression looks after may go on from the states.
    """

    open: bool = False

    def __init__(self) -> None:
        self._known: list[weakref.ref[LayerwiseMixin | StateLayer]] = []

    def __iter__(self) -> Iterator[LayerwiseMixin]:
        """Those that hold entries."""
        return (layer for layer in self._alive() if isinstance(layer, LayerwiseMixin))

    def states(self) -> Iterator[StateLayer]:
        """Those that hold a state."""
        return (layer for layer in self._alive() if not isinstance(layer, LayerwiseMixin))

    def _alive(self) -> Iterator[LayerwiseMixin | StateLayer]:
        return (layer for known in self._known if (layer := known()) is not None)

    def __reduce__(self) -> tuple[type[Siblings], tuple[()]]:
        return Siblings, ()

    def join(self, layer: LayerwiseMixin | StateLayer) -> None:
        """Takes a layer in."""
        layer.siblings = self
        self._known = [*(known for known in self._known if known()), weakref.ref(layer)]


class Before(NamedTuple):
    """A layer's bookkeeping before a turn with pictures, which taking back the turn restores.

    Attributes:
        past: Logical tokens.
        explicit: Entries with an explicit logical index; None if the layer was not compressed.
        shift: Logical minus physical length.
        tail: As the layer's.
        ragged: As the layer's.
        merged: As the layer's.
    """

    past: int
    explicit: int | None
    shift: int
    tail: int
    ragged: bool
    merged: Tensor | None

    @property
    def floor(self) -> int:
        """The fewest logical tokens that can be left of it."""
        return 0 if self.explicit is None else self.explicit + self.shift - self.tail


class LayerwiseMixin(CompressedMixin):
    """A layer whose cache is cropped, or has its samples picked, as a whole.

    transformers asks one layer after the other.  The first one therefore asks all of them whether
    they can, before it does anything.

    Attributes:
        siblings: The layers of its cache; None before the cache is compressed.
        turns: What each turn with pictures found, where there were tokens before it.
    """

    siblings: Siblings | None = None
    turns: tuple[Before, ...] = ()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.siblings is not None:
            self.siblings.join(self)

    def crop(self, amount: int) -> None:
        """Drops trailing tokens: ``-n`` drops n, a positive number is the logical length to keep.

        Tokens that were kept one by one can be dropped, and turns with pictures as a whole.  Zero
        drops nothing, as ``generate`` with candidate tokens expects where all were right.

        Raises:
            ValueError: Merged tokens lie among those to drop, but not the whole turn.
            RuntimeError: A sliding window has forgotten what would have to come back.
            UnsupportedInputError: The installed transformers cannot crop such a layer.
        """
        if not hasattr(super(), "crop"):
            raise UnsupportedInputError(
                f"{type(self).__name__}: the installed transformers drops no tokens from a cache "
                "of fixed size: expected a newer one, or a dynamic cache"
            )
        layers = list(self._concerned())
        for layer in layers:
            layer.check_forgotten()
        for state in self.siblings.states() if self.siblings is not None and self.guard else ():
            state.check_crop()
        if all(layer.logical is None for layer in layers):
            super().crop(amount)  # type: ignore[misc]
            return
        seen = int(self.get_seq_length())
        left = seen + amount if amount <= 0 else min(amount, seen)
        self._check_left(layers, seen, left)
        if self.logical is None:
            super().crop(amount)  # type: ignore[misc]
        else:
            self._crop_to(left)

    @staticmethod
    def _check_left(layers: list[LayerwiseMixin], seen: int, left: int) -> None:
        """Raises ValueError if a layer that holds ``seen`` tokens cannot be cut to ``left``."""
        if all(layer.state_at(left).floor <= left for layer in layers):
            return
        free = seen - max(layer.state_at(seen).floor for layer in layers)
        turns = {seen - turn.past for layer in layers for turn in layer.turns}
        whole = ", ".join(map(str, sorted(turns)))
        raise ValueError(
            f"cannot drop the last {seen - left} tokens from the cache: only the last {free} were "
            "kept one by one, vision tokens before them are merged"
            + (f"; later turns can be dropped as a whole, the last {whole} tokens" if whole else "")
        )

    def state_at(self, left: int) -> Before:
        """The bookkeeping that counts for the first ``left`` tokens."""
        for turn in self.turns:
            if left <= turn.past:
                return turn
        explicit = None if self.logical is None else self.logical.shape[1]
        return Before(left, explicit, self.shift, self.tail, self.ragged, self.merged)

    def _crop_to(self, left: int) -> None:
        assert self.logical is not None
        state = self.state_at(left)
        entries = left - state.shift
        super().crop(entries - int(self.entries()))  # type: ignore[misc]
        self.turns = tuple(turn for turn in self.turns if turn.past < left)
        self.shift, self.ragged, self.merged = state.shift, state.ragged, state.merged
        if state.explicit is None:
            self.logical, self.log_mass, self.tail = None, None, 0
            return
        known = min(state.explicit, entries)
        self.logical, self.tail = self.logical[:, :known], state.tail - (state.explicit - known)
        self.log_mass = None if self.log_mass is None else self.log_mass[:, :known]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Picks samples, for beams."""
        for layer in self._concerned():
            layer.check_reorder()
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._select(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def reset(self) -> None:
        """Empties the layer; it is an ordinary one again."""
        super().reset()
        self.turns = ()

    def check_forgotten(self) -> None:
        """Raises RuntimeError if entries that cropping needs are gone."""

    def check_rows(self, what: str) -> None:
        """Raises UnsupportedInputError if samples cannot be copied or picked."""

    def check_reorder(self) -> None:
        """Raises UnsupportedInputError if samples cannot be reordered."""

    def _concerned(self) -> Iterator[LayerwiseMixin]:
        """Layers that must be able to do what this one is asked for: the first answers for all."""
        return iter((self,) if self.siblings is None or not self.guard else self.siblings)

    def _commit(self, new: Expected) -> None:
        if new.past:
            self.turns = (*self.turns, self.state_at(new.past)._replace(past=new.past))
        super()._commit(new)

    def _select(self, rows: Callable[[Tensor], Tensor]) -> None:
        """Picks samples of the bookkeeping."""
        self.logical = None if self.logical is None else rows(self.logical)
        self.merged = None if self.merged is None else rows(self.merged)
        self.log_mass = None if self.log_mass is None else rows(self.log_mass)
        self.turns = tuple(
            turn if turn.merged is None else turn._replace(merged=rows(turn.merged))
            for turn in self.turns
        )
