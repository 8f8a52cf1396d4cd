"""Training a model on worlds, from scratch: seeded, on a CPU or a GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lightkv_gnn.evaluation.cued import words
from lightkv_gnn.evaluation.cued.drawing import draw
from lightkv_gnn.evaluation.cued.model import build
from lightkv_gnn.evaluation.cued.worlds import Lesson, World
from lightkv_gnn.evaluation.listening import with_listening_layer


@dataclass(frozen=True)
class Recipe:
    """How to train: AdamW, a linear warm-up, then a cosine to zero.

    Attributes:
        steps: Of the optimiser.
        batch: Samples a step.
        layers: Of the decoder, the listening layer not counted.
        rate: Highest learning rate.
        warmup: Steps until it.
        symmetric: Whether queries and keys share one projection while training.
    """

    steps: int = 300
    batch: int = 32
    layers: int = 3
    rate: float = 3e-3
    warmup: int = 30
    symmetric: bool = False

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        falling = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.rate * min(1.0, (step + 1) / self.warmup) * falling


def train(worlds: Sequence[World], recipe: Recipe, seed: int, device: str = "cpu") -> Any:
    """Trains a model on worlds in turn, one each step.

    Args:
        worlds: All of one side.
        recipe: How.
        seed: Of the initial weights and of the lessons; the same on a CPU gives the same model.
        device: Where to train.

    Returns:
        The model with its listening layer, in evaluation mode.
    """
    side = worlds[0].side
    model: Any = build(side, recipe.layers, seed)
    model.to(device).train()
    if recipe.symmetric:
        for layer in model.model.language_model.layers:
            layer.self_attn.k_proj.weight = layer.self_attn.q_proj.weight
    learnt = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(learnt, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    bar = tqdm(range(recipe.steps), desc=f"training on {type(worlds[0]).__name__.lower()}")
    for step in bar:
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate_at(step)
        lesson = worlds[step % len(worlds)].draw(generator, recipe.batch)
        loss = _loss(model, lesson, side, device)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimiser.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    longer = with_listening_layer(model, lambda layers: build(side, layers, seed=0))
    return longer.to(device).eval()


def inputs_of(codes: Tensor, text: Tensor, side: int, device: str) -> dict[str, Tensor]:
    """What the model takes: a start, the pictures, and the text.

    Args:
        codes: Of cells, `[batch, image, cell]`.
        text: Ids, `[batch, word]`.
        side: Cells per side.
        device: Where to put it.
    """
    batch, images, cells = codes.shape
    begin = torch.full((batch, 1), words.BEGIN)
    pictures = torch.full((batch, images * cells), words.IMAGE)
    ids = torch.cat([begin, pictures, text], dim=1).to(device)
    pixels = draw(codes.flatten(0, 1), side).to(device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def _loss(model: Any, lesson: Lesson, side: int, device: str) -> Tensor:
    """Mean cross entropy of the answers' words."""
    inputs = inputs_of(lesson.codes, lesson.text[:, :-1], side, device)
    hidden = model.model(**inputs, use_cache=False).last_hidden_state
    hidden = hidden[:, 1 - lesson.text.shape[1] :]
    answer = lesson.answer[1:].to(device)
    target = lesson.text[:, 1:].to(device)
    return torch.nn.functional.cross_entropy(
        model.lm_head(hidden[:, answer]).flatten(0, 1), target[:, answer].flatten()
    )
