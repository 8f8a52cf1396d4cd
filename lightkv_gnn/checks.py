"""What must hold of a model and a configuration before a model is touched."""

from __future__ import annotations

from lightkv_gnn.adapters import Adapter
from lightkv_gnn.config import LightKVConfig
from lightkv_gnn.errors import ScheduleError, UnsupportedInputError

BACKENDS = ("eager", "sdpa")
"""Attention implementations whose masks compression can translate."""


def check_schedule(adapter: Adapter, config: LightKVConfig) -> None:
    """Raises ScheduleError for layers and windows that the model does not have."""
    layers, grid = adapter.layers, adapter.grid
    for stage in config.stages:
        if stage.layer > layers - 2:
            raise ScheduleError(
                f"{stage} runs after layer {stage.layer}, but the decoder has layers "
                f"0..{layers - 1} and a stage needs one after it: use a layer from 0 to "
                f"{layers - 2}"
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
    rope = (getattr(decoder, "rope_parameters", None) or {}).get("rope_type", "default")
    if config.positions == "reindex" and rope in ("dynamic", "longrope"):
        raise UnsupportedInputError(
            f'positions="reindex" does not work with {rope!r} rotary positions, whose tables '
            'depend on the longest one: use positions="preserve"'
        )
