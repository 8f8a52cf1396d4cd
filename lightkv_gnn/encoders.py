"""Sees which pictures a model encodes, whether ``generate`` asks for it or the model's forward.

``generate`` encodes pictures before the forward pass and drops what tells their sizes; a record of
the encoder's arguments therefore travels with its output.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lightkv_gnn.adapters import Encoded

_RECORD = "lightkv_encoded"


class Watched:
    """An encoder of a model, replaced on the instance by one that makes records.

    Args:
        base: The module that encodes.
        kind: Of its pictures, "image" or "video".
        name: Of the method.
        seen: Is handed every record.
    """

    def __init__(
        self, base: nn.Module, kind: str, name: str, seen: Callable[[Encoded], None]
    ) -> None:
        self._base, self._name = base, name
        self._own = vars(base).get(name)
        encode = getattr(base, name)
        signature = inspect.signature(encode)

        @functools.wraps(encode)
        def watched(*args: Any, **kwargs: Any) -> Any:
            output = encode(*args, **kwargs)
            arguments = signature.bind(*args, **kwargs).arguments
            record = Encoded(kind, _without_pixels(arguments), lengths_of(output))
            if hasattr(output, "pooler_output"):
                setattr(output, _RECORD, record)
            seen(record)
            return output

        setattr(base, name, watched)

    def remove(self) -> None:
        """Puts the encoder back as it was."""
        if self._own is None:
            delattr(self._base, self._name)
        else:
            setattr(self._base, self._name, self._own)


def record_of(output: Any) -> Encoded | None:
    """The record that travels with an encoder's output, if it was made while attached."""
    record: Encoded | None = getattr(output, _RECORD, None)
    return record


def lengths_of(output: Any) -> tuple[int, ...]:
    """Vision tokens of each picture in an encoder's output."""
    pooled = output.pooler_output if hasattr(output, "pooler_output") else output[1]
    return tuple(picture.shape[0] for picture in pooled)


def _without_pixels(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments but for pictures, which a record must not keep alive."""
    return {
        name: value
        for name, value in arguments.items()
        if not (isinstance(value, Tensor) and value.is_floating_point())
    }
