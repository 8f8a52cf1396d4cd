"""Greedy answers of a model to questions about pictures, one by one or as a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from lightkv_gnn.asking.prompts import Pictures, as_chat, as_inputs, processed

MAX_NEW_TOKENS = 48


def generate(
    model: Any,
    processor: Any,
    pictures: Pictures,
    prompt: str,
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    streamer: Any = None,
) -> str:
    """The model's greedy answer; a ``streamer`` of transformers' gets it word by word."""
    inputs = as_inputs(model, processor, pictures, prompt)
    with torch.no_grad():
        tokens = model.generate(
            **inputs, do_sample=False, max_new_tokens=max_new_tokens, streamer=streamer
        )
    return _answers(processor, inputs, tokens)[0]


def generate_all(
    model: Any,
    processor: Any,
    pictures: Sequence[Image.Image],
    prompts: Sequence[str],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[str]:
    """The model's greedy answers to a prompt about each picture, as one batch.

    The processor's tokenizer has to pad at the left.
    """
    texts = [as_chat(processor, prompt) for prompt in prompts]
    images = [[picture] for picture in pictures]
    inputs = processed(model, processor, images, texts, padding=True)
    with torch.no_grad():
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    return _answers(processor, inputs, tokens)


def _answers(processor: Any, inputs: Any, tokens: Any) -> list[str]:
    new = tokens[:, inputs["input_ids"].shape[1] :]
    return [str(text).strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
