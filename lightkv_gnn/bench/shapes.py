"""Decoders of published and of smaller shapes, with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
)

PATCH = 4
VOCABULARY = 1024
IMAGE_TOKEN = 3
TEXT = 64
"""Text tokens behind the pictures."""


@dataclass(frozen=True)
class Shape:
    """A decoder and what it is shown.

    Attributes:
        layers: Of the decoder.
        channels: Of the hidden states.
        inner: Channels of the feed-forward part.
        heads: Attention heads.
        kv_heads: Key-value heads.
        side: Rows and columns of vision tokens of each picture.
        pictures: Of each sample; the tiles of a large one.
        family: "llama", or "qwen2" with biases in its projections.
    """

    layers: int
    channels: int
    inner: int
    heads: int
    kv_heads: int
    side: int = 24
    pictures: int = 1
    family: str = "llama"

    @property
    def vision(self) -> int:
        """Vision tokens of a sample."""
        return self.pictures * self.side**2


SHAPES = {
    "tiny": Shape(8, 96, 256, 4, 4, side=16),  # as the bundled model
    "small": Shape(8, 512, 1376, 8, 8),
    "mid": Shape(16, 1024, 2752, 16, 16),
    "mid-next": Shape(16, 1024, 2752, 16, 16, pictures=5),
    "llama-1b": Shape(22, 2048, 5632, 32, 4),
    "llava-1.5-7b": Shape(32, 4096, 11008, 32, 32),
    "llava-next-7b": Shape(32, 4096, 11008, 32, 32, pictures=5),
    "llava-next-13b": Shape(40, 5120, 13824, 40, 40, pictures=5),
    "qwen2.5-vl-7b": Shape(28, 3584, 18944, 28, 4, side=36, family="qwen2"),
}
"""Decoders by name.  All of them sit in a LLaVA with a vision tower of hardly any weight and a
small vocabulary, since only the decoder is compared."""


def config_of(shape: Shape) -> LlavaConfig:
    """The configuration of a LLaVA whose decoder has that shape."""
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        projection_dim=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=shape.side * PATCH,
        patch_size=PATCH,
    )
    kind = {"llama": LlamaConfig, "qwen2": Qwen2Config}[shape.family]
    text = kind(
        vocab_size=VOCABULARY,
        hidden_size=shape.channels,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=16384,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        image_seq_length=shape.side**2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def build(shape: Shape, dtype: torch.dtype, device: torch.device) -> Any:
    """A LLaVA with random weights whose decoder has that shape."""
    config = config_of(shape)
    with _made_as(dtype), device, torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config)
    return model.eval()


@contextmanager
def _made_as(dtype: torch.dtype) -> Iterator[None]:
    """New weights have that dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def inputs_of(shape: Shape, batch: int, model: Any) -> dict[str, Tensor]:
    """Random pictures, and random words behind them."""
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(IMAGE_TOKEN + 1, VOCABULARY, (batch, TEXT), generator=generator)
    ids = torch.cat([torch.full((batch, shape.vision), IMAGE_TOKEN), words], dim=1)
    pixels = torch.randn(
        batch * shape.pictures, 3, shape.side * PATCH, shape.side * PATCH, generator=generator
    )
    return {
        "input_ids": ids.to(model.device),
        "attention_mask": torch.ones_like(ids).to(model.device),
        "pixel_values": pixels.to(model.device, model.dtype),
    }
