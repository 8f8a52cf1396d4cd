"""The training loop of the tiny model: seeded, resumable, on a CPU or a GPU."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from lightkv_gnn.seams import patches_in
from lightkv_gnn.tiny.curriculum import STAGES, VISION_STAGES, patch_labels, sample_lesson
from lightkv_gnn.tiny.losses import LEADING, answer_loss, grounding_loss
from lightkv_gnn.tiny.model import build_model, build_processor
from lightkv_gnn.tiny.packing import PackedBatch, PackedRow, pack, pack_row
from lightkv_gnn.tiny.questions import GROUPS, Question
from lightkv_gnn.tiny.recipe import Progress, Recipe
from lightkv_gnn.tiny.scenes import COLOURS, SHAPES, render
from lightkv_gnn.tiny.words import format_prompt

__all__ = ["Trainer"]


class Trainer:
    """Trains the tiny model through its curriculum.

    Attributes:
        groups: Of questions; an answer token has the number of its own.
    """

    groups: ClassVar[tuple[str, ...]] = GROUPS

    def __init__(
        self,
        recipe: Recipe,
        device: str = "cpu",
        model: Any = None,
        processor: LlavaProcessor | None = None,
    ) -> None:
        """Build a model, untrained if none is given, and its optimiser on a device."""
        self.recipe, self.device, self.progress = recipe, device, Progress()
        self.rng = np.random.default_rng(recipe.seed)
        self.processor: LlavaProcessor = processor or build_processor()
        model = build_model(recipe.seed) if model is None else model
        self.model: LlavaForConditionalGeneration = model.to(device).train()
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )

    def run(self, checkpoint: Path | None = None, every: int = 100) -> None:
        """Train up to the recipe's last step, writing a checkpoint now and then."""
        bar = tqdm(total=self.recipe.steps, initial=self.progress.step, mininterval=5)
        while self.progress.step < self.recipe.steps:
            loss = self.step()
            bar.update()
            marks = {name: f"{value:.2f}" for name, value in self.progress.running.items()}
            bar.set_postfix(stage=self.progress.stage, loss=f"{loss:.3f}", **marks, refresh=False)
            if checkpoint is not None and self.progress.step % every == 0:
                self.save(checkpoint)
        bar.close()
        if checkpoint is not None:
            self.save(checkpoint)

    def step(self) -> float:
        """Take one optimiser step on fresh pictures and return the loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.rate(self.progress.step)
        seeing = self.progress.step < self.recipe.vision_steps
        loss, right = self._vision_loss() if seeing else self._loss()
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self._advance(right, seeing)
        return float(loss.detach())

    def sample_batch(self) -> tuple[torch.Tensor, torch.Tensor, PackedBatch]:
        """Draw pictures and their packed questions.

        Returns:
            Pixel values ``[batch, channel, row, column]``, patch labels ``[batch, patch, 2]`` and
            the questions.
        """
        stage = STAGES[self.progress.stage]
        images, labels, rows = [], [], []
        for _ in range(self.recipe.batch_size):
            scene, questions, image_first = sample_lesson(self.rng, stage, GROUPS)
            images.append(render(scene))
            labels.append(torch.from_numpy(patch_labels(scene)))
            rows.append(self.encode(questions, image_first))
        pixels = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        pad_id = self.processor.tokenizer.pad_token_id
        stacked = torch.stack(labels).to(self.device)
        return pixels.to(self.device), stacked, pack(rows, pad_id).to(self.device)

    def encode(
        self, questions: list[Question], image_first: bool = True, vision: int | None = None
    ) -> PackedRow:
        """Tokenize a picture's questions.

        With ``image_first`` off, the first question stands before the picture and is answered
        right behind it; the others follow the picture as always.  The picture has ``vision``
        tokens, those of the model's own size if that is not given.
        """
        vision = self.model.config.image_seq_length if vision is None else vision
        image_id = self.processor.image_token_id
        shared: list[int] = []
        branches: list[tuple[list[int], list[int], int]] = []
        for number, question in enumerate(questions):
            leads = not image_first and number == 0
            ids = self._token_ids(format_prompt(question.prompt_text, not leads))
            place = ids.index(image_id)
            if number == 0:
                shared = [*ids[:place], *[image_id] * vision]
            answer = self._token_ids(question.answer + "</s>")[1:]
            group = LEADING if leads else self.groups.index(question.group)
            branches.append((ids[place + 1 :], answer, group))
        return pack_row(shared, branches)

    def save(self, folder: Path) -> None:
        """Write everything a resumed run needs; an interruption leaves the last one whole."""
        new = folder.with_name(folder.name + ".new")
        new.mkdir(parents=True, exist_ok=True)
        save_model(self.model, str(new / "model.safetensors"))
        moments = self.optimiser.state_dict()["state"]
        tensors = {f"{n}.{name}": x for n, part in moments.items() for name, x in part.items()}
        save_file(tensors, new / "optimiser.safetensors")
        state = {"progress": asdict(self.progress), "rng": self.rng.bit_generator.state}
        (new / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        new.rename(folder)

    def resume(self, folder: Path) -> None:
        """Continue from a folder written by :meth:`save`."""
        if not (folder / "state.json").is_file():
            raise ValueError(f"expected a checkpoint in {folder}, found no state.json there")
        load_model(self.model, str(folder / "model.safetensors"))
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in load_file(folder / "optimiser.safetensors").items():
            number, name = key.split(".", 1)
            moments.setdefault(int(number), {})[name] = tensor
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": moments, "param_groups": groups})
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        self.progress = Progress(**state["progress"])
        self.rng.bit_generator.state = state["rng"]

    def _token_ids(self, text: str) -> list[int]:
        ids: list[int] = self.processor.tokenizer(text)["input_ids"]
        return ids

    def _loss(self) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss of fresh pictures and questions, and the accuracies to keep track of."""
        pixels, labels, batch = self.sample_batch()
        output = self.model.model(
            input_ids=batch.input_ids,
            pixel_values=pixels,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            use_cache=False,
        )
        eos_id = self.processor.tokenizer.eos_token_id
        loss, right = answer_loss(output.last_hidden_state, self.model.lm_head, batch, eos_id)
        grounding, shares = self._ground(patches_in(output), labels)
        return loss + STAGES[self.progress.stage].grounding * grounding, right | shares

    def _vision_loss(self) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the grounding loss of fresh pictures, two thirds of them tiled."""
        images, labels = [], []
        for index in range(2 * self.recipe.batch_size):
            scene, _, _ = sample_lesson(self.rng, VISION_STAGES[index % len(VISION_STAGES)], GROUPS)
            images.append(render(scene))
            labels.append(torch.from_numpy(patch_labels(scene)))
        pixels = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        output: Any = self.model.model.get_image_features(pixels.to(self.device))
        return self._ground(
            torch.cat(list(output.pooler_output)), torch.stack(labels).to(self.device)
        )

    def _ground(
        self,
        features: torch.Tensor,
        labels: torch.Tensor,
        words: tuple[tuple[str, ...], ...] = (tuple(COLOURS), SHAPES),
    ) -> tuple[torch.Tensor, dict[str, float]]:
        table: Any = self.model.get_input_embeddings().weight
        tables = [
            table[self.processor.tokenizer.convert_tokens_to_ids(list(names))] for names in words
        ]
        loss, (colour, shape, *_) = grounding_loss(features, labels.flatten(0, 1), tables)
        return loss, {"patch colour": colour, "patch shape": shape}

    def _advance(self, right: dict[str, float], seeing: bool) -> None:
        """Update the running accuracies and, past the vision steps, the stage."""
        progress = self.progress
        for name, value in right.items():
            progress.running[name] = 0.95 * progress.running.get(name, value) + 0.05 * value
        progress.step += 1
        if not seeing:
            self._promote()

    def _promote(self) -> None:
        """Go on to the next stage of the curriculum, if this one has been learnt."""
        progress = self.progress
        progress.stage_step += 1
        stage = STAGES[progress.stage]
        reached = min(progress.running[name] for name in stage.gate)
        if progress.stage_step >= 50 and reached >= stage.pass_mark:
            progress.stage, progress.stage_step = progress.stage + 1, 0
            tqdm.write(f"step {progress.step}: stage {progress.stage}")
