"""The settings of a training run, and what a run has reached."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

__all__ = ["Progress", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """Settings of a run: AdamW, linear warm-up, a constant rate, then a cosine to zero.

    The first ``vision_steps`` train the vision tower and projector alone, on batches twice as
    large; the rest train everything.
    """

    steps: int = 2750
    vision_steps: int = 600
    decay_steps: int = 900
    batch_size: int = 10
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    weight_decay: float = 0.01
    seed: int = 0

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        left = min(1.0, (self.steps - step) / max(1, self.decay_steps))
        begun = step - self.vision_steps if step >= self.vision_steps else step
        rising = min(1.0, (begun + 1) / self.warmup_steps)
        if step < self.vision_steps:
            rising *= 2
        return self.learning_rate * rising * 0.5 * (1 - math.cos(math.pi * left))


@dataclass
class Progress:
    """What a run has reached; everything but the tensors that a resumed run needs."""

    step: int = 0
    stage: int = 0
    stage_step: int = 0
    running: dict[str, float] = field(default_factory=dict)
