"""The layers of a stock model one by one, without a cache, on ever fewer tokens.

Slow and plain: for layers that hold a state, in which a token that is hidden leaves its trace.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from families.loop_families import decoder_of


@torch.no_grad()
def dropping(model: Any, inputs: dict[str, Tensor], gone: Sequence[set[int]]) -> dict[int, Tensor]:
    """Logits of each token that is left, by its place in one sample without padding.

    Args:
        model: With eager attention, whose masks are tensors.
        inputs: Of the sample, answers included.
        gone: Tokens that each layer does not get.
    """
    decoder = decoder_of(model)
    with _noted(decoder) as given:
        model(**inputs, use_cache=False)
    hidden, left = given[0][0][0], list(range(given[0][0][0].shape[1]))
    for layer, (_, kwargs), missing in zip(decoder.layers, given, gone, strict=True):
        rows = torch.tensor([row for row, token in enumerate(left) if token not in missing])
        left = [token for token in left if token not in missing]
        hidden, places = hidden[:, rows], torch.tensor(left)
        mask, tables = kwargs["attention_mask"], kwargs["position_embeddings"]
        hidden = layer(
            hidden,
            attention_mask=None if mask is None else mask[:, :, places][:, :, :, places],
            position_embeddings=tables and tuple(table[:, places] for table in tables),
        )
    norm = decoder.norm if hasattr(decoder, "norm") else decoder.embedding_norm
    logits = model.get_output_embeddings()(norm(hidden))[0]
    return dict(zip(left, logits, strict=True))


@contextmanager
def _noted(decoder: Any) -> Iterator[list[tuple[Any, Any]]]:
    given: list[tuple[Any, Any]] = []

    def note(layer: Any, args: Any, kwargs: Any) -> None:
        given.append((args, kwargs))

    hooks = [x.register_forward_pre_hook(note, with_kwargs=True) for x in decoder.layers]
    try:
        yield given
    finally:
        for hook in hooks:
            hook.remove()


def answered(inputs: dict[str, Tensor], tokens: Sequence[int]) -> dict[str, Tensor]:
    """Inputs of a sample, with tokens of text after it."""
    ids = torch.tensor([list(tokens)])
    more = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {
        name: torch.cat([x, more.get(name, torch.zeros_like(ids))], -1).to(x.dtype)
        if name.endswith("_ids") or name == "attention_mask"
        else x
        for name, x in inputs.items()
    }
