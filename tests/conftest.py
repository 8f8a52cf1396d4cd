"""Fixtures shared by all tests."""

from __future__ import annotations

import pytest
import torch
from reference import require_torch_scatter

torch.set_num_threads(1)  # tensors are small here: threads cost more than they give


@pytest.fixture(params=["torch", "torch_scatter"])
def scatter(request: pytest.FixtureRequest) -> str:
    """Each scatter backend by name."""
    if request.param == "torch_scatter":
        require_torch_scatter()
    return request.param
