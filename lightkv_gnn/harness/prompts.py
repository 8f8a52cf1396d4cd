"""Conversations with pictures, as transformers' chat templates take them, to a model's inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from transformers.image_utils import load_image

from lightkv_gnn.asking.prompts import as_chat, processed
from lightkv_gnn.errors import UnsupportedInputError
from lightkv_gnn.sources import as_rgb, read_picture

_LONGEST_PATH = 1024  # a picture may come as text itself, in base64

Chat = Sequence[Mapping[str, Any]]
"""Messages of a role and a list of contents, such as ``{"type": "image", "image": picture}``."""


def pictures_of(chat: Chat) -> list[Image.Image]:
    """Its pictures in order, as processors see them.

    Raises:
        UnsupportedInputError: It has videos or sounds.
        ValueError: A picture cannot be read; see ``read_picture``.
    """
    found = []
    for part in _contents(chat):
        kind = part["type"]
        if kind == "image":
            found.append(_picture(part["image"]))
        elif kind != "text":
            raise UnsupportedInputError(
                f"a question comes with {kind} content: the model lightkv takes text and pictures; "
                "tasks that give a video as pictures work"
            )
    return found


def _picture(source: Any) -> Image.Image:
    if isinstance(source, Image.Image):
        return as_rgb(source)
    if isinstance(source, str) and len(source) < _LONGEST_PATH and Path(source).is_file():
        return read_picture(source)
    picture: Image.Image = load_image(source)
    return picture


def as_inputs(
    model: Any, processor: Any, chats: Sequence[Chat], pictures: Sequence[list[Image.Image]]
) -> Any:
    """A batch of conversations as the model takes it, padded at the left, on its device.

    Args:
        model: The model.
        processor: Its processor.
        chats: Conversations that all have pictures, or all have none.
        pictures: Of each; see :func:`pictures_of`.
    """
    images = list(pictures) if any(pictures) else None
    texts = [as_text(processor, chat) for chat in chats]
    return processed(model, processor, images, texts, padding=True, padding_side="left")


def as_text(processor: Any, chat: Chat) -> str:
    """A conversation in the model's chat format, up to where the answer begins.

    Raises:
        UnsupportedInputError: It has several turns, and the processor has no chat template.
    """
    if getattr(processor, "chat_template", None):
        return str(processor.apply_chat_template(chat, add_generation_prompt=True))
    if [message["role"] for message in chat] != ["user"]:
        raise UnsupportedInputError(
            f"{type(processor).__name__} has no chat template: only questions of one turn can be "
            "put without"
        )
    words = [part["text"] for part in _contents(chat) if part["type"] == "text"]
    images = sum(part["type"] == "image" for part in _contents(chat))
    return as_chat(processor, "\n".join(words), images)


def _contents(chat: Chat) -> Iterable[Mapping[str, Any]]:
    return (part for message in chat for part in message["content"])
