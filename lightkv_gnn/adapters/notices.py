"""What is taken for granted of a model is said, once."""

from __future__ import annotations

import warnings
from weakref import WeakKeyDictionary

from torch import nn

_said: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


def say_once(model: nn.Module, text: str) -> None:
    """Warns, unless the same was said of the model before."""
    said = _said.setdefault(model, set())
    if text not in said:
        said.add(text)
        warnings.warn(f"lightkv_gnn: {text}", stacklevel=2)
