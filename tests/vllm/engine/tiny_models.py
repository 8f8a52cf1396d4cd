"""Checkpoints that vLLM can read, written by transformers' names and shapes."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from lightkv_gnn import tiny

HEAD = 32
"""What vLLM's attention on a CPU takes least."""


def convert_tiny(folder: Path) -> Path:
    """The bundled tiny LLaVA as vLLM takes it: the same function, its heads padded from 24 to 32.

    Frequencies of the rotary positions of a head of 32 with base theta ** (32 / 24) begin with
    those of one of 24 with theta; what is added is zero in queries, keys and values.
    """
    shutil.copytree(tiny.WEIGHTS, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = config["text_config"]
    head, heads = text["head_dim"], text["num_attention_heads"]
    text["head_dim"] = HEAD
    text["rope_parameters"]["rope_theta"] **= HEAD / head
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")

    half = torch.arange(head // 2)
    rotary = torch.cat([half, half + HEAD // 2])
    weights = {}
    for name, weight in load_file(tiny.WEIGHTS / "model.safetensors").items():
        if "language_model" in name and "self_attn" in name:
            where = rotary if "q_proj" in name or "k_proj" in name else torch.arange(head)
            rows = torch.cat([where + HEAD * number for number in range(heads)])
            if "o_proj" in name:
                wide = weight.new_zeros(weight.shape[0], HEAD * heads)
                wide[:, rows] = weight
            else:
                wide = weight.new_zeros(HEAD * heads, weight.shape[1])
                wide[rows] = weight * (math.sqrt(HEAD / head) if "q_proj" in name else 1)
            weight = wide
        weights[_vllm_name(name)] = weight.contiguous()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def rename(folder: Path) -> Path:
    """Has a checkpoint's weights named as vLLM wants them."""
    weights = load_file(folder / "model.safetensors")
    named = {_vllm_name(name): weight for name, weight in weights.items()}
    save_file(named, folder / "model.safetensors", {"format": "pt"})
    return folder


def _vllm_name(name: str) -> str:
    for tower in ("model.vision_tower.", "vision_tower."):
        if name.startswith(tower) and not name.startswith(f"{tower}vision_model."):
            return f"{tower}vision_model.{name.removeprefix(tower)}"
    return name
