"""Sees which pictures a model encodes, whether ``generate`` asks for it or the model's forward.

``generate`` encodes pictures before the forward pass and drops what tells their sizes; a record of
the encoder's arguments therefore travels with its output, also where ``generate`` copies that to
the model's device.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from lightkv_gnn import seams
from lightkv_gnn.adapters import Adapter, Encoded

_RECORD = "lightkv_encoded"


class Watched:
    """The encoders of a model, replaced on the instance by ones that make records.

    What prepares the model's inputs for ``generate`` is replaced by one that passes records on.

    Args:
        adapter: Of the model.
        seen: Is handed every record.
    """

    def __init__(self, adapter: Adapter, seen: Callable[[Encoded], None]) -> None:
        self._adapter, self._seen = adapter, seen
        self._busy = threading.local()
        self._replaced: list[tuple[nn.Module, str, _StandIn, Any]] = []
        for kind, name in adapter.encoders.items():
            self._replace(adapter.base, name, functools.partial(self.encode, kind))
        if hasattr(adapter.model, seams.PREPARE):
            self._replace(adapter.model, seams.PREPARE, self.prepare)

    def _replace(self, owner: nn.Module, name: str, call: Callable[..., Any]) -> None:
        stand_in = _StandIn(getattr(owner, name), call)
        self._replaced.append((owner, name, stand_in, vars(owner).get(name)))
        setattr(owner, name, stand_in)

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
        arguments = seams.named(inspect.signature(encoder), args, kwargs)
        lengths, shape = self._adapter.lengths(kind, output), shape_of_pixels(arguments)
        record = Encoded(kind, _without_pixels(arguments), lengths, shape)
        if hasattr(output, "pooler_output"):
            setattr(output, _RECORD, record)
        self._seen(record)
        return output

    def prepare(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Prepares, and gives encoded pictures that were copied the record of their original."""
        prepared = original(*args, **kwargs)
        before = seams.ModelCall(kwargs).encoded
        for kind, output in seams.ModelCall(prepared).encoded.items():
            record = record_of(before.get(kind))
            if record is not None:
                setattr(output, _RECORD, record)
        return prepared

    def remove(self) -> None:
        """Puts the methods back as they were; what others have put in their place stays."""
        for owner, name, stand_in, own in self._replaced:
            if vars(owner).get(name) is not stand_in:
                continue
            if own is None:
                delattr(owner, name)
            else:
                setattr(owner, name, own)


class Uncopied:
    """Parts of a model that refuse to be copied or pickled, which would keep hooks for good.

    Args:
        modules: The parts; each may come several times.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._refusing = {id(module): module for module in modules}
        for module in self._refusing.values():
            vars(module)["__reduce_ex__"] = _refuse_copy

    def remove(self) -> None:
        """They can be copied again."""
        for module in self._refusing.values():
            vars(module).pop("__reduce_ex__", None)


def _refuse_copy(protocol: Any) -> Any:
    raise RuntimeError(
        "this model is attached to lightkv_gnn, and a copy would keep its hooks for good: leave "
        "the context, or call lightkv_gnn.detach(model), before copying or saving the model; "
        "save_pretrained and state_dict work meanwhile"
    )


class _StandIn:
    """Stands in for a method, and looks like it."""

    def __init__(self, original: Callable[..., Any], call: Callable[..., Any]) -> None:
        functools.update_wrapper(self, original)
        self._original, self._call = original, call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(self._original, args, kwargs)


def record_of(output: Any) -> Encoded | None:
    """The record that travels with an encoder's output, if it was made while attached."""
    record: Encoded | None = getattr(output, _RECORD, None)
    return record


def shape_of_pixels(arguments: Mapping[str, Any]) -> tuple[int, ...]:
    """Shape of the first pixels among the arguments of an encoder; empty if there are none."""
    pixels = (value for name, value in arguments.items() if name.startswith("pixel_values"))
    return next((tuple(value.shape) for value in pixels if isinstance(value, Tensor)), ())


def _without_pixels(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments but for pictures and their masks, which a record must not keep alive."""
    return {name: value for name, value in arguments.items() if "pixel_" not in name}
