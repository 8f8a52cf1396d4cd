"""Tests of the real engine are collected where vLLM is installed: ``make vllm-test``."""

from __future__ import annotations

from importlib.util import find_spec

from lightkv_gnn.vllm.libraries import compressor_module

collect_ignore = ["engine"]
_FOUND = find_spec("vllm")
# This folder, on the path of tests, would do for a package of the name that has no file.
if _FOUND is not None and _FOUND.origin:
    collect_ignore = []
    compressor_module()  # before tests import it, with numba, and engines do not start
