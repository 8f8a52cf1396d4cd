"""What many tests of the session are run with."""

from __future__ import annotations

from typing import Any

import pytest
from models import IMAGE_TOKEN

attentions = pytest.mark.parametrize("attention", ["eager", "sdpa"])
policies = pytest.mark.parametrize("positions", ["preserve", "reindex"])
ways = pytest.mark.parametrize(
    ("attention", "positions"), [("eager", "reindex"), ("sdpa", "preserve")]
)


def full(*values: Any) -> list[Any]:
    """Values of a parameter that are run with ``--all``; for those that cost seconds."""
    return [pytest.param(value, marks=pytest.mark.full) for value in values]


# A placeholder in the answer would be taken for one more image token in an uncached step.
NO_PLACEHOLDER: dict[str, Any] = {"suppress_tokens": [IMAGE_TOKEN]}
