"""What the patches of a vision tower attend to, in the layer whose output is taken."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lightkv_gnn.adapters import Adapter
from lightkv_gnn.attention import capture
from lightkv_gnn.errors import UnsupportedInputError
from lightkv_gnn.stage.guidance import GuidanceBlock, at_once, attention_logits


class TowerAttention:
    """Listens to one attention layer of a model's vision tower.

    Args:
        adapter: Of the model.

    Attributes:
        saliency: Attention that each patch got, averaged over heads, `[patch]`, pictures one after
            the other; of the [CLS] token where the tower has one, else averaged over all patches.
        keys: Of each patch, all heads, `[patch, head * channel]`.
        seconds: Wall time that listening to the last pictures took, on the host.

    Raises:
        UnsupportedInputError: The tower has no such layer that can be listened to.
    """

    def __init__(self, adapter: Adapter) -> None:
        self.saliency = self.keys = torch.zeros(0, device="cpu")
        self.seconds = 0.0
        tower = getattr(adapter.base, "vision_tower", None)
        taken = getattr(adapter.base.config, "vision_feature_layer", None)
        layers = None if tower is None else _layers(tower)
        if tower is None or layers is None or not isinstance(taken, int):
            raise UnsupportedInputError(
                f"{type(adapter.base).__name__} has no attention of a vision tower at hand: "
                "expected a vision_tower with layers, and one vision_feature_layer, as in LLaVA"
            )
        number = taken if taken < 0 else taken - 1 - len(layers)
        if not 0 < -number <= len(layers):
            raise UnsupportedInputError(
                f"features are taken from before the {len(layers)} layers of the vision tower: "
                "there is no attention that made them"
            )
        self._module: Any = layers[number].self_attn
        self._backend = tower.config._attn_implementation
        self._begin = sum(name.endswith("class_embedding") for name, _ in tower.named_parameters())

    def install(self, undo: ExitStack) -> None:
        """Begins to listen; ``undo`` ends it."""
        capture.install(self._backend)
        undo.callback(capture.uninstall, self._backend)
        capture.start(self._module, self._record)
        undo.callback(capture.stop, self._module)

    def guidance(self, block: GuidanceBlock) -> Tensor:
        """Saliency of each vision token, `[batch, vision]`.

        Raises:
            UnsupportedInputError: Vision tokens are not one for each patch.
        """
        tokens = int(block.vision_mask.sum())
        if len(self.saliency) != tokens:
            raise UnsupportedInputError(
                f"the vision tower has {len(self.saliency)} patches for {tokens} vision tokens: "
                "expected one each"
            )
        weight = torch.zeros(block.vision_mask.shape, device=block.vision_mask.device)
        return weight.masked_scatter(block.vision_mask, self.saliency.to(weight.device))

    def _record(self, query: Tensor, key: Tensor, scaling: float, softcap: float | None) -> None:
        started = time.perf_counter()
        with torch.no_grad():
            rows = query[:, :, : self._begin] if self._begin else query
            share = attended(rows, key, scaling, softcap)[:, self._begin :]
            self.saliency = share.reshape(-1)
            self.keys = key[:, :, self._begin :].transpose(1, 2).flatten(0, 1).flatten(1)
        self.seconds = time.perf_counter() - started


def attended(query: Tensor, key: Tensor, scaling: float, softcap: float | None = None) -> Tensor:
    """Attention that each key gets, averaged over queries and heads, `[picture, key]`.

    Args:
        query: `[picture, head, query, channel]`.
        key: `[picture, head, key, channel]`.
        scaling: Factor of the logits.
        softcap: Bound of the logits; None for none.
    """
    pictures, heads, rows, _ = query.shape
    total = torch.zeros(pictures, key.shape[2], device=key.device)
    step = at_once(pictures * heads * key.shape[2], key.device)
    for start in range(0, rows, step):
        logits = attention_logits(query[:, :, start : start + step], key, scaling, softcap)
        total += logits.softmax(dim=3).mean(dim=1).sum(dim=1)
    return total / rows


def _layers(tower: nn.Module) -> nn.ModuleList | None:
    """The tower's own layers, if they have a ``self_attn``."""
    for name, module in tower.named_modules():
        if name.endswith("layers") and isinstance(module, nn.ModuleList) and len(module):
            return module if hasattr(module[0], "self_attn") else None
    return None
