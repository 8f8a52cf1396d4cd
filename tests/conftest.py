"""Fixtures shared by all tests; the process that hands tests out imports this, and no torch."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest

from lightkv_gnn.choices import SCATTER

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported: kernels on a CPU
# Of processes that tests start, as ``one_thread`` below of their own.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["pairs", "pytester"]


def pytest_collection_finish() -> None:
    """What was imported stays: the collector, which tests call too, need not look at it again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """At the end all of it goes, or Triton tells of leaks."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tensors are small here: threads cost more than they give."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(params=SCATTER)
def scatter(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each scatter backend by name; Triton's kernels in its interpreter, which warns of NaN."""
    if request.param == "torch_scatter":
        from reference import require_torch_scatter

        require_torch_scatter()
    if request.param == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    with np.errstate(all="ignore"):
        yield request.param


@pytest.fixture
def mass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configurations and loops, those of other files too, are made with ``attention="mass"``."""
    from families.loop import FamilyLoop

    import lightkv_gnn as lk

    monkeypatch.setattr(lk, "LightKVConfig", partial(lk.LightKVConfig, attention="mass"))
    defaults = {**(FamilyLoop.__init__.__kwdefaults__ or {}), "attention": "mass"}
    monkeypatch.setattr(FamilyLoop.__init__, "__kwdefaults__", defaults)
