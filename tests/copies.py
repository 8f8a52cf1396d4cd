"""Models are made once for the same arguments; each test gets a copy, which takes less time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

KEPT = 32
"""Of the models made last, with a megabyte of weights each."""

P = ParamSpec("P")
Model = TypeVar("Model")


def copied(make: Callable[P, Model]) -> Callable[P, Model]:
    """Has a function copy what it made; torch's generator is left as making it leaves it."""
    made: dict[str, tuple[Any, torch.Tensor]] = {}

    @wraps(make)
    def copy_of(*args: P.args, **options: P.kwargs) -> Model:
        key = repr((args, sorted(options.items())))
        if key not in made:
            made[key] = make(*args, **options), torch.get_rng_state()
            if len(made) > KEPT:
                del made[next(iter(made))]
        model, state = made[key]
        torch.set_rng_state(state)
        return copy.deepcopy(model)

    return copy_of
