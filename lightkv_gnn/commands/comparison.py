"""The demo: a picture, questions, answers with and without compression, and what was saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lightkv_gnn import tiny
from lightkv_gnn.adapters import adapter_for
from lightkv_gnn.asking.answers import generate
from lightkv_gnn.asking.prompts import as_inputs
from lightkv_gnn.config import LightKVConfig
from lightkv_gnn.costs.ledger import Ledger
from lightkv_gnn.costs.schedule import halving, layer_average
from lightkv_gnn.errors import UnsupportedModelError
from lightkv_gnn.intervals import wilson
from lightkv_gnn.session.attach import attach
from lightkv_gnn.session.pictures import seen_tiles
from lightkv_gnn.stage.messages import destination_only, mean
from lightkv_graphs import MergeTrace, draw_stages, random_matching

Report = Callable[[str], None]


@dataclass(frozen=True)
class Answer:
    """One question, answered twice."""

    prompt: str
    expected: str | None
    full: str
    compressed: str


@dataclass(frozen=True, eq=False)
class Answered:
    """What asking about one picture gave.

    ``tiles`` is what the model saw of it; nothing if its adapter does not tell.
    """

    answers: tuple[Answer, ...]
    tiles: tuple[Image.Image, ...]
    ledger: Ledger
    trace: MergeTrace


@dataclass(frozen=True)
class Score:
    """Share of questions answered exactly, with its 95 % Wilson interval."""

    value: float
    low: float
    high: float


def schedules(model: Any, retention: float) -> dict[str, LightKVConfig]:
    """The demo's schedules.

    "default" is the usual one; "early" compresses right after the first layer that may (0 in most
    families) and keeps as much, averaged over the layers, as far as one stage can, which merges
    half away at most; "steep" halves after each of the first three that may and keeps far less.
    """
    default = LightKVConfig.for_model(model, retention)
    adapter = adapter_for(model)
    kept = layer_average(default.stages, adapter.layers)
    steep = halving(adapter.legal_layers[:3], adapter.grid)
    lighter = adapter.layers - 1 - steep[0].layer
    ratio = min(0.5, round((1 - kept) * adapter.layers / lighter, 2))
    return {
        "default": default,
        "early": replace(default, stages=[replace(steep[0], ratio=ratio)]),
        "steep": replace(default, stages=steep),
    }


def retentions(model: Any, retention: float) -> dict[str, float]:
    """Vision tokens that each of the schedules keeps, averaged over the layers; fractions."""
    layers = adapter_for(model).layers
    return {
        name: layer_average(config.stages, layers)
        for name, config in schedules(model, retention).items()
    }


def methods(config: LightKVConfig) -> dict[str, LightKVConfig | None]:
    """The demo's methods on one schedule; None is no compression."""
    blind = replace(config, guidance="none")
    return {
        "none": None,
        "guided": config,
        "mean": replace(blind, message=mean),
        "random": replace(blind, matcher=random_matching, message=destination_only),
    }


def ask_all(
    model: Any,
    processor: Any,
    picture: Image.Image,
    questions: dict[str, str | None],
    config: LightKVConfig,
) -> Answered:
    """Asks about the picture, without and with compression.

    Args:
        model: The model.
        processor: Its processor.
        picture: What to ask about.
        questions: Each prompt, with the right answer where it is known.
        config: How to compress; ledger and trace are those of the last prompt.
    """
    full = [generate(model, processor, picture, prompt) for prompt in questions]
    with attach(model, config) as handle:
        short = [generate(model, processor, picture, prompt) for prompt in questions]
    rows = zip(questions.items(), full, short, strict=True)
    answers = tuple(Answer(*question, before, after) for question, before, after in rows)
    tiles: list[Image.Image] = []
    with suppress(UnsupportedModelError):
        inputs = as_inputs(model, processor, picture, next(reversed(questions)))
        tiles = seen_tiles(model, processor, inputs)
    return Answered(answers, tuple(tiles), handle.ledger, handle.trace)


def scores(
    model: Any, processor: Any, retention: float, questions: int, seed: int, report: Report
) -> dict[str, dict[str, Score]]:
    """Accuracy of every method on every schedule, on the same fresh questions.

    The questions are shared out over the tiny model's groups.
    """
    table: dict[str, dict[str, Score]] = {}
    uncompressed: Score | None = None
    for schedule, config in schedules(model, retention).items():
        for method, chosen in methods(config).items():
            if chosen is None and uncompressed is not None:
                score = uncompressed
            else:
                torch.manual_seed(seed)
                with attached(model, chosen):
                    score = _score(model, processor, questions, seed)
                report(f"  {schedule:8} {method:8} {score.value:6.1%}")
            uncompressed = score if chosen is None else uncompressed
            table.setdefault(method, {})[schedule] = score
    return table


def _score(model: Any, processor: Any, questions: int, seed: int) -> Score:
    groups = SCORED_GROUPS
    shares = [questions // len(groups) + (i < questions % len(groups)) for i in range(len(groups))]
    right = 0
    for group, share in zip(groups, shares, strict=True):
        if share:
            right += sum(tiny.accuracy(model, processor, group, share, seed).correct)
    return Score(right / questions, *wilson(right, questions))


SCORED_GROUPS = ("vqa", "hallucination")
"""Groups that the bundled model masters, so that there is something to lose."""


@contextmanager
def attached(model: Any, config: LightKVConfig | None) -> Iterator[None]:
    """``attach``, or nothing for None."""
    if config is None:
        yield
    else:
        with attach(model, config):
            yield


def save_pictures(answered: Answered, folder: Path) -> list[Path]:
    """Writes what the model saw, tile by tile, and with matplotlib its merges stage by stage.

    Nothing if the model's adapter does not tell what it saw.
    """
    folder.mkdir(parents=True, exist_ok=True)
    several = len(answered.tiles) > 1
    files = []
    for number, tile in enumerate(answered.tiles):
        files.append(folder / (f"picture-{number}.png" if several else "picture.png"))
        times = max(1, 512 // max(tile.size))
        larger = (times * tile.width, times * tile.height)
        tile.resize(larger, Image.Resampling.NEAREST).save(files[-1])
    if answered.tiles and find_spec("matplotlib"):
        files.append(folder / "merges.png")
        draw_stages(answered.trace, answered.tiles).savefig(files[-1], dpi=120)
    return files
