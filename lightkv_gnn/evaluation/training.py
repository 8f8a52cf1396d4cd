"""Training small models from scratch: what suites share, seeded, on a CPU or a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm


@dataclass(frozen=True)
class Recipe:
    """How to train: AdamW, a linear warm-up, then a cosine to zero.

    Attributes:
        steps: Of the optimiser.
        batch: Samples a step.
        layers: Of the decoder, the listening layer not counted.
        rate: Highest learning rate.
        warmup: Steps until it.
    """

    steps: int = 300
    batch: int = 32
    layers: int = 3
    rate: float = 3e-3
    warmup: int = 30

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        falling = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.rate * min(1.0, (step + 1) / self.warmup) * falling


def fit(model: nn.Module, recipe: Recipe, loss_at: Callable[[int], Tensor], title: str) -> None:
    """Trains what of a model requires gradients, with a progress bar.

    Args:
        model: In training mode, where it is to be trained.
        recipe: How.
        loss_at: Loss of a step, counted from 0, on fresh samples.
        title: Of the bar.
    """
    learnt = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(learnt, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.01)
    bar = tqdm(range(recipe.steps), desc=title, mininterval=1)
    for step in bar:
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate_at(step)
        loss = loss_at(step)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimiser.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
