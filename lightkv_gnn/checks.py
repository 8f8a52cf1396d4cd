"""What must hold of a model and a configuration before a model is touched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightkv_gnn.adapters import Adapter
from lightkv_gnn.config import LightKVConfig
from lightkv_gnn.errors import ScheduleError, UnsupportedInputError

BACKENDS = ("eager", "sdpa")
"""Attention implementations whose masks compression can translate."""


def check_schedule(adapter: Adapter, config: LightKVConfig) -> None:
    """Raises ScheduleError for layers and windows that the model does not have."""
    legal, grid = adapter.legal_layers, adapter.grid
    for stage in config.stages:
        if stage.layer not in legal:
            raise ScheduleError(
                f"{stage} runs after layer {stage.layer}, but in this model, with decoder layers "
                f"0..{adapter.layers - 1}, a stage may run after {_listed(legal)}"
            )
        if grid is not None and stage.windows > min(grid):
            raise ScheduleError(
                f"{stage} cuts a grid of {grid[0]}x{grid[1]} tokens into {stage.windows} windows "
                f"per side, which leaves windows empty: use at most {min(grid)}"
            )


def check_backend(adapter: Adapter, config: LightKVConfig) -> None:
    """Raises UnsupportedInputError for attention, placement or positions not supported."""
    decoder = adapter.decoder.config
    if decoder._attn_implementation not in BACKENDS:
        raise UnsupportedInputError(
            f"attention implementation {decoder._attn_implementation!r} is not supported: load the "
            f"model with attn_implementation one of {BACKENDS}"
        )
    devices = {weight.device for weight in adapter.decoder.layers.parameters()}
    if len(devices) > 1:
        raise UnsupportedInputError(
            f"the decoder's layers are spread over {sorted(map(str, devices))}: a compressed "
            "prefill needs them on one device"
        )
    if config.positions == "preserve":
        return
    if not adapter.positions_close_up:
        raise UnsupportedInputError(
            'positions="reindex" has no meaning with M-RoPE, where the text after a picture counts '
            'from its rows and columns, not its tokens: use positions="preserve"'
        )
    growing = {"dynamic", "longrope"} & _rope_types(getattr(decoder, "rope_parameters", None) or {})
    if growing:
        raise UnsupportedInputError(
            f'positions="reindex" does not work with {growing.pop()!r} rotary positions, whose '
            'tables depend on the longest one: use positions="preserve"'
        )


def _rope_types(parameters: dict[str, Any]) -> set[str]:
    """Kinds of rotary positions, of all kinds of layers where they differ."""
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return {each.get("rope_type", "default") for each in nested or [parameters]}


def _listed(layers: Sequence[int]) -> str:
    if isinstance(layers, range):
        return f"layers {layers[0]} to {layers[-1]}" if layers else "none"
    return f"layers {', '.join(map(str, layers))}"
