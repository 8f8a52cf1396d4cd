"""What a decoder layer is given, and which of it belongs to its tokens, one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightkv_gnn.adapters import Adapter
from lightkv_gnn.errors import UnsupportedInputError
from lightkv_gnn.seams import LayerNames


def check_hidden_states(number: int, hidden_states: Tensor, shape: tuple[int, int]) -> None:
    """Raises UnsupportedInputError for hidden states that are not one row for each token.

    Args:
        number: Of the layer.
        hidden_states: That it is given.
        shape: (samples, tokens) of the sequence as it is now.
    """
    if hidden_states.ndim != 3 or hidden_states.shape[:2] != shape:
        raise UnsupportedInputError(
            f"decoder layer {number} is given hidden states of shape {list(hidden_states.shape)}: "
            f"expected [{shape[0]}, {shape[1]}, channel], one row for each token of the call"
        )


def check_length(adapter: Adapter, tokens: int) -> None:
    """Raises UnsupportedInputError for more tokens than shorter layers would be right for."""
    if adapter.longest is not None and tokens > adapter.longest:
        raise UnsupportedInputError(
            f"the context has {tokens} tokens: {type(adapter.model).__name__} scales attention by "
            f"a token's place in the row, which merging changes, from {adapter.longest + 1} on; "
            "pass fewer tokens, or leave this call uncompressed"
        )


def token_arguments(
    number: int,
    given: Mapping[str, Any],
    names: LayerNames,
    axes: Mapping[str, int | None],
    length: int,
) -> dict[str, int]:
    """Further arguments that hold something for each token, and the axis that counts tokens.

    An axis is known by the argument's name: one that happens to be as long as the call is no axis
    of tokens.

    Args:
        number: Of the layer.
        given: Its arguments by name.
        names: Of those that are looked after elsewhere.
        axes: Of every argument that may come; None for one that is not of tokens.
        length: Tokens of the call.

    Raises:
        UnsupportedInputError: A tensor that is not known, or not of as many tokens.
    """
    found = {}
    for name, value in given.items():
        if name in (names.mask, names.positions, names.tables) or not _holds_rows(value):
            continue
        if name not in axes:
            raise UnsupportedInputError(
                f"decoder layer {number} is given {name}, {_described(value)}, and it is not known "
                "whether that is something for each token: add it to token_axes of the adapter, "
                "with the axis that counts tokens, or None"
            )
        if (axis := axes[name]) is None:
            continue
        if (
            not isinstance(value, Tensor)
            or not 0 < axis < value.ndim
            or value.shape[axis] != length
        ):
            raise UnsupportedInputError(
                f"decoder layer {number} is given {name}, {_described(value)}: expected one entry "
                f"for each of {length} tokens on axis {axis}"
            )
        found[name] = axis
    return found


def _holds_rows(value: Any) -> bool:
    """Whether an argument is a tensor, but for a number, or several."""
    if isinstance(value, list | tuple):
        return any(map(_holds_rows, value))
    return isinstance(value, Tensor) and value.ndim > 0


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return f"a {type(value).__name__} with tensors"
