"""Prompts and pictures as what a model takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from lightkv_gnn.session.placement import input_device

Pictures = Image.Image | Sequence[Image.Image]


def as_inputs(model: Any, processor: Any, pictures: Pictures, prompt: str) -> Any:
    """What the model takes, on its device, and what is floating in its dtype."""
    text = as_chat(processor, prompt, 1 if isinstance(pictures, Image.Image) else len(pictures))
    return processed(model, processor, pictures, [text])


def processed(model: Any, processor: Any, images: Any, texts: Sequence[str], **options: Any) -> Any:
    """What the model takes of several prompts in its chat format, each with its pictures."""
    options |= marks(processor, texts[0])  # all are of one template
    inputs = processor(images=images, text=list(texts), return_tensors="pt", **options)
    return inputs.to(input_device(model), model.dtype)


def marks(processor: Any, text: str) -> dict[str, bool]:
    """Keeps a processor from marking the begin of a text a second time that is marked already."""
    begin = processor.tokenizer.bos_token
    return {"add_special_tokens": False} if begin and text.startswith(begin) else {}


def as_chat(processor: Any, prompt: str, images: int = 1) -> str:
    """The prompt in the model's chat format; in LLaVA-1.5's or PaliGemma's if it has none.

    Args:
        processor: The model's.
        prompt: What to ask.
        images: Pictures before it.
    """
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}] * images + [{"type": "text", "text": prompt}]
        messages = [{"role": "user", "content": content}]
        return str(processor.apply_chat_template(messages, add_generation_prompt=True))
    begin = getattr(processor, "boi_token", None)
    image = str(begin or getattr(processor, "image_token", "<image>"))
    if image == "<|image_pad|>":
        image = f"<|vision_start|>{image}<|vision_end|>"
    if type(processor).__name__.startswith("PaliGemma"):
        return f"{image * images}{prompt}"
    return f"USER: {image * images}\n{prompt} ASSISTANT:"
