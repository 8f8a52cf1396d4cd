"""Attention implementations that need help to run on a CPU."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from flash_stand_in import flash_on_cpu


@contextmanager
def flex_uncompiled() -> Iterator[None]:
    """Runs flex attention by its definition in torch: compiled, it needs a fitting compiler."""
    stance = torch.compiler.set_stance("force_eager")
    with stance, warnings.catch_warnings():
        # That it is not compiled, and what torch and transformers do that torch itself deprecates.
        warnings.simplefilter("ignore")
        yield


def runnable(attention: str) -> Any:
    """A context in which models with this ``attn_implementation`` run here."""
    if attention.startswith("flash_attention"):
        return flash_on_cpu()
    return flex_uncompiled() if attention == "flex_attention" else nullcontext()
