"""Sees which pictures a model encodes, whether ``generate`` asks for it or the model's forward.

``generate`` encodes pictures before the forward pass and drops what tells their sizes; a record of
the encoder's arguments therefore travels with its output.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any

from torch import nn

from lightkv_gnn.adapters import Adapter, Encoded

_RECORD = "lightkv_encoded"


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
            watched = self._watched(kind, getattr(self._base, name))
            self._replaced[name] = watched, vars(self._base).get(name)
            setattr(self._base, name, watched)

    def _watched(self, kind: str, encode: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(encode)

        @functools.wraps(encode)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if getattr(self._busy, "encoding", False):  # a video's frames, encoded as images
                return encode(*args, **kwargs)
            self._busy.encoding = True
            try:
                output = encode(*args, **kwargs)
            finally:
                self._busy.encoding = False
            arguments = signature.bind(*args, **kwargs).arguments
            arguments = {**arguments, **arguments.get("kwargs", {})}
            record = Encoded(kind, _without_pixels(arguments), self._adapter.lengths(kind, output))
            if hasattr(output, "pooler_output"):
                setattr(output, _RECORD, record)
            self._seen(record)
            return output

        return watched

    def remove(self) -> None:
        """Puts the encoders back as they were; what others have put in their place stays."""
        for name, (watched, own) in self._replaced.items():
            if vars(self._base).get(name) is not watched:
                continue
            if own is None:
                delattr(self._base, name)
            else:
                setattr(self._base, name, own)


def record_of(output: Any) -> Encoded | None:
    """The record that travels with an encoder's output, if it was made while attached."""
    record: Encoded | None = getattr(output, _RECORD, None)
    return record


def _without_pixels(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments but for pictures and their masks, which a record must not keep alive."""
    return {name: value for name, value in arguments.items() if not name.startswith("pixel")}
