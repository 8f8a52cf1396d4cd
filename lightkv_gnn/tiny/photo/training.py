"""Training of the photo LLaVA: seeded, resumable, at several resolutions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lightkv_gnn.tiny.curriculum import shown_in
from lightkv_gnn.tiny.losses import answer_loss
from lightkv_gnn.tiny.model import PATCH_SIZE
from lightkv_gnn.tiny.packing import PackedBatch, pack
from lightkv_gnn.tiny.photo.model import SIZES, begin, features, photo_processor
from lightkv_gnn.tiny.photo.questions import COLUMNS, GROUPS, ROWS, ask
from lightkv_gnn.tiny.photo.scenes import CANVAS, PhotoScene, render, sample_scene
from lightkv_gnn.tiny.photo.things import SIGNS, THINGS
from lightkv_gnn.tiny.recipe import Recipe
from lightkv_gnn.tiny.scenes import COLOURS
from lightkv_gnn.tiny.training import Trainer

__all__ = ["RECIPE", "PhotoTrainer", "patch_labels"]

RECIPE = Recipe(steps=6500, vision_steps=3000, decay_steps=1500, batch_size=12, learning_rate=7e-4)
"""How the photo LLaVA is trained; the batch is that of the smallest pictures."""

_WEIGHTED = {"what": 1.0, "presence": 2.0, "where": 2.0, "count": 3.0, "read": 3.0, "list": 0.5}
_QUESTIONS = {"what": 5, "presence": 4, "where": 4, "count": 3, "read": 1, "list": 1}
_SHARES = (0.25, 0.25, 0.5)
"""How often pictures of each of ``SIZES`` are drawn."""

_SHOWN: tuple[str, ...] = (*THINGS, *SIGNS, *(str(number) for number in range(1, 13)))


class PhotoTrainer(Trainer):
    """Goes on with the bundled model, before photographs."""

    groups = GROUPS

    def __init__(self, recipe: Recipe = RECIPE, device: str = "cpu") -> None:
        """Begin with the bundled model, and its optimiser, on a device."""
        super().__init__(recipe, device, begin(recipe.seed), photo_processor())

    def sample_pictures(self, number: int, size: int) -> tuple[list[PhotoScene], torch.Tensor]:
        """Draw scenes, and their pixels `[picture, channel, row, column]`."""
        scenes = [sample_scene(self.rng, "train") for _ in range(number)]
        arrays = np.stack([np.asarray(render(scene, size)) for scene in scenes])
        pixels = torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1
        return scenes, pixels.to(self.device)

    def _promote(self) -> None:
        """Nothing: there is one stage."""

    def _size(self) -> int:
        return int(self.rng.choice(SIZES, p=_SHARES))

    def _number(self, size: int) -> int:
        """How many pictures of a size take as long as a batch of the smallest."""
        return max(1, round(self.recipe.batch_size * (SIZES[0] / size) ** 2))

    def _loss(self) -> tuple[torch.Tensor, dict[str, float]]:
        size = self._size()
        scenes, pixels = self.sample_pictures(self._number(size), size)
        batch = self._asked(scenes, (size // PATCH_SIZE) ** 2)
        seen = features(self.model, pixels)
        embedded = self.model.get_input_embeddings()(batch.input_ids)
        places = (batch.input_ids == self.processor.image_token_id)[:, :, None]
        output: Any = self.model.model.language_model(
            inputs_embeds=embedded.masked_scatter(places, seen),
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            use_cache=False,
        )
        eos_id = self.processor.tokenizer.eos_token_id
        loss, right = answer_loss(
            output.last_hidden_state, self.model.lm_head, batch, eos_id, _WEIGHTED
        )
        grounding, shares = self._grounded(seen, scenes, size)
        return loss + 0.5 * grounding, right | shares

    def _vision_loss(self) -> tuple[torch.Tensor, dict[str, float]]:
        size = self._size()
        scenes, pixels = self.sample_pictures(2 * self._number(size), size)
        return self._grounded(features(self.model, pixels), scenes, size)

    def _asked(self, scenes: list[PhotoScene], vision: int) -> PackedBatch:
        rows = []
        for scene in scenes:
            questions = [
                ask(scene, group, self.rng)
                for group, number in _QUESTIONS.items()
                for _ in range(number if group != "read" or scene.sign is not None else 0)
            ]
            rows.append(self.encode(questions, vision=vision))
        return pack(rows, self.processor.tokenizer.pad_token_id).to(self.device)

    def _grounded(
        self, seen: torch.Tensor, scenes: list[PhotoScene], size: int
    ) -> tuple[torch.Tensor, dict[str, float]]:
        labels = [torch.from_numpy(patch_labels(scene, size // PATCH_SIZE)) for scene in scenes]
        return self._ground(
            seen.flatten(0, 1),
            torch.stack(labels).to(self.device),
            (tuple(COLOURS), _SHOWN, ROWS, COLUMNS),
        )


def patch_labels(scene: PhotoScene, patches: int) -> np.ndarray:
    """What each of ``patches`` by ``patches`` patches shows, and where its first corner lies.

    Returns:
        Indices of a colour, of a thing or the words of a sign, of a row and of a column, int64
        `[patch, 4]` in raster order; -1 where it shows a photograph, and "white" for signs.
    """
    edge = CANVAS / patches
    boxes = [(item.x, item.y, item.size, item.size) for item in scene.objects]
    shown = [(list(COLOURS).index(item.colour), _SHOWN.index(item.shape)) for item in scene.objects]
    if scene.sign is not None:
        sign = scene.sign
        boxes.append((sign.x, sign.y, sign.width, sign.height))
        shown.append((list(COLOURS).index("white"), _SHOWN.index(sign.text)))
    seen = shown_in(np.arange(patches) * edge, edge, boxes, shown, edge * edge / 5)
    third = np.arange(patches) * len(ROWS) // patches
    places = np.stack(np.meshgrid(third, third, indexing="ij"), axis=-1).reshape(-1, 2)
    return np.concatenate([seen, np.where(seen[:, :1] < 0, -1, places)], axis=1)
