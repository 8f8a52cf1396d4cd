"""Training the tiny Qwen2.5-VL from scratch: seeded, on a CPU or a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightkv_gnn.evaluation.listening import with_listening_layer
from lightkv_gnn.evaluation.rectangles.inputs import asked, inputs_of
from lightkv_gnn.evaluation.rectangles.model import LAYERS, build_model
from lightkv_gnn.evaluation.rectangles.words import IDS
from lightkv_gnn.evaluation.rectangles.world import (
    BLOCK,
    COLOURS,
    SHAPES,
    Picture,
    draw_picture,
    questions_of,
    render,
)
from lightkv_gnn.evaluation.training import Recipe, fit

WORDS = 3
"""Of a question and its answer."""


@dataclass(frozen=True)
class RectangleRecipe(Recipe):
    """How to train; ``batch`` is pictures a step.

    Attributes:
        shapes: Questions about each picture that name a colour; every corner is asked for too.
        grounding: Weight of the grounding loss at first; it falls to zero halfway through.
    """

    steps: int = 600
    batch: int = 16
    layers: int = LAYERS
    warmup: int = 50
    shapes: int = 8
    grounding: float = 1.0

    def grounding_at(self, step: int) -> float:
        """Weight of the grounding loss in a step."""
        return self.grounding * max(0.0, 1 - 2 * step / self.steps)


def train(recipe: RectangleRecipe, seed: int, device: str = "cpu") -> Any:
    """Trains a model; the same seed on a CPU gives the same one.

    Returns:
        The model with its listening layer, in evaluation mode.
    """
    model: Any = build_model(seed, recipe.layers)
    model = model.to(device).train()
    rng = np.random.default_rng(seed)
    fit(
        model,
        recipe,
        lambda step: _loss(model, recipe, rng, recipe.grounding_at(step)),
        "training on rectangles",
    )
    longer = with_listening_layer(model, lambda layers: build_model(0, layers))
    return longer.to(device).eval()


def _loss(
    model: Any, recipe: RectangleRecipe, rng: np.random.Generator, grounding: float
) -> Tensor:
    """Cross entropy of the answers about fresh pictures, and of what their cells show."""
    pictures = [draw_picture(rng) for _ in range(recipe.batch)]
    texts = [_questions(picture, recipe.shapes, rng) for picture in pictures]
    inputs = inputs_of([render(picture) for picture in pictures], texts, model.device)
    words = len(texts[0])
    target = inputs["input_ids"][:, -words:][:, WORDS - 1 :: WORDS]
    inputs |= _side_by_side(model, inputs, words)
    hidden = model.model(**inputs, use_cache=False).last_hidden_state[:, -words:]
    logits = model.lm_head(hidden[:, WORDS - 2 :: WORDS])
    loss = cross_entropy(logits.flatten(0, 1), target.flatten())
    return loss + grounding * _grounding(model, inputs, pictures) if grounding else loss


def _questions(picture: Picture, shapes: int, rng: np.random.Generator) -> list[int]:
    """Ids of questions in random order, each followed by its answer."""
    about = questions_of(picture, "shape")
    chosen = [about[n] for n in rng.permutation(len(about))[:shapes]]
    chosen += questions_of(picture, "position")
    order = rng.permutation(len(chosen))
    return [word for n in order for word in (*asked(chosen[n]), IDS[chosen[n].answer])]


def _side_by_side(model: Any, inputs: dict[str, Tensor], words: int) -> dict[str, Tensor]:
    """Mask and positions with which every question is the only one behind its picture."""
    real = inputs["attention_mask"].bool()
    width, device = real.shape[1], real.device
    names = ("image_grid_thw", "attention_mask", "mm_token_type_ids")
    given = {name: inputs[name] for name in names}
    positions, _ = model.model.get_rope_index(inputs["input_ids"], **given)
    word, first = torch.arange(words, device=device), width - words
    positions[:, :, first:] = positions[:, :, first : first + 1] + word % WORDS
    question = torch.cat([word.new_full((first,), -1), word // WORDS])
    sees = (question == -1) | (question[:, None] == question)
    sees &= torch.ones_like(sees).tril()
    own = torch.eye(width, dtype=torch.bool, device=device)
    mask = (sees & real[:, None, :]) | own
    return {"attention_mask": mask[:, None], "position_ids": positions}


def _grounding(model: Any, inputs: dict[str, Tensor], pictures: list[Picture]) -> Tensor:
    """How far cells are from the words for their colours and shapes.

    A pretrained model has learnt this from captions; here it makes attention by colour start within
    a hundred steps.
    """
    pixels = (inputs["pixel_values"], inputs["image_grid_thw"])
    features = torch.cat(list(model.model.get_image_features(*pixels).pooler_output))
    shown = [np.stack([picture.colours, picture.shapes]) for picture in pictures]
    cells = [np.kron(each, np.ones((1, *BLOCK), int)).reshape(2, -1) for each in shown]
    labels = torch.from_numpy(np.concatenate(cells, axis=1)).to(features.device)
    table = model.get_input_embeddings().weight / features.shape[1] ** 0.5
    parts = [
        cross_entropy(features @ table[[IDS[name] for name in names]].T, label)
        for names, label in zip((COLOURS, SHAPES), labels, strict=True)
    ]
    return torch.stack(parts).sum()
