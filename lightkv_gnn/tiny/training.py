"""The training loop of the tiny model: seeded, resumable, on a CPU or a GPU."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch.nn import functional as F
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from lightkv_gnn.tiny.curriculum import STAGES, VISION_STAGES, patch_labels, sample_lesson
from lightkv_gnn.tiny.model import build_model, build_processor, format_prompt
from lightkv_gnn.tiny.packing import PackedBatch, PackedRow, pack, pack_row
from lightkv_gnn.tiny.questions import GROUPS, Question
from lightkv_gnn.tiny.scenes import COLOURS, SHAPES, render

__all__ = ["LEADING", "Progress", "Recipe", "Trainer"]

# Questions before the picture are scored as a group of their own.
LEADING = len(GROUPS)
# Weight of an answer token: yes/no answers compare two things and are learnt last, lists have
# many tokens, and a picture has room for one leading question among a dozen others.
_WEIGHTS = (1.0, 3.0, 2.0, 0.5, 4.0)


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


class Trainer:
    """Trains the tiny model through its curriculum."""

    def __init__(self, recipe: Recipe, device: str = "cpu") -> None:
        """Build an untrained model and its optimiser on a device."""
        self.recipe, self.device, self.progress = recipe, device, Progress()
        self.rng = np.random.default_rng(recipe.seed)
        self.processor: LlavaProcessor = build_processor()
        self.model: LlavaForConditionalGeneration = build_model(recipe.seed).to(device).train()
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )

    def run(self, checkpoint: Path | None = None, every: int = 100) -> None:
        """Train up to the recipe's last step, writing a checkpoint now and then."""
        bar = tqdm(total=self.recipe.steps, initial=self.progress.step, mininterval=5)
        while self.progress.step < self.recipe.steps:
            loss = self.step()
            bar.update()
            marks = {name[:3]: f"{value:.3f}" for name, value in self.progress.running.items()}
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
        right: dict[str, float] = {}
        if self.progress.step < self.recipe.vision_steps:
            loss = self._vision_loss()
        else:
            pixels, labels, batch = self.sample_batch()
            loss, right = self._loss(pixels, labels, batch)
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self._advance(right)
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

    def encode(self, questions: list[Question], image_first: bool) -> PackedRow:
        """Tokenize a picture's questions.

        With ``image_first`` off, the first question stands before the picture and is answered
        right behind it; the others follow the picture as always.
        """
        image_id = self.processor.image_token_id
        shared: list[int] = []
        branches: list[tuple[list[int], list[int], int]] = []
        for number, question in enumerate(questions):
            leads = not image_first and number == 0
            ids = self._token_ids(format_prompt(question.prompt_text, not leads))
            place = ids.index(image_id)
            if number == 0:
                shared = [*ids[:place], *[image_id] * self.model.config.image_seq_length]
            answer = self._token_ids(question.answer + "</s>")[1:]
            group = LEADING if leads else GROUPS.index(question.group)
            branches.append((ids[place + 1 :], answer, group))
        return pack_row(shared, branches)

    def save(self, folder: Path) -> None:
        """Write everything a resumed run needs."""
        folder.mkdir(parents=True, exist_ok=True)
        save_model(self.model, str(folder / "model.safetensors"))
        torch.save(self.optimiser.state_dict(), folder / "optimiser.pt")
        state = {"progress": asdict(self.progress), "rng": self.rng.bit_generator.state}
        (folder / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")

    def resume(self, folder: Path) -> None:
        """Continue from a folder written by :meth:`save`."""
        if not (folder / "state.json").is_file():
            raise ValueError(f"expected a checkpoint in {folder}, found no state.json there")
        load_model(self.model, str(folder / "model.safetensors"))
        path = folder / "optimiser.pt"
        self.optimiser.load_state_dict(
            torch.load(path, map_location=self.device, weights_only=True)
        )
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        self.progress = Progress(**state["progress"])
        self.rng.bit_generator.state = state["rng"]

    def _token_ids(self, text: str) -> list[int]:
        ids: list[int] = self.processor.tokenizer(text)["input_ids"]
        return ids

    def _loss(
        self, pixels: torch.Tensor, labels: torch.Tensor, batch: PackedBatch
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the weighted answer loss and the token accuracy of each group."""
        output = self.model.model(
            input_ids=batch.input_ids,
            pixel_values=pixels,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            use_cache=False,
        )
        hidden = output.last_hidden_state[:, :-1]
        chosen = batch.groups[:, 1:] >= 0
        logits = self.model.lm_head(hidden[chosen])
        targets = batch.input_ids[:, 1:][chosen]
        weights = torch.tensor(_WEIGHTS, device=logits.device)[batch.groups[:, 1:][chosen]]
        losses = F.cross_entropy(logits, targets, reduction="none")
        loss = (losses * weights).sum() / weights.sum()
        # The end mark after an answer is nearly free and would flatter the accuracy.
        scored = targets != self.processor.tokenizer.eos_token_id
        groups, hits = batch.groups[:, 1:][chosen][scored], (logits.argmax(-1) == targets)[scored]
        right = {
            name: float(hits[groups == index].float().mean())
            for index, name in enumerate((*GROUPS, "leading"))
            if bool((groups == index).any())
        }
        grounding = STAGES[self.progress.stage].grounding
        return loss + grounding * self._grounding_loss(output.image_hidden_states, labels), right

    def _vision_loss(self) -> torch.Tensor:
        """Return the grounding loss of fresh pictures, two thirds of them tiled."""
        images, labels = [], []
        for index in range(2 * self.recipe.batch_size):
            scene, _, _ = sample_lesson(self.rng, VISION_STAGES[index % len(VISION_STAGES)], GROUPS)
            images.append(render(scene))
            labels.append(torch.from_numpy(patch_labels(scene)))
        pixels = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        features = self.model.model.get_image_features(pixels.to(self.device)).pooler_output
        return self._grounding_loss(torch.cat(list(features)), torch.stack(labels).to(self.device))

    def _grounding_loss(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Ask every patch that shows an object to lie near the words for its colour and shape.

        A pretrained LLaVA gets this from its contrastively trained vision tower; here it is
        what lets attention by colour start within a few hundred steps.
        """
        table = self.model.get_input_embeddings().weight
        flat = labels.flatten(0, 1)
        shown = flat[:, 0] >= 0
        total = features.new_zeros(())
        for column, names in enumerate((list(COLOURS), list(SHAPES))):
            words = self.processor.tokenizer.convert_tokens_to_ids(names)
            logits = features[shown] @ table[words].T / features.shape[-1] ** 0.5
            total = total + F.cross_entropy(logits, flat[shown][:, column])
            with torch.no_grad():
                hits = (logits.argmax(-1) == flat[shown][:, column]).float().mean()
            name = f"{column}ground"
            before = self.progress.running.get(name, 0.0)
            self.progress.running[name] = 0.95 * before + 0.05 * float(hits)
        return total

    def _advance(self, right: dict[str, float]) -> None:
        """Update the running accuracies and move on once the stage is passed."""
        progress = self.progress
        for name, value in right.items():
            progress.running[name] = 0.95 * progress.running.get(name, value) + 0.05 * value
        progress.step += 1
        if not right:
            return
        progress.stage_step += 1
        stage = STAGES[progress.stage]
        reached = min(progress.running[name] for name in stage.gate)
        if progress.stage_step >= 50 and reached >= stage.pass_mark:
            progress.stage, progress.stage_step = progress.stage + 1, 0
            tqdm.write(f"step {progress.step}: stage {progress.stage}")
