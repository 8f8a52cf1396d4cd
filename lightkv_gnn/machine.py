"""Versions and hardware of a run."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import lightkv_gnn

PACKAGES = ("torch", "transformers", "torch-geometric", "numpy")


def describe() -> dict[str, Any]:
    """What timings, and rounding in the last place, depend on; plain values, nothing personal."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "lightkv-gnn": lightkv_gnn.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Computes with so many threads of a CPU, which rounding, and so training, depends on.

    Raises:
        ValueError: None at all.
    """
    if number < 1:
        raise ValueError(f"threads is {number}: expected 1 or more")
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_device(name: str) -> str:
    """The name of a device that is there.

    Raises:
        ValueError: It is not, or it is no device's name.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"--device {name} cannot be used: {reason}; expected cpu or cuda"
        ) from error
    return name


def _cpu(information: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, as Linux has it, else as Python does."""
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
