"""The host: numbers that it puts on a device without waiting, and tensors that it may read."""

from __future__ import annotations

from threading import Lock

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

Numbers = tuple[int, ...] | tuple[tuple[int, int], ...]

MOST = 512
"""Tensors kept at once."""

_kept: dict[tuple[Numbers, torch.device], tuple[Tensor, torch.cuda.Event | None]] = {}
_captured: set[Tensor] = set()
"""What a CUDA graph reads, which has to stay."""

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
        known = _kept.pop(key, None)
        if known is not None:
            _kept[key] = known  # the last one asked for is the last one to go
    if known is not None:
        return _ready(*known)
    with torch.inference_mode(False):
        made = torch.tensor(numbers, dtype=torch.int64, device="cpu").to(device, non_blocking=True)
    if type(made) is Tensor:  # not one that only a mode such as FakeTensorMode can use
        copied = None
        if device.type == "cuda":
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(device))
        with _lock:
            while len(_kept) >= MOST:
                _kept.pop(next(iter(_kept)))
            _kept[key] = made, copied
    return made


def _ready(numbers: Tensor, copied: torch.cuda.Event | None) -> Tensor:
    """The tensor, for the stream that asks: another one may have copied it."""
    if copied is not None:
        with torch.cuda.device_of(numbers):
            if torch.cuda.is_current_stream_capturing():
                _captured.add(numbers)
            else:
                torch.cuda.current_stream().wait_event(copied)
    return numbers


def plain(x: Tensor) -> bool:
    """Whether a tensor is the host's, and what is done to it is done now and seen by nobody."""
    return (
        type(x) is Tensor
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not is_functorch_wrapped_tensor(x)
        and not _get_current_dispatch_mode_stack()
    )


def row_minima(x: Tensor) -> tuple[Tensor, Tensor]:
    """The least of each row of `[row, column]`, and the first column it is in; no NaN."""
    if not plain(x):
        least = x.min(dim=1)
        return least.values, least.indices
    column = torch.from_numpy(x.numpy().argmin(axis=1))  # several times as fast as torch's
    return x.gather(1, column[:, None])[:, 0], column
