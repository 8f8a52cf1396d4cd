"""The tiny LLaVA: how it is built from code, and how the trained one is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from lightkv_gnn.tiny.scenes import IMAGE_SIZE
from lightkv_gnn.tiny.words import CHAT_TEMPLATE, build_tokenizer, vocabulary

__all__ = [
    "PATCH_SIZE",
    "WEIGHTS",
    "build_model",
    "build_processor",
    "export",
    "load",
]

WEIGHTS = Path(__file__).parent / "weights"
PATCH_SIZE = 8
_WIDTH = 96


def build_processor(size: int = IMAGE_SIZE, words: Sequence[str] = ()) -> LlavaProcessor:
    """Build the processor from code: a PIL image processor and a word-level tokenizer.

    Args:
        size: side of the pictures in pixels.
        words: more words, after those of :func:`vocabulary`.
    """
    side = {"height": size, "width": size}
    image_processor = CLIPImageProcessorPil(
        size=side, crop_size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=build_tokenizer(words),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(seed: int = 0) -> LlavaForConditionalGeneration:
    """Build the untrained model; the global random state is left as it was."""
    ids = vocabulary()
    vision = CLIPVisionConfig(
        hidden_size=_WIDTH,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
    )
    text = LlamaConfig(
        vocab_size=len(ids),
        hidden_size=_WIDTH,
        intermediate_size=256,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        initializer_range=0.06,  # the usual 0.02 is meant for models ten times as wide
        pad_token_id=ids["<pad>"],
        bos_token_id=ids["<s>"],
        eos_token_id=ids["</s>"],
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=ids["<image>"],
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    _favour_matching(model)
    return model


def load(
    device: str | torch.device = "cpu",
    attn_implementation: str | None = None,
    folder: Path = WEIGHTS,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Load the bundled model, or one like it, and its processor.

    Args:
        device: where to put the weights.
        attn_implementation: passed on to ``from_pretrained``; ``None`` keeps its default.
        folder: what :func:`export` has written.

    Returns:
        The model in evaluation mode, and the processor.

    Raises:
        ValueError: if the folder holds no weights.
    """
    if not (folder / "model.safetensors").is_file():
        raise ValueError(
            f"expected trained weights in {folder}, found none; reinstall the package, or train "
            f"them with examples/train_tiny.py or train_photo.py, --out {folder}"
        )
    extra = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True, **extra)
    processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
    return model.to(device).eval(), processor


def export(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Write a model and its processor, replacing older files one by one when all is written."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as scratch:
        model.save_pretrained(scratch)
        processor.save_pretrained(scratch)
        for file in Path(scratch).iterdir():
            file.chmod(0o644)
            file.replace(folder / file.name)


def _favour_matching(model: LlavaForConditionalGeneration) -> None:
    """Start where a token attends to tokens that resemble it, and a patch to its neighbours.

    Queries and keys begin equal, words begin large beside what the layers add to them, and patch
    positions begin as waves. From the library's own initial values this small model stays at
    chance for many hundred steps.
    """
    decoder, tower = model.model.language_model, model.model.vision_tower
    with torch.no_grad():
        for block in tower.encoder.layers:
            block.self_attn.q_proj.weight.mul_(1.5)
            block.self_attn.k_proj.weight.copy_(block.self_attn.q_proj.weight)
        tower.embeddings.patch_embedding.weight.mul_(2)
        tower.embeddings.position_embedding.weight[1:] = 0.3 * _waves()
        decoder.embed_tokens.weight.mul_(8)
        for layer in decoder.layers:
            layer.self_attn.q_proj.weight.mul_(1.5)
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
            layer.self_attn.o_proj.weight.mul_(0.25)
            layer.mlp.down_proj.weight.mul_(0.25)


def _waves() -> torch.Tensor:
    """Return sines and cosines of a patch's row and column as ``[patch, channel]``."""
    side, quarter = IMAGE_SIZE // PATCH_SIZE, _WIDTH // 4
    rates = torch.pi / 2 ** torch.linspace(0, 5, quarter)
    angles = torch.arange(side)[:, None] * rates
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.cat([line.repeat_interleave(side, dim=0), line.repeat(side, 1)], dim=1)
