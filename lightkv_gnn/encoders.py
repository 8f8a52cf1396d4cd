"""Sees which pictures a model encodes, whether ``generate`` asks for it or the model's forward.

``generate`` encodes pictures before the forward pass and drops what tells their sizes; a record of
the encoder's arguments therefore travels with its output.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from lightkv_gnn.adapters import Adapter, Encoded

_RECORD = "lightkv_encoded"


def named(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """A call's arguments by name, those in ``**kwargs`` too."""
    given = signature.bind_partial(*args, **kwargs).arguments
    return {**given, **given.get("kwargs", {})}


class Watched:
    """The encoders of a model, replaced on the instance by ones that make records.

    Args:
        adapter: Of the model.
        seen: Is handed every record.
    """

    def __init__(self, adapter: Adapter, seen: Callable[[Encoded], None]) -> None:
        self._adapter, self._seen = adapter, seen
        self._base: nn.Module = adapter.base
        self._busy = threading.local()
        self._replaced: dict[str, tuple[Any, Any]] = {}
        for kind, name in adapter.encoders.items():
            watched = _Encoder(self, kind, getattr(self._base, name))
            self._replaced[name] = watched, vars(self._base).get(name)
            setattr(self._base, name, watched)

    def encode(
        self, kind: str, encoder: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Encodes, and makes a record, unless another encoder is at work: on a video's frames."""
        if getattr(self._busy, "encoding", False):
            return encoder(*args, **kwargs)
        self._busy.encoding = True
        try:
            output = encoder(*args, **kwargs)
        finally:
            self._busy.encoding = False
        arguments = named(inspect.signature(encoder), args, kwargs)
        record = Encoded(kind, _without_pixels(arguments), self._adapter.lengths(kind, output))
        if hasattr(output, "pooler_output"):
            setattr(output, _RECORD, record)
        self._seen(record)
        return output

    def remove(self) -> None:
        """Puts the encoders back as they were; what others have put in their place stays."""
        for name, (watched, own) in self._replaced.items():
            if vars(self._base).get(name) is not watched:
                continue
            if own is None:
                delattr(self._base, name)
            else:
                setattr(self._base, name, own)


class _Encoder:
    """Stands in for an encoder; looks like it, and cannot be copied with the model."""

    def __init__(self, watched: Watched, kind: str, encoder: Callable[..., Any]) -> None:
        functools.update_wrapper(self, encoder)
        self._watched, self._kind, self._encoder = watched, kind, encoder

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._watched.encode(self._kind, self._encoder, args, kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RuntimeError(
            "this model is attached to lightkv_gnn, and a copy would keep its hooks for good: "
            "leave the context before copying or saving the model"
        )


def record_of(output: Any) -> Encoded | None:
    """The record that travels with an encoder's output, if it was made while attached."""
    record: Encoded | None = getattr(output, _RECORD, None)
    return record


def _without_pixels(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments but for pictures and their masks, which a record must not keep alive."""
    return {name: value for name, value in arguments.items() if not name.startswith("pixel")}
