"""What kernels can read."""

from __future__ import annotations

import torch
import triton
from torch import Tensor


def check_device(device: torch.device) -> None:
    """Raises ValueError if kernels cannot run there."""
    if device.type != "cuda" and not triton.knobs.runtime.interpret:
        raise ValueError(
            f'scatter="triton" needs tensors on a GPU, these are on {device}: move the model '
            'there, or use the default scatter="torch"'
        )


def multipliable(x: Tensor) -> Tensor:
    """``x`` as kernels can multiply it: float64 is rounded to float32.

    Triton's interpreter takes bfloat16 for integers in a product: there it becomes float32.
    """
    check_device(x.device)
    narrow = x.dtype == torch.bfloat16 and triton.knobs.runtime.interpret
    return x.float() if narrow or x.dtype == torch.float64 else x


def rounded_by_kernels(x: Tensor) -> bool:
    """Whether kernels round to the dtype of ``x`` as torch does; the interpreter cuts bfloat16."""
    return not (x.dtype == torch.bfloat16 and triton.knobs.runtime.interpret)
