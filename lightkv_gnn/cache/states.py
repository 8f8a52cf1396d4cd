"""Cache layers that hold a state, among layers that hold fewer entries than tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lightkv_gnn import seams
from lightkv_gnn.cache.compressed import OUTSIDE
from lightkv_gnn.cache.layerwise import Siblings
from lightkv_gnn.errors import UnsupportedInputError

try:
    from transformers.cache_utils import LinearAttentionLayer
except ImportError as error:
    raise seams.with_versions(error) from error


class StateLayer(LinearAttentionLayer):
    """A layer that holds a state, among layers that hold fewer entries than tokens.

    The state has taken in the tokens that were left, and cannot give any back.

    Attributes:
        siblings: The layers of its cache, itself too; None before the cache is compressed.
    """

    siblings: Siblings | None = None

    @classmethod
    def of(cls, layer: LinearAttentionLayer) -> StateLayer:
        """One with everything that ``layer`` holds."""
        new = cls.__new__(cls)
        new.__dict__.update(layer.__dict__)
        return new

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.siblings is not None:
            self.siblings.join(self)

    @property
    def has_previous_state(self) -> dict[int, bool]:  # type: ignore[override]
        """Of each state, whether it has taken in tokens.

        A layer of the model asks before it goes on from the state, which it may then write to
        directly.

        Raises:
            RuntimeError: The cache is compressed and nobody looks after the call.
        """
        self._check_open()
        known: dict[int, bool] = vars(self)["has_previous_state"]
        return known

    def update_recurrent_state(self, *args: Any, **kwargs: Any) -> Tensor:
        """Puts a recurrent state in the place of the one before.

        Raises:
            RuntimeError: The cache is compressed and nobody looks after the call.
        """
        self._check_open()
        state: Tensor = super().update_recurrent_state(*args, **kwargs)
        return state

    def _check_open(self) -> None:
        siblings = self.siblings
        if siblings is None or siblings.open:
            return
        if any(layer.compressed or layer.guard for layer in siblings):
            raise RuntimeError(OUTSIDE)

    def crop(self, tokens_to_remove: int) -> None:
        """Drops trailing tokens, while nothing is merged.

        Raises:
            UnsupportedInputError: Something is.
        """
        self.check_crop()
        super().crop(tokens_to_remove)

    def check_crop(self) -> None:
        """Raises UnsupportedInputError if tokens were merged."""
        if any(layer.compressed for layer in self.siblings or ()):
            raise UnsupportedInputError(
                "the cache has layers that hold a state, from which no tokens can be dropped once "
                "others are merged: go on without prompt lookup and assisted decoding"
            )

    def reset(self) -> None:
        """Empties the layer."""
        siblings, self.siblings = self.siblings, None  # which would say that it is not open
        super().reset()
        self.siblings = siblings

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Picks samples, for beams."""
        for layer in self.siblings or ():
            layer.check_reorder()
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every sample."""
        for layer in self.siblings or ():
            layer.check_rows("repeat samples")
        self._select(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Picks samples."""
        for layer in self.siblings or ():
            layer.check_rows("pick samples")
        self._select(lambda x: x[indices.to(x.device)])

    def _select(self, rows: Callable[[Tensor], Tensor]) -> None:
        for states in (self.conv_states, self.recurrent_states):
            for number, state in states.items():
                states[number] = None if state is None else rows(state)
