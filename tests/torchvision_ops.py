"""Lets torchvision be imported where its compiled operators do not fit the installed torch.

A plugin for pytest, ``-p torchvision_ops``.  Processors need torchvision's Python code alone, but
importing it looks for every operator: here each is given a name, and no kernel to run.
"""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path

import torch


def _operators() -> set[str]:
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ImportError("torchvision is not installed")
    source = Path(spec.origin).with_name("_meta_registrations.py").read_text(encoding="utf-8")
    return set(re.findall(r'(?:torchvision::|register_meta\(")(\w+)', source))


try:
    import torchvision
except RuntimeError:
    _LIBRARY = torch.library.Library("torchvision", "DEF")
    for _name in sorted(_operators()):
        _LIBRARY.define(f"{_name}(Tensor x) -> Tensor")
    for _name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[_name]
    import torchvision  # noqa: F401
