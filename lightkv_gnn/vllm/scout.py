"""Guidance by the prompt before the decoder runs: its first layer's queries and keys, as a scout.

Text and picture are normed and projected as the first layer does, without rotary positions: what a
picture's token says does not depend on how far the question is, and no cache is touched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightkv_gnn.stage.guidance import (
    GuidanceBlock,
    GuidanceFunction,
    prompt_guidance,
    text_shares,
)
from lightkv_gnn.vllm.libraries import ranks_module

ATTENTIONS = ("LlamaAttention", "MistralAttention", "Qwen2Attention", "Qwen3Attention")
"""vLLM's classes of attention whose queries and keys are computed as here."""


class Scout:
    """Weighs a picture's tokens by the text that guides it.

    Args:
        layer: The decoder's first layer, as vLLM has it.
        embed: Gives tokens `[token]` their embeddings, `[token, channel]`.
        kind: As for :func:`~lightkv_gnn.stage.guidance.prompt_guidance`.
        ranks: The processes that share the layer's heads.

    Raises:
        ValueError: The layer's attention is of another kind than :data:`ATTENTIONS`.
    """

    def __init__(
        self,
        layer: Any,
        embed: Callable[[Tensor], Tensor],
        kind: Any,
        ranks: Any,
    ) -> None:
        name = type(getattr(layer, "self_attn", None)).__name__
        if name not in ATTENTIONS or not hasattr(layer, "input_layernorm"):
            raise ValueError(
                f"guidance is {kind!r}, and the decoder's first layer has an attention of "
                f"{name}: expected one of {ATTENTIONS}; start it with guidance 'none'"
            )
        self.layer, self.embed, self.kind, self.ranks = layer, embed, kind, ranks

    def __call__(self, features: Tensor, text: Tensor) -> Tensor:
        """Logarithm of each vision token's guidance, `[token]`, float32; the same on all ranks.

        Args:
            features: Of a picture, as the decoder would get them whole, `[token, channel]`.
            text: Tokens that guide it, `[text]`; no two weigh alike if there are none.
        """
        vision, words = len(features), len(text)
        states = torch.cat([features, self.embed(text).to(features.dtype)])
        query, key = self._projected(states)
        if callable(self.kind):  # may do with heads what it likes
            query, key = self.ranks.joined(query), self.ranks.joined(key)
        place = torch.arange(vision + words, device=features.device)[None]
        real = torch.ones_like(place, dtype=torch.bool)
        block = GuidanceBlock(
            query,
            key,
            place[:, :vision],
            place[:, vision:],
            real[:, :vision],
            real[:, vision:],
            self.layer.self_attn.scaling,
            span=(0, vision),
        )
        return prompt_guidance(block, self.kind, self._shares_of_all).weight[0]

    def _projected(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys of this process's heads, `[1, head, token, channel]`."""
        attention = self.layer.self_attn
        projected, _ = without_adapter(attention.qkv_proj)(self.layer.input_layernorm(states))
        found = []
        sizes = [attention.q_size, attention.kv_size, attention.kv_size]
        for part, norm in zip(projected.split(sizes, dim=-1), ("q_norm", "k_norm"), strict=False):
            heads = part.unflatten(-1, (-1, attention.head_dim))
            if hasattr(attention, norm):
                heads = getattr(attention, norm)(heads)
            found.append(heads.transpose(0, 1)[None])
        return found[0], found[1]

    def _shares_of_all(self, *args: Any) -> Tensor:
        shares: Tensor = self.ranks.summed(text_shares(*args))
        return shares


def without_adapter(module: Any) -> Any:
    """What a request's LoRA adapter is wrapped around: a picture's hash knows of no adapter."""
    return getattr(module, "base_layer", module)


def tensor_ranks() -> Any:
    """The processes of vLLM's tensor parallelism, as a stage knows them."""
    from vllm.distributed import get_tp_group

    group = get_tp_group()
    return ranks_module().Ranks(group=group.device_group if group.world_size > 1 else None)


def scout_of(model: Any, kind: str | GuidanceFunction, ranks: Any) -> Scout | None:
    """The scout of a model that vLLM has made; None where no prompt guides.

    Raises:
        ValueError: The model's decoder is of a kind that is not known.
    """
    if kind == "none":
        return None
    decoder = model.get_language_model().model
    return Scout(
        decoder.layers[decoder.start_layer],
        lambda text: without_adapter(decoder.embed_tokens)(text),
        kind,
        ranks,
    )
