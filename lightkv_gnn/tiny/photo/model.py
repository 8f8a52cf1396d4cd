"""The photo LLaVA: the bundled tiny one with more words and a larger picture, and its processor."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from lightkv_gnn.tiny.model import PATCH_SIZE, build_processor, load
from lightkv_gnn.tiny.photo.questions import COLUMNS, ROWS
from lightkv_gnn.tiny.photo.scenes import CANVAS
from lightkv_gnn.tiny.photo.things import PLURALS, SIGNS, THINGS
from lightkv_gnn.tiny.words import vocabulary

__all__ = ["SIZES", "WEIGHTS", "WORDS", "begin", "features", "load_photo", "photo_processor"]

WEIGHTS = Path(__file__).parent / "weights"

SIZES = (96, 128, 192)
"""Sides of the pictures that it is trained on, in pixels: 144, 256 and 576 vision tokens."""

_ASKED = ("where", "does", "sign", "say")

WORDS: tuple[str, ...] = tuple(
    word
    for word in dict.fromkeys((*_ASKED, *ROWS, *COLUMNS, *THINGS, *PLURALS.values(), *SIGNS))
    if word not in vocabulary()
)
"""Words that the bundled model does not know; their order is part of the trained weights."""


def photo_processor() -> LlavaProcessor:
    """Build the processor: the bundled one's, for pictures of 192 pixels and with more words."""
    return build_processor(CANVAS, WORDS)


def begin(seed: int = 0) -> LlavaForConditionalGeneration:
    """The bundled model: a tower twice as deep, positions stretched, a row for each new word.

    The further layers of the tower change nothing until they are trained. The global random state
    is left as it was.
    """
    model, _ = load()
    model = model.float().train()
    _deepen(model)
    embeddings: Any = model.model.vision_tower.embeddings
    table = embeddings.position_embedding.weight.detach()
    old, new = round(len(table[1:]) ** 0.5), CANVAS // PATCH_SIZE
    grid = table[1:].T.reshape(1, -1, old, old)
    grid = torch.nn.functional.interpolate(grid, (new, new), mode="bicubic", align_corners=False)
    grid = torch.cat([table[:1], grid.flatten(2)[0].T])
    embeddings.position_embedding = torch.nn.Embedding.from_pretrained(grid, freeze=False)
    embeddings.num_positions, embeddings.num_patches = len(grid), len(grid) - 1
    embeddings.image_size = CANVAS
    embeddings.position_ids = torch.arange(len(grid))[None]
    model.config.vision_config.image_size = CANVAS
    model.config.image_seq_length = new * new
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        known = len(vocabulary())
        model.resize_token_embeddings(known + len(WORDS), mean_resizing=False)
        for rows in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            with torch.no_grad():
                rows[known:].normal_(std=float(rows[:known].std()))
    return model


def load_photo(
    device: str | torch.device = "cpu",
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The photo LLaVA that comes with the package, in evaluation mode, and its processor."""
    return load(device, folder=WEIGHTS)


def features(model: LlavaForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """Vision tokens of pictures of any size, `[picture, patch, channel]`."""
    output: Any = model.model.get_image_features(pixels, interpolate_pos_encoding=True)
    return torch.stack(list(output.pooler_output))


def _deepen(model: LlavaForConditionalGeneration) -> None:
    """Copies each layer of the tower behind the last, without what it would add."""
    layers = model.model.vision_tower.encoder.layers
    config: Any = model.config.vision_config
    copies = deepcopy(list(layers))
    with torch.no_grad():
        for layer in copies:
            for last in (layer.self_attn.out_proj, layer.mlp.fc2):
                last.weight.zero_()
                last.bias.zero_()
    layers.extend(copies)
    config.num_hidden_layers = len(layers)
