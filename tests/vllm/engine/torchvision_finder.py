"""Lets torchvision be imported in all processes of an environment, where its operators do not fit.

To lie in site-packages beside ``torchvision_finder.pth``, a file that says ``import
torchvision_finder``: engines start processes, and pytest's plugins are in none of them.
Before torchvision is imported, each of its operators is given a name, and no kernel to run.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

_KEPT: list[Any] = []


class Finder:
    """Finds nothing; it only learns that torchvision is about to be imported."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        if name != "torchvision":
            return
        sys.meta_path.remove(Finder)
        spec = PathFinder.find_spec("torchvision")
        if spec is None or spec.origin is None or importlib.util.find_spec("torch") is None:
            return
        import torch

        source = Path(spec.origin).with_name("_meta_registrations.py").read_text(encoding="utf-8")
        library = torch.library.Library("torchvision", "DEF")
        for operator in sorted(set(re.findall(r'(?:torchvision::|register_meta\(")(\w+)', source))):
            library.define(f"{operator}(Tensor x) -> Tensor")
        _KEPT.append(library)


sys.meta_path.insert(0, Finder)
