"""A first layer whose heads are shared by processes, and what each of them makes of a picture.

``shared_heads.py FOLDER RANK`` is one of two processes, and leaves its ``rank-N.pt`` there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightkv_gnn.stage.guidance import GuidanceBlock, attention_logits
from lightkv_gnn.vllm.libraries import ranks_module
from lightkv_gnn.vllm.merging import PictureMerger
from lightkv_gnn.vllm.scout import Scout
from lightkv_gnn.vllm.settings import Settings

CHANNELS, HEAD, WORDS, SIDE = 24, 8, 9, 12


class LlamaAttention:
    """Queries, keys and values of some heads, as vLLM's class of the name has them."""

    def __init__(self, heads: int, kv_heads: int, rank: int, ranks: int) -> None:
        torch.manual_seed(3)
        parts = []
        for whole in (heads, kv_heads, kv_heads):
            weight = torch.randn(whole, HEAD, CHANNELS) / 4
            own = max(1, whole // ranks)  # a single head of keys is on every process
            parts.append(weight[rank * whole // ranks :][:own].flatten(0, 1))
        self.weight, self.head_dim, self.scaling = torch.cat(parts), HEAD, HEAD**-0.5
        self.q_size, self.kv_size = len(parts[0]), len(parts[1])

    def qkv_proj(self, states: Tensor) -> tuple[Tensor, None]:
        return states @ self.weight.T, None


class Qwen3Attention(LlamaAttention):
    """Normed, each head by itself."""

    q_norm, k_norm = nn.RMSNorm(HEAD), nn.RMSNorm(HEAD)


def table() -> nn.Embedding:
    torch.manual_seed(5)
    return nn.Embedding(50, CHANNELS)


def picture() -> tuple[Tensor, Tensor]:
    """Features, and the text that guides."""
    made = torch.Generator().manual_seed(7)
    features = torch.randn(SIDE * SIDE, CHANNELS, generator=made)
    return features, torch.randint(50, (WORDS,), generator=made)


def most_attended(block: GuidanceBlock) -> Tensor:
    """No sum over heads: each process alone would find another maximum."""
    logits = attention_logits(block.text_query, block.vision_key, block.scaling)
    return logits.amax(dim=(1, 2)).exp()


CASES: dict[str, tuple[type[LlamaAttention], int, int, Any]] = {
    "text to vision": (LlamaAttention, 4, 2, "text_to_vision"),
    "vision to text": (LlamaAttention, 4, 2, "vision_to_text"),
    "one head of keys": (LlamaAttention, 4, 1, "text_to_vision"),
    "normed": (Qwen3Attention, 4, 4, "text_to_vision"),
    "a function": (LlamaAttention, 4, 2, most_attended),
}
"""Of each: the attention, its heads, those of its keys, and the guidance."""


@torch.no_grad()
def run(case: str, rank: int = 0, ranks: int = 1) -> dict[str, Tensor]:
    """Guidance and survivors of a picture, as one of some processes finds them."""
    attention, heads, kv_heads, kind = CASES[case]
    layer = SimpleNamespace(
        self_attn=attention(heads, kv_heads, rank, ranks), input_layernorm=nn.RMSNorm(CHANNELS)
    )
    group = ranks_module().Ranks(group=dist.group.WORLD if ranks > 1 else None)
    scout = Scout(layer, table(), kind, group)
    features, text = picture()
    merger = PictureMerger(Settings(0.25, guidance=kind), group, scout)
    merged = merger(features, (SIDE, SIDE), text=text)
    return {"guidance": scout(features, text), "merged": merged}


if __name__ == "__main__":
    rank = int(sys.argv[2])
    store = f"file://{Path(sys.argv[1]) / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    torch.save({case: run(case, rank, 2) for case in CASES}, Path(sys.argv[1]) / f"rank-{rank}.pt")
    dist.destroy_process_group()
