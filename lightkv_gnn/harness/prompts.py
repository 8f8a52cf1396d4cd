"""Conversations with pictures, as transformers' chat templates take them, to a model's inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image
from transformers.image_utils import load_image

from lightkv_gnn.asking.prompts import as_chat, processed
from lightkv_gnn.errors import UnsupportedInputError

Chat = Sequence[Mapping[str, Any]]
"""Messages of a role and a list of contents, such as ``{"type": "image", "image": picture}``."""


def pictures_of(chat: Chat) -> list[Image.Image]:
    """Its pictures in order, as processors see them.

    Raises:
        UnsupportedInputError: It has videos or sounds.
    """
    found = []
    for part in _contents(chat):
        kind = part["type"]
        if kind == "image":
            found.append(load_image(part["image"]))
        elif kind != "text":
            raise UnsupportedInputError(
                f"a question comes with {kind} content: the model lightkv takes text and pictures; "
                "tasks that give a video as pictures work"
            )
    return found


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
