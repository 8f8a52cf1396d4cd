"""The stock models that the loop is compared with, and what is asked of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from models import CACHE
from torch import Tensor, nn

from families.geometry import tiles_of
from families.inputs import Prompt, TileTruth, alone
from families.loop_families import decoder_of
from families.models import tiny


@cache
def model_of(family: str) -> Any:
    return tiny(family, "eager")


def inputs_of(
    family: str, prompt: Prompt, seed: int = 0
) -> tuple[dict[str, Tensor], list[TileTruth]]:
    model = model_of(family)
    [(_, inputs)] = alone(family, model, prompt, seed=seed)
    return inputs, tiles_of(family, model, prompt)


def error(actual: Tensor, expected: Tensor) -> float:
    """Difference, relative to the largest logit."""
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max() / expected.abs().max())


def lengths_of(past: Any) -> list[int]:
    return [layer.keys.shape[-2] for layer in past.layers]


@torch.no_grad()
def stock_steps(model: nn.Module, out: Any, tokens: Sequence[int]) -> Tensor:
    """Logits after a prefill ``out`` and after each of ``tokens`` but the last."""
    logits = [out.logits[0, -1]]
    for token in tokens[:-1]:
        ids = torch.tensor([[token]])
        logits.append(model(input_ids=ids, **{CACHE: out[CACHE]}).logits[0, -1])
    return torch.stack(logits)


def continued(model: Any, first: dict[str, Tensor], then: dict[str, Tensor]) -> dict[str, Tensor]:
    """``then`` as the stock model wants it after ``first``."""
    types, grids = "mm_token_type_ids", "image_grid_thw"
    more = {name: value for name, value in then.items() if name != "attention_mask"}
    both = {name: torch.cat([first[name], more[name]], -1) for name in first if "ids" in name}
    if "token_type_ids" in both:
        more["token_type_ids"] = both["token_type_ids"]
    if types in both:
        sizes = torch.cat([first[grids], then[grids]])
        positions, _ = model.model.get_rope_index(both["input_ids"], both[types], sizes)
        more["position_ids"] = positions[:, :, first["input_ids"].shape[1] :]
    return more


@contextmanager
def hidden_from_layers(
    model: nn.Module, gone: Sequence[set[int]], *, renumber: bool = False
) -> Iterator[None]:
    """Keeps each layer of a stock model, run in eager mode, from seeing some tokens.

    With ``renumber`` the positions of the others go on as if these had never been.
    """

    def hide(number: int, block: nn.Module, args: Any, kwargs: Any) -> Any:
        mask = kwargs["attention_mask"].clone()
        total = kwargs[CACHE].get_seq_length(number) + mask.shape[-2]
        first = total - mask.shape[-1]  # sliding layers forget
        mask[..., [j - first for j in gone[number] if j >= first]] = torch.finfo(mask.dtype).min
        kwargs = {**kwargs, "attention_mask": mask}
        if renumber:
            turned = kwargs["position_ids"].clone()
            for i, place in enumerate(range(total - mask.shape[-2], total)):
                turned[:, i] -= sum(j < place for j in gone[number])
            kwargs["position_ids"] = turned
            kwargs["position_embeddings"] = decoder_of(model).rotary_emb(args[0], turned)
        return args, kwargs

    blocks = enumerate(decoder_of(model).layers)
    handles = [
        block.register_forward_pre_hook(partial(hide, number), with_kwargs=True)
        for number, block in blocks
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
