"""Where the parts of a model are: on several devices, offloaded, or split over processes."""

from __future__ import annotations

import re
from typing import Any

import torch

from lightkv_gnn.adapters import Adapter
from lightkv_gnn.errors import UnsupportedInputError
from lightkv_gnn.stage.ranks import Ranks


def input_device(model: Any) -> torch.device:
    """Where a model expects its inputs; of an offloaded one, the device that it computes on.

    Weights that accelerate has offloaded are on the meta device between calls.
    """
    hooks = (getattr(module, "_hf_hook", None) for module in model.modules())
    known = (getattr(hook, "execution_device", None) for hook in hooks)
    device = next((device for device in known if device is not None), model.device)
    return torch.device(device)


def layer_devices(adapter: Adapter) -> set[torch.device]:
    """The devices of the decoder's layers, but for weights that are offloaded."""
    devices = {weight.device for weight in adapter.decoder.layers.parameters()}
    return {device for device in devices if device.type != "meta"}


def ranks_of(adapter: Adapter) -> Ranks:
    """The processes that transformers has split a model's attention heads over.

    Raises:
        UnsupportedInputError: They cannot have equal numbers of heads.
    """
    model = adapter.model
    guiding = adapter.layer_config(next(iter(adapter.legal_layers), 0))
    heads, shared = guiding.num_attention_heads, guiding.num_key_value_heads
    size = model.tp_size or 1
    if size == 1 or not _splits_heads(adapter):
        return Ranks(heads)
    if heads % size or shared % size:
        raise UnsupportedInputError(
            f"tensor parallelism over {size} processes cannot share out {heads} heads and "
            f"{shared} key-value heads evenly, and transformers makes no copies of them: load the "
            "model with a tp_size that divides both"
        )
    mesh: Any = model._device_mesh
    return Ranks(heads, (mesh if mesh.ndim == 1 else mesh["tp"]).get_group())


def _splits_heads(adapter: Adapter) -> bool:
    """Whether the model's plan splits the decoder's attention."""
    first = next(layer for layer in range(adapter.layers) if adapter.holds_entries(layer))
    parts = {id(part) for part in adapter.attention(first).children()}
    names = [name for name, part in adapter.model.named_modules() if id(part) in parts]
    return any(
        adapter.model.tp_plan.get(re.sub(r"\.\d+\.", ".*.", name)) == "colwise" for name in names
    )
