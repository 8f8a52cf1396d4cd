"""Records the queries and keys of chosen attention modules, whatever the backend.

transformers looks attention functions up in one registry.  While a model is attached, the function
of its backend is wrapped there; only modules that carry a recorder are recorded.  What a mask of
blocks cannot say, how many tokens a key stands for, the wrapper hands on beside it.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lightkv_gnn import seams
from lightkv_gnn.attention.block_masks import mass_beside

Recorder = Callable[[Tensor, Tensor, float, "float | None"], None]
"""``recorder(query, key, scaling, softcap)`` with `[batch, head, token, channel]` states."""

_ATTRIBUTE = "_lightkv_recorder"
_lock = threading.RLock()
"""Collecting an attached model uninstalls, in any thread, while this one may be installing."""

_users: defaultdict[str, list[None]] = defaultdict(list)
"""An entry for each attached model of a backend."""

_replaced: dict[str, tuple[Callable[..., Any], Callable[..., Any] | None]] = {}
"""Our wrapper of each backend, and what the registry held locally before it."""


def start(module: nn.Module, recorder: Recorder) -> None:
    """Calls ``recorder`` whenever this attention module attends."""
    module.__dict__[_ATTRIBUTE] = recorder


def stop(module: nn.Module) -> None:
    """The reverse of :func:`start`."""
    module.__dict__.pop(_ATTRIBUTE, None)


def is_recorded(module: nn.Module) -> bool:
    """Whether somebody records this attention module already; a second one would take its place."""
    return _ATTRIBUTE in module.__dict__


def install(implementation: str) -> None:
    """Wraps a backend's function in the registry; calls nest."""
    with _lock:
        _users[implementation].append(None)  # from here on nobody else's end takes it away
        if implementation not in _replaced:
            previous = ALL_ATTENTION_FUNCTIONS._local_mapping.get(implementation)
            wrapper = _recording(ALL_ATTENTION_FUNCTIONS.get(implementation))
            _replaced[implementation] = wrapper, previous
            ALL_ATTENTION_FUNCTIONS[implementation] = wrapper


def uninstall(implementation: str) -> None:
    """The reverse of :func:`install`."""
    with _lock:
        _users[implementation].pop()
        if not _users[implementation] and implementation in _replaced:
            wrapper, previous = _replaced.pop(implementation)
            if ALL_ATTENTION_FUNCTIONS._local_mapping.get(implementation) is not wrapper:
                return  # someone else's by now; what they may have wrapped passes through
            if previous is None:
                del ALL_ATTENTION_FUNCTIONS[implementation]
            else:
                ALL_ATTENTION_FUNCTIONS[implementation] = previous


def _recording(function: Callable[..., Any] | None) -> Callable[..., Any]:
    def attend(module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        recorder = module.__dict__.get(_ATTRIBUTE)
        if recorder is not None:
            scaling = kwargs.get("scaling")
            scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
            recorder(query, key, scaling, kwargs.get("softcap"))
        log_mass = mass_beside(args[1] if len(args) > 1 else kwargs.get("attention_mask"))
        if log_mass is not None:
            sizes = (-1, query.shape[1], query.shape[2], -1)
            kwargs[seams.BIAS] = log_mass.to(query.device)[:, None, None, :].expand(*sizes)
        attention = function or _eager_attention(module)
        return attention(module, query, key, *args, **kwargs)

    # What it takes is asked for by its signature.
    return attend if function is None else functools.wraps(function)(attend)


def _eager_attention(module: nn.Module) -> Callable[..., Any]:
    """Eager attention is not in the registry: each modeling file has its own.

    A subclass may live elsewhere; what it inherits is then in a parent's file.  Where a file has
    several, for text and for pictures, the module says which one is its own.
    """
    usual = "eager_attention_forward"
    names = inspect.unwrap(type(module).forward).__code__.co_names
    own = next((name for name in names if name.endswith(usual)), usual)
    for parent in type(module).__mro__:
        function = getattr(sys.modules.get(parent.__module__), own, None)
        if function is not None:
            return function
    raise RuntimeError(f"no eager_attention_forward beside {type(module).__name__}")
