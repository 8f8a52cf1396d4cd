"""What a whole cache is asked for, and a layer that cannot do it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from lightkv_gnn.cache import layers as kinds


class Packed(kinds._QuantizedMixin, DynamicLayer):  # type: ignore[misc]
    """Stands for a layer that cannot have its samples picked."""


ACTS: dict[str, Callable[[Any], Any]] = {
    "drop": lambda cache: cache.crop(-1),
    "repeat": lambda cache: cache.batch_repeat_interleave(2),
    "pick": lambda cache: cache.batch_select_indices(torch.tensor([0, 0])),
    "reorder": lambda cache: cache.reorder_cache(torch.tensor([0, 0])),
}
