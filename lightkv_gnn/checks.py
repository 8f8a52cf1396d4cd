"""What must hold of a model and a configuration before a model is touched."""

from __future__ import annotations

from typing import Any

import torch

from lightkv_gnn.adapters import Adapter
from lightkv_gnn.backends import SUPPORTED, mask_form, sliding_window
from lightkv_gnn.config import LightKVConfig
from lightkv_gnn.errors import ScheduleError, UnsupportedInputError
from lightkv_gnn.masks import check_padding_mask


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
    if mask_form(decoder._attn_implementation) is None:
        raise UnsupportedInputError(
            f"attention implementation {decoder._attn_implementation!r} is not supported: load the "
            f"model with attn_implementation one of {SUPPORTED}, or with a function of your own "
            "whose masks one of theirs makes: AttentionMaskInterface.register(name, sdpa_mask)"
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


def check_same_backend(adapter: Adapter, attached: str) -> None:
    """Raises RuntimeError if the attention implementation is no longer ``attached``."""
    now = adapter.decoder.config._attn_implementation
    if now != attached:
        raise RuntimeError(
            f"the attention implementation was switched from {attached!r} to {now!r} while "
            "lightkv_gnn is attached: switch it outside the context, and attach again"
        )


def check_flash_call(kwargs: dict[str, Any]) -> None:
    """Looks at the arguments of the first layer, where flash attention is to run.

    Flash attention cuts a batch of one sample into packed sequences where it is given their
    lengths, or finds their borders in the positions; compression has but whole samples.

    Raises:
        UnsupportedInputError: A mask that flash attention cannot obey, or packed sequences.
    """
    mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
    check_padding_mask(mask)
    packed = any(kwargs.get(name) is not None for name in ("cu_seq_lens_q", "cu_seq_lens_k"))
    if mask is None and positions is not None and positions.shape[0] == 1:
        steps = torch.diff(positions, dim=-1)
        packed = packed or bool((steps != 1).any())
    if packed:
        raise UnsupportedInputError(
            "sequences packed into one row (cu_seq_lens, or position_ids that start again) cannot "
            "be compressed: pass one sequence per row, padded, with an attention_mask"
        )


def check_flash_window(adapter: Adapter, layer: int, length: int) -> None:
    """Looks at a compressed layer, where flash attention is to run over ``length`` tokens.

    Raises:
        UnsupportedInputError: The layer's window is shorter.  Flash attention would count the
            entries that are left, and so look back further than the model was trained to.
    """
    window = sliding_window(adapter.decoder.config, layer)
    if window is not None and length > window:
        raise UnsupportedInputError(
            f"the context of {length} tokens grew past the sliding window of {window}, which "
            "flash attention would count in merged tokens: use a shorter context, or "
            'attn_implementation="sdpa" without a cache'
        )
