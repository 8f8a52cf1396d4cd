"""Numbers from the host, put on a device without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(
    values: Sequence[int] | Sequence[Sequence[int]] | Tensor, device: torch.device
) -> Tensor:
    """An int64 tensor on ``device``; the copy is queued, not waited for."""
    host = torch.as_tensor(values, dtype=torch.int64)
    return host.to(device, non_blocking=True)
