"""Draws the gallery: the figures and the page of docs/gallery/.

python docs/gallery.py

The pictures are the bundled tiny LLaVA's, and those of the evaluation's small Qwen2.5-VL, which is
trained first if it is not in lightkv-models/ (some minutes).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "graphs")]

import lightkv_gnn as lk  # noqa: E402
from lightkv_gnn import tiny  # noqa: E402
from lightkv_gnn.evaluation.rectangles import Rectangles  # noqa: E402
from lightkv_gnn.evaluation.rectangles.inputs import asked, inputs_of  # noqa: E402
from lightkv_gnn.evaluation.rectangles.words import WORDS  # noqa: E402
from lightkv_gnn.evaluation.rectangles.world import (  # noqa: E402
    draw_picture,
    questions_of,
    render,
)
from lightkv_graphs import (  # noqa: E402
    MergeTrace,
    draw_guidance,
    draw_lineage,
    draw_merges,
    draw_window,
    write_page,
)

OUT = ROOT / "docs" / "gallery"
MODELS = ROOT / "lightkv-models"
RETENTION = 0.16
"""Of the picture with two prompts."""

SEED = 8
PATCH = 8
"""Pixels of a patch of the tiny LLaVA, a side."""


class Answered(NamedTuple):
    """A question, its answer, and how the tokens merged on the way."""

    prompt: str
    answer: str
    trace: MergeTrace
    seen: Image.Image
    view: lk.graphs.View


class Tiny:
    """The bundled model and one picture."""

    def __init__(self) -> None:
        self.model: Any
        self.model, self.processor = tiny.load()
        self.scene = tiny.sample_scene(np.random.default_rng(SEED))
        self.picture = tiny.render(self.scene)

    def patch(self, number: int) -> tuple[int, int]:
        """Row and column of the patch in the middle of an object."""
        x, y = self.scene.objects[number].centre
        return int(y) // PATCH, int(x) // PATCH

    def ask(self, number: int, config: lk.LightKVConfig) -> Answered:
        """Asks for the shape of an object by its colour."""
        prompt = f"what shape is the {self.scene.objects[number].colour} object ?"
        text = tiny.format_prompt(prompt)
        inputs = self.processor(images=self.picture, text=text, return_tensors="pt")
        with lk.attach(self.model, config) as handle:
            tokens = self.model.generate(**inputs, max_new_tokens=8, do_sample=False)
        new = tokens[0, inputs["input_ids"].shape[1] :]
        answer = self.processor.decode(new, skip_special_tokens=True)
        (seen,) = lk.seen_tiles(self.model, self.processor, inputs)
        view = handle.view(image=seen, prompt=prompt, answer=answer)
        return Answered(prompt, answer, handle.trace.with_prompts([prompt]), seen, view)


def halving(model: Any, **options: Any) -> lk.LightKVConfig:
    """The paper's stages, of which there are three to look at."""
    return lk.LightKVConfig.lightkv(model, guidance="text_to_vision", **options)


def prompts(both: Sequence[Answered]) -> Figure:
    """A row per prompt: what it listened to, and what was left."""
    figure = Figure(figsize=(10, 6.6), layout="compressed")
    rows = figure.subplots(2, 3)
    for row, one in zip(rows, both, strict=True):
        draw_merges(one.trace, one.seen, stage=None, ax=row[0])
        row[0].set_title(f"{one.prompt} → {one.answer}", fontsize=10, style="italic")
        draw_guidance(one.trace, one.seen, stage=0, limits=(0.2, 20), ax=row[1])
        draw_merges(one.trace, one.seen, ax=row[2])
    return figure


def messages(default: Answered, own: Answered) -> Figure:
    """A row per message: survivors of each stage, in the mean colour of what they stand for."""
    columns = len(default.trace) + 1
    figure = Figure(figsize=(3.2 * columns, 6.8), layout="compressed")
    rows = figure.subplots(2, columns)
    for name, row, one in (("guided_mean", rows[0], default), ("sharpened", rows[1], own)):
        for stage, ax in enumerate(row):
            draw_merges(one.trace, one.seen, stage=stage - 1 if stage else None, ax=ax)
        row[0].set_ylabel(f"message={name}", fontsize=10)
        _mark_moved(row[1:], default.trace, own.trace)
    return figure


def sharpened(x_i: Tensor, x_j: Tensor, weight: Tensor) -> Tensor:
    """A message of one's own: what is unlike the survivor says less."""
    likeness = torch.cosine_similarity(x_i, x_j, dim=1).clamp(min=0)
    return (weight * likeness)[:, None] * x_j


def _mark_moved(axes: Sequence[Axes], first: MergeTrace, second: MergeTrace) -> None:
    """Counts below each stage the patches that end in another place than with the other message."""
    for stage, ax in enumerate(axes):
        places = [trace.kept(stage)[trace.survivor_of(stage)] for trace in (first, second)]
        moved = int((places[0] != places[1]).sum())
        ax.set_xlabel(f"{moved} of {len(places[0])} patches live on elsewhere", fontsize=9)


def rectangle() -> Figure:
    """A grid that is no square, in a model with two-dimensional positions."""
    model = Rectangles().subject(0, MODELS).model
    picture = draw_picture(np.random.default_rng(9))
    question = questions_of(picture, "shape")[3]
    inputs = inputs_of([render(picture)], [asked(question)])
    with lk.attach(model, halving(model)) as handle, torch.no_grad():
        answer = WORDS[int(model.generate(**inputs, max_new_tokens=1, do_sample=False)[0, -1])]
    prompt = f"shape of {question.cue}? → {answer}"
    pixels = ((render(picture) + 1) * 127.5).clamp(0, 255).byte().permute(1, 2, 0)
    seen = Image.fromarray(pixels.numpy())
    return draw_lineage(handle.trace.with_prompts([prompt]), seen)


def save(figure: Figure, name: str) -> None:
    """Writes a figure."""
    figure.savefig(OUT / name, dpi=110)
    print(f"docs/gallery/{name}")


def main() -> None:
    """Draws everything."""
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    asking = Tiny()
    last = len(asking.scene.objects) - 1
    best = lk.LightKVConfig.for_model(asking.model, retention=RETENTION)
    both = [asking.ask(number, best) for number in (0, last)]
    save(prompts(both), "prompts.png")
    write_page(OUT / "prompts.html", [one.view for one in both], title="One picture, two prompts")
    print("docs/gallery/prompts.html")
    first = asking.ask(0, halving(asking.model))
    save(draw_lineage(first.trace, first.seen), "stages.png")
    patch = asking.patch(0)
    save(draw_lineage(first.trace, first.seen, patch=patch), "patch.png")
    window = int(first.trace.stages[0].window[patch[0] * 16 + patch[1]])
    drawn = draw_window(first.trace, window, first.seen).figure
    assert isinstance(drawn, Figure)
    save(drawn, "window.png")
    save(messages(first, asking.ask(0, halving(asking.model, message=sharpened))), "messages.png")
    save(rectangle(), "rectangle.png")


if __name__ == "__main__":
    main()
