"""The demo: a picture, questions, answers with and without compression, and what was saved.

Two methods at two budgets: what this library does, and what the paper does.
"""

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
from lightkv_gnn.asking.answers import generate
from lightkv_gnn.asking.prompts import as_inputs
from lightkv_gnn.config import LightKVConfig
from lightkv_gnn.costs.ledger import Ledger
from lightkv_gnn.errors import ScheduleError, UnsupportedModelError
from lightkv_gnn.intervals import wilson
from lightkv_gnn.session.attach import attach
from lightkv_gnn.session.pictures import seen_tiles
from lightkv_gnn.stage.messages import destination_only, mean
from lightkv_graphs import MergeTrace, draw_stages, random_matching

Report = Callable[[str], None]


LESS = 0.3
"""Share of the vision tokens at which methods differ."""


@dataclass(frozen=True)
class Answer:
    """One question, answered without compression, and by each method at each budget."""

    prompt: str
    expected: str | None
    full: str
    compressed: dict[str, str]


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


def budgets(model: Any, retention: float) -> list[float]:
    """Shares of the vision tokens to keep: the one asked for, and less where the model can."""
    if f"{retention:.0%}" == f"{LESS:.0%}" or retention < LESS:
        return [retention]
    try:
        methods(model, LESS)
    except ScheduleError:  # too few layers
        return [retention]
    return [retention, LESS]


def methods(model: Any, retention: float) -> dict[str, LightKVConfig | None]:
    """The demo's methods at one budget; None is no compression.

    Without the paper's, and those on its stages, where no halving stages keep that much.

    Raises:
        ScheduleError: The model is not deep enough.
    """
    ours = LightKVConfig.for_model(model, retention)
    try:
        paper = LightKVConfig.lightkv(model, retention)
    except ScheduleError:
        return {"none": None, "ours": ours}
    blind = replace(paper, guidance="none")
    return {
        "none": None,
        "ours": ours,
        "paper": paper,
        "mean": replace(blind, message=mean),
        "random": replace(blind, matcher=random_matching, message=destination_only),
    }


def compared(model: Any, retention: float) -> dict[str, LightKVConfig]:
    """What each question is answered with: ours and the paper's method at every budget."""
    found = {}
    for share in budgets(model, retention):
        for name, config in methods(model, share).items():
            if config is not None and name in ("ours", "paper"):
                found[f"{name} at {share:.0%}"] = config
    return found


def ask_all(
    model: Any,
    processor: Any,
    picture: Image.Image,
    questions: dict[str, str | None],
    configs: dict[str, LightKVConfig],
) -> Answered:
    """Asks about the picture, without and with compression.

    Args:
        model: The model.
        processor: Its processor.
        picture: What to ask about.
        questions: Each prompt, with the right answer where it is known.
        configs: How to compress, by name; ledger and trace are the first one's, of the last prompt.
    """
    full = [generate(model, processor, picture, prompt) for prompt in questions]
    short, handles = {}, []
    for name, config in configs.items():
        with attach(model, config) as handle:
            short[name] = [generate(model, processor, picture, prompt) for prompt in questions]
        handles.append(handle)
    answers = tuple(
        Answer(*question, full[number], {name: told[number] for name, told in short.items()})
        for number, question in enumerate(questions.items())
    )
    tiles: list[Image.Image] = []
    with suppress(UnsupportedModelError):
        inputs = as_inputs(model, processor, picture, next(reversed(questions)))
        tiles = seen_tiles(model, processor, inputs)
    return Answered(answers, tuple(tiles), handles[0].ledger, handles[0].trace)


def scores(
    model: Any, processor: Any, retention: float, questions: int, seed: int, report: Report
) -> dict[str, dict[str, Score]]:
    """Accuracy of every method at every budget, on the same fresh questions.

    The questions are shared out over the tiny model's groups.
    """
    table: dict[str, dict[str, Score]] = {}
    uncompressed: Score | None = None
    for share in budgets(model, retention):
        for method, chosen in methods(model, share).items():
            if chosen is None and uncompressed is not None:
                score = uncompressed
            else:
                torch.manual_seed(seed)
                with attached(model, chosen):
                    score = _score(model, processor, questions, seed)
                report(f"  {share:4.0%} {method:8} {score.value:6.1%}")
            uncompressed = score if chosen is None else uncompressed
            table.setdefault(method, {})[f"{share:.0%}"] = score
    return table


def _score(model: Any, processor: Any, questions: int, seed: int) -> Score:
    groups = SCORED_GROUPS
    shares = [questions // len(groups) + (i < questions % len(groups)) for i in range(len(groups))]
    right = 0
    for group, share in zip(groups, shares, strict=True):
        if share:
            right += sum(tiny.accuracy(model, processor, group, share, seed).correct)
    return Score(right / questions, *wilson(right, questions))


SCORED_GROUPS = ("vqa", "hallucination", "captioning")
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
