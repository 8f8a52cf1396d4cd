"""Numbers from the host, put on a device without waiting for it."""

from __future__ import annotations

from threading import Lock

import torch
from torch import Tensor

Numbers = tuple[int, ...] | tuple[tuple[int, int], ...]

MOST = 512
"""Tensors kept at once."""

_kept: dict[tuple[Numbers, torch.device], Tensor] = {}
_lock = Lock()


def to_device(numbers: Numbers, device: torch.device) -> Tensor:
    """An int64 tensor on ``device``, not to be written to; the copy is queued, not waited for.

    Sizes return from call to call: the last ones stay on their device, where a CUDA graph that was
    captured with them finds them again.  A compiled graph has its own.
    """
    if torch.compiler.is_compiling():
        return torch.tensor(numbers, dtype=torch.int64, device=device)
    key = numbers, device
    with _lock:
        known = _kept.get(key)
    if known is not None:
        return known
    with torch.inference_mode(False):
        made = torch.tensor(numbers, dtype=torch.int64).to(device, non_blocking=True)
    if type(made) is Tensor:  # not one that only a mode such as FakeTensorMode can use
        with _lock:
            while len(_kept) >= MOST:
                _kept.pop(next(iter(_kept)))
            _kept[key] = made
    return made
