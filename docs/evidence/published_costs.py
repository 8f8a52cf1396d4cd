"""What schedules cost on published models, and how far compute can be saved.

Models are built from their published configurations on the meta device, as in
docs/families.py, and planned by the library; nothing runs.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in (".", "graphs", "docs")]

from families import BF16, TEXT, build, prompt  # noqa: E402
from published import SIZES  # noqa: E402
from transformers import PreTrainedModel  # noqa: E402

import lightkv_gnn as lk  # noqa: E402
from lightkv_gnn.costs.ledger import DecoderSize  # noqa: E402

BY_NAME = {size.name: size for size in SIZES}
LLAVAS = ("LLaVA-1.5 7B", "LLaVA-1.5 13B", "LLaVA-NeXT 7B (Vicuna)", "LLaVA-NeXT 13B")
QWEN = "Qwen2.5-VL 7B"
LAYERS = {size.name: size.config["text_config"]["num_hidden_layers"] for size in SIZES}

RELEASED = dict.fromkeys(LLAVAS, (12, 18, 24)) | {QWEN: (12, 17, 22)}
"""Layers in the authors' evaluation scripts: one choice for all LLaVAs, one for Qwen."""

CLIP_LARGE = DecoderSize(
    parameters=12 * 1024**2, attention_channels=1024, kv_channels=1024, bytes_per_value=BF16
)
"""A layer of LLaVA's vision tower, of which there are 24."""

TILES = {"LLaVA-1.5": 1, "LLaVA-NeXT": 5}
"""Pictures of 577 tokens that the tower is given for one of 1024×768 pixels."""

CLAIMED = 0.4
"""Share of the computation that the paper saves at most."""

Totals = dict[str, Any]


@cache
def model_of(name: str) -> PreTrainedModel:
    """On the meta device."""
    return build(BY_NAME[name])


def usual(name: str, retention: float = 0.55) -> tuple[lk.Stage, ...]:
    """The paper's schedule for a layer-averaged retention."""
    return tuple(lk.LightKVConfig.lightkv(model_of(name), retention=retention).stages)


@cache
def plan(name: str, stages: tuple[lk.Stage, ...], text: int = TEXT) -> Totals:
    """Totals of a prefill."""
    model, inputs = model_of(name), prompt(BY_NAME[name], text)
    return lk.plan_prefill(model, lk.LightKVConfig(stages), inputs, bytes_per_value=BF16).totals()


def vision_kv(name: str) -> float:
    """Bytes of the picture's keys and values without compression."""
    size = lk.adapter_for(model_of(name)).decoder_size(BF16)
    return LAYERS[name] * 2.0 * BF16 * size.kv_channels * BY_NAME[name].tokens


def decoder_weights(name: str) -> float:
    """Bytes of the decoder's layers."""
    size = lk.adapter_for(model_of(name)).decoder_size(BF16)
    return float(LAYERS[name] * size.parameters * BF16)


def saved(totals: Totals, what: str = "flops") -> float:
    """Share that compression saves."""
    return 1 - totals[f"{what}_ratio"]


def tower_flops(name: str) -> int:
    """Of LLaVA's vision tower."""
    tiles = TILES[name.split(maxsplit=1)[0]]
    return 24 * CLIP_LARGE.cost([577] * tiles, 0, 577).flops


def saved_with_tower(name: str, totals: Totals) -> float:
    """Share of the prefill's FLOPs that is saved, the vision tower's counted."""
    return (totals["flops_full"] - totals["flops"]) / (totals["flops_full"] + tower_flops(name))


def longest_text(name: str, stages: tuple[lk.Stage, ...]) -> int | None:
    """Most tokens of text with which the claimed share is saved; None if not even with one."""
    if saved(plan(name, stages, 1)) < CLAIMED:
        return None
    low, high = 1, 100_000
    while high - low > 1:
        middle = (low + high) // 2
        enough = saved(plan(name, stages, middle)) >= CLAIMED
        low, high = (middle, high) if enough else (low, middle)
    return low
