"""What the explorer's tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

HOSTILE = "</script><script>alert(1)</script><!-- ]]> & \" ' \u2028\u2029 \ud800 \U0001f600 سلام"
"""Text that would do harm as markup or as a program."""

Open = Callable[..., Any]
"""The fixture that opens a page of views."""


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype="u1")
    return Image.fromarray(pixels)
