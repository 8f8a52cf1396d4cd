"""What becomes of the hooks where the model, or a part of it, is compiled."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

_Model = TypeVar("_Model", bound=nn.Module)


def uncompiled(model: _Model) -> _Model:
    """The model inside ``torch.compile(model)``, whose hooks the compiled one runs too."""
    inner: _Model = getattr(model, "_orig_mod", model)
    return inner


class OutsideGraphs:
    """Keeps hooks out of compiled graphs, in calls that they have work in.

    What is merged depends on the data, and how many tokens are left on the prompt: traced, it would
    be compiled again for every prompt.  Says so once.
    """

    def __init__(self) -> None:
        self._said = False

    def wrap(self, hook: Callable[..., Any], busy: Callable[..., bool]) -> Callable[..., Any]:
        """The hook, run outside the graph where ``busy`` of its arguments."""
        outside = torch.compiler.disable(functools.partial(self._run, hook))

        def run(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling() and busy(*args, **kwargs):
                return outside(*args, **kwargs)
            return hook(*args, **kwargs)

        return run

    def _run(self, hook: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._said:
            self._said = True
            warnings.warn(
                "lightkv_gnn: the model is compiled; a prefill with pictures runs in pieces, as "
                "merging its tokens between the layers cannot be compiled. Answers are the same, "
                "and steps of one token stay compiled whole",
                stacklevel=2,
            )
        return hook(*args, **kwargs)
