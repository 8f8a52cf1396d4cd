"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported: kernels on a CPU

import numpy as np
import pytest
import torch
from reference import require_torch_scatter

from lightkv_gnn.stage.scatter import SCATTER

pytest_plugins = ["pairs", "pytester"]

torch.set_num_threads(1)  # tensors are small here: threads cost more than they give


@pytest.fixture(params=SCATTER)
def scatter(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each scatter backend by name; Triton's kernels in its interpreter, which warns of NaN."""
    if request.param == "torch_scatter":
        require_torch_scatter()
    if request.param == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    with np.errstate(all="ignore"):
        yield request.param
