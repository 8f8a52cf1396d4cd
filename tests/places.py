"""Tensors that pretend to be on other devices: they compute like the CPU's, but do not mix.

``cpu:1`` and ``cpu:2`` are names that torch takes for devices and then forgets.  Inside
:class:`Pretending`, a tensor sent to one of them says that it is there, and an operation on tensors
of several devices raises, as on GPUs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

HERE = torch.device("cpu")
PLACES = torch.device("cpu:1"), torch.device("cpu:2")


class Placed(Tensor):
    """A tensor of the CPU that says it is elsewhere."""

    place: torch.device

    def __new__(cls, x: Placed, requires_grad: bool = False) -> Placed:  # as accelerate calls it
        return x

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return _run(func, args, kwargs or {})


class Pretending(TorchFunctionMode):
    """Lets tensors be made on, and sent to, the devices of :data:`PLACES`."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return _run(func, args, kwargs or {})


def settled(model: nn.Module, place: str) -> nn.Module:
    """A model on one device, as by ``model.to``, which wants more of tensors."""
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            held.update({name: x.to(place) for name, x in held.items() if x is not None})
    return model


def place_of(x: Tensor) -> torch.device:
    return x.place if isinstance(x, Placed) else HERE


def _run(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    if func == Tensor.device.__get__:  # type: ignore[attr-defined]
        return place_of(args[0])
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    places = {place_of(x) for x in tensors if x.ndim or isinstance(x, Placed)}
    target = next(iter(places), HERE)
    if func is Tensor.__getitem__:  # by indices of the CPU too
        target, places = place_of(args[0]), places - {HERE}
    if func is Tensor.to:
        named = _named(args[1:], kwargs)
        target = place_of(args[0]) if named is None else named
    elif func is Tensor.cpu:
        target = HERE
    elif len(places) > 1:
        raise RuntimeError(f"{func.__name__} mixes tensors on {sorted(map(str, places))}")
    elif kwargs.get("device") is not None:
        target = torch.device(kwargs["device"])
    out = func(*_bare(args), **_bare(kwargs))
    if isinstance(out, torch.Size):
        return out
    return tree_map_only(Tensor, lambda x: _placed(x, target), out)


def _named(args: Any, kwargs: dict[str, Any]) -> torch.device | None:
    """The device that ``Tensor.to`` was given, if any."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return place_of(value)
        if isinstance(value, str | torch.device):
            return torch.device(value)
    return None


def _bare(values: Any) -> Any:
    return tree_map_only(Tensor, lambda x: x.as_subclass(Tensor), values) if values else values


def _placed(x: Tensor, place: torch.device) -> Tensor:
    if place == HERE:
        return x
    made = x.as_subclass(Placed)
    made.place = place
    return made
