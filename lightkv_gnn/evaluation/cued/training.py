"""Training a model on worlds, from scratch: seeded, on a CPU or a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightkv_gnn.evaluation.cued import words
from lightkv_gnn.evaluation.cued.backgrounds import Background, photographs
from lightkv_gnn.evaluation.cued.drawing import draw
from lightkv_gnn.evaluation.cued.model import build
from lightkv_gnn.evaluation.cued.worlds import Lesson, World
from lightkv_gnn.evaluation.listening import with_listening_layer
from lightkv_gnn.evaluation.training import Recipe, fit


@dataclass(frozen=True)
class CellRecipe(Recipe):
    """How to train on worlds.

    Attributes:
        symmetric: Whether queries and keys share one projection while training.
    """

    symmetric: bool = False


def train(
    worlds: Sequence[World],
    recipe: CellRecipe,
    seed: int,
    device: str = "cpu",
    background: Background = "plain",
) -> Any:
    """Trains a model on worlds in turn, one each step.

    Args:
        worlds: All of one side.
        recipe: How.
        seed: Of the initial weights and of the lessons; the same on a CPU gives the same model.
        device: Where to train.
        background: Behind the cells; photographs are those to train on.

    Returns:
        The model with its listening layer, in evaluation mode.
    """
    side = worlds[0].side
    model: Any = build(side, recipe.layers, seed)
    model.to(device).train()
    if recipe.symmetric:
        for layer in model.model.language_model.layers:
            layer.self_attn.k_proj.weight = layer.self_attn.q_proj.weight
    generator = torch.Generator().manual_seed(seed)

    def loss_at(step: int) -> Tensor:
        lesson = worlds[step % len(worlds)].draw(generator, recipe.batch)
        if background == "photo":
            shape = (lesson.codes.shape[0], lesson.codes.shape[1])
            behind = photographs(shape, side, generator, "train")
            lesson = replace(lesson, behind=behind)
        return _loss(model, lesson, side, device)

    fit(model, recipe, loss_at, f"training on {type(worlds[0]).__name__.lower()}")
    longer = with_listening_layer(model, lambda layers: build(side, layers, seed=0))
    return longer.to(device).eval()


def inputs_of(lesson: Lesson, text: Tensor, side: int, device: str) -> dict[str, Tensor]:
    """What the model takes: a start, the pictures, and the text.

    Args:
        lesson: Has the pictures.
        text: Ids, `[batch, word]`.
        side: Cells per side.
        device: Where to put it.
    """
    batch, images, cells = lesson.codes.shape
    begin = torch.full((batch, 1), words.BEGIN)
    pictures = torch.full((batch, images * cells), words.IMAGE)
    ids = torch.cat([begin, pictures, text], dim=1).to(device)
    behind = None if lesson.behind is None else lesson.behind.flatten(0, 1)
    pixels = draw(lesson.codes.flatten(0, 1), side, behind).to(device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def _loss(model: Any, lesson: Lesson, side: int, device: str) -> Tensor:
    """Mean cross entropy of the answers' words."""
    inputs = inputs_of(lesson, lesson.text[:, :-1], side, device)
    hidden = model.model(**inputs, use_cache=False).last_hidden_state
    hidden = hidden[:, 1 - lesson.text.shape[1] :]
    answer = lesson.answer[1:].to(device)
    target = lesson.text[:, 1:].to(device)
    return torch.nn.functional.cross_entropy(
        model.lm_head(hidden[:, answer]).flatten(0, 1), target[:, answer].flatten()
    )
