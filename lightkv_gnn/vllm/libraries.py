"""The graph layer and what stands on it, imported when a picture first needs them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from threading import Lock
from typing import Any

HIDDEN = "numba"

_importing = Lock()


def graph_layer() -> Any:
    """The module ``lightkv_graphs``."""
    return _imported("lightkv_graphs")


def compressor_module() -> Any:
    """The module ``lightkv_gnn.stage.compressor``."""
    return _imported("lightkv_gnn.stage.compressor")


def adapters_module() -> Any:
    """The module ``lightkv_gnn.adapters``."""
    return _imported("lightkv_gnn.adapters")


def ranks_module() -> Any:
    """The module ``lightkv_gnn.stage.ranks``."""
    return _imported("lightkv_gnn.stage.ranks")


def _imported(name: str) -> Any:
    with _importing, _without_numba():
        return import_module(name)


@contextmanager
def _without_numba() -> Iterator[None]:
    """PyG takes numba where it finds it, and vLLM cannot look through all that numba loads.

    On CPUs, an engine looks through all modules that are loaded when it starts; an object of
    llvmlite has a ``__dict__`` that is none.  PyG does what is needed here without numba.
    """
    if HIDDEN in sys.modules:
        yield
        return
    sys.modules[HIDDEN] = None  # type: ignore[assignment]  # an import of it fails
    try:
        yield
    finally:
        del sys.modules[HIDDEN]
