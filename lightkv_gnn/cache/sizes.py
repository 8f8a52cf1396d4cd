"""What a layer of a cache holds, compressed or not, known without asking the device."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, StaticLayer, StaticSlidingWindowLayer

from lightkv_gnn.cache.compressed import CompressedMixin


def _layer(cache: Any, number: int) -> Any:
    """A layer of a cache; None if there is none, or one that holds a state and no entries."""
    if cache is None or number >= len(cache.layers) or holds_state(cache.layers[number]):
        return None
    return cache.layers[number]


def holds_state(layer: Any) -> bool:
    """Whether a layer of a cache holds a state of fixed size, and no entries."""
    return not isinstance(layer, CacheLayerMixin)


def _entries(layer: Any, seen: int) -> int:
    """Entries ever written by a layer that has seen that many tokens."""
    return seen - getattr(layer, "shift", 0)


def entries_written(cache: Any, number: int) -> int | None:
    """Entries ever written by a layer; None where the device alone knows, as of a static one.

    None too for a layer that holds a state.
    """
    layer = _layer(cache, number)
    if layer is None and cache is not None and number < len(cache.layers):
        return None
    if layer is None:
        return 0
    if isinstance(layer, StaticLayer):
        return None
    entries: int = layer.entries() if isinstance(layer, CompressedMixin) else layer.get_seq_length()
    return entries


def first_new_key(cache: Any, number: int, seen: int, entries: int) -> int | None:
    """Where an update's keys start among those that the layer's attention is given.

    Args:
        cache: Or None.
        number: Of the layer.
        seen: Tokens before the update.
        entries: Of the update.

    Returns:
        None if they are the last ones.
    """
    layer = _layer(cache, number)
    if not isinstance(layer, StaticLayer):
        return None
    start = _entries(layer, seen)
    if isinstance(layer, StaticSlidingWindowLayer) and start + entries > layer.max_cache_len:
        return None
    return start


def room(cache: Any, number: int, seen: int) -> int | None:
    """Entries that a sliding-window layer can take before it forgets any; None without bound."""
    layer = _layer(cache, number)
    if layer is None or not layer.is_sliding or getattr(layer, "record_past", False):
        return None
    static = isinstance(layer, StaticLayer)
    held = layer.max_cache_len if static else layer.sliding_window - 1
    return max(held - _entries(layer, seen), 0)


def stored_bytes(cache: Any, number: int, seen: int) -> int:
    """Bytes of the keys and values that a layer holds after ``seen`` tokens.

    Of a static layer, the slots written; of a quantized one, packed values and their scales.
    """
    layer = _layer(cache, number)
    if layer is None or not layer.is_initialized:
        return 0
    if isinstance(layer, StaticLayer):
        written = min(_entries(layer, seen), layer.max_cache_len)
        whole = _bytes([layer.keys, layer.values])
        return written * (whole // layer.max_cache_len)
    packed = [getattr(layer, f"_quantized_{name}", None) for name in ("keys", "values")]
    return _bytes([layer.keys, layer.values, packed])


def _bytes(held: Any) -> int:
    """Of all tensors in nested lists and dictionaries; of a packed tensor, of what it is made."""
    if isinstance(held, dict):
        return _bytes(list(held.values()))
    if isinstance(held, list | tuple):
        return sum(_bytes(part) for part in held)
    if not isinstance(held, Tensor):
        return 0
    if hasattr(held, "__tensor_flatten__"):
        names, _ = held.__tensor_flatten__()
        return sum(_bytes(getattr(held, name)) for name in names)
    return held.numel() * held.element_size()
