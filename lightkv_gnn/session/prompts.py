"""Which text of a call is the prompt: it guides, and an answer behind it does not."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from lightkv_gnn.errors import UnsupportedInputError

IGNORED = -100
"""The label of what is not learnt, which is the prompt."""

LONG = 256
"""Tokens behind the last picture, of which many may be an answer's."""

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

Prompt = Sequence[int] | Tensor
"""Tokens of each sample's prompt, padding not counted; or which ones, `[batch, token]` bool."""


def prompt_mask(prompt: Prompt, real: Tensor) -> Tensor:
    """The prompt's tokens, `[batch, token]` bool, on the CPU; padding may be among them.

    Args:
        prompt: As it was said.
        real: Tokens of the call that are not padding, `[batch, token]` bool, on the CPU.

    Raises:
        UnsupportedInputError: It does not fit the call.
    """
    batch = real.shape[0]
    if isinstance(prompt, Tensor) and prompt.dtype == torch.bool:
        _check_shape("prompt", prompt, real)
        return prompt.cpu()
    expected = (
        f"expected a whole number for each of the call's {batch} samples, or a mask of bool, "
        f"{list(real.shape)}"
    )
    try:
        lengths = torch.as_tensor(prompt, device="cpu").cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UnsupportedInputError(f"prompt is {prompt!r}: {expected}") from error
    if lengths.shape != (batch,) or lengths.dtype not in _WHOLE:
        given = f"a {list(lengths.shape)} of {lengths.dtype}" if lengths.ndim > 1 else f"{prompt!r}"
        raise UnsupportedInputError(f"prompt is {given}: {expected}")
    held = real.sum(1)
    for sample, (length, most) in enumerate(zip(lengths.tolist(), held.tolist(), strict=True)):
        if not 0 <= length <= most:
            raise UnsupportedInputError(
                f"prompt has {length} tokens for sample {sample}, which has {most} in this call: "
                f"expected 0 to {most}, placeholders of pictures counted and padding not"
            )
    return real.cumsum(1) <= lengths[:, None]


def unlabelled(labels: Tensor, real: Tensor) -> Tensor:
    """The prompt's tokens where those of the answer have labels, `[batch, token]` bool, on the CPU.

    Raises:
        UnsupportedInputError: There is not a label for each token.
    """
    _check_shape("labels", labels, real)
    return (labels == IGNORED).cpu()


def warn_of_silence(vision: Tensor, real: Tensor, prompt: Tensor) -> bool:
    """Warns where labels leave a sample no text that guides; whether it did.

    Args:
        vision: Placeholders of pictures, `[batch, token]` bool, on the CPU.
        real: Tokens that are not padding, likewise.
        prompt: Tokens without a label, likewise.
    """
    silent = vision.any(1) & ~(real & ~vision & prompt).any(1)
    if not bool(silent.any()):
        return False
    warnings.warn(
        f"lightkv_gnn: all text of sample {int(silent.long().argmax())} has labels, so none of it "
        f"is a prompt that could guide: expected {IGNORED} where nothing is to be learnt, or a "
        "call in `with handle.prompt(lengths):`",
        stacklevel=2,
    )
    return True


def warn_of_answers(vision: Tensor, real: Tensor) -> bool:
    """Warns where much text follows the pictures in a call for scores; whether it did.

    Args:
        vision: Placeholders of pictures, `[batch, token]` bool, on the CPU.
        real: Tokens that are not padding, likewise.
    """
    behind = (vision.flip(1).cumsum(1) == 0) & real.flip(1)
    most = int(behind.sum(1).max())
    if most <= LONG:
        return False
    warnings.warn(
        f"lightkv_gnn: {most} tokens of text follow the pictures of a call that asks for the "
        "logits of all tokens, and all of them guide. If an answer is among them, say so, since it "
        "would guide its own scores: pass labels, or call in `with handle.prompt(lengths):`",
        stacklevel=2,
    )
    return True


def _check_shape(name: str, given: Tensor, real: Tensor) -> None:
    if given.shape != real.shape:
        raise UnsupportedInputError(
            f"{name} has shape {list(given.shape)}: expected [sample, token] = {list(real.shape)}, "
            "as the call's tokens"
        )
