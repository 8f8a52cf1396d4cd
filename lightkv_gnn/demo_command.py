"""The command ``lightkv-gnn demo``."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image, UnidentifiedImageError

from lightkv_gnn import __version__, demo, tiny
from lightkv_gnn.arguments import positive
from lightkv_gnn.config import LightKVConfig


def add_parser(commands: Any) -> None:
    """Adds the command to those of a parser."""
    command = commands.add_parser(
        "demo",
        help="answer questions about a picture with and without compression; show what is saved",
    )
    command.add_argument("--model", metavar="PATH", help="a folder of your own (default: bundled)")
    command.add_argument("--image", metavar="FILE", help="a picture of your own")
    command.add_argument("--prompt", help="a question of your own")
    command.add_argument("--retention", type=float, default=0.55, help="default: %(default)s")
    command.add_argument("--questions", type=positive, default=200, help="default: %(default)s")
    command.add_argument("--seed", type=int, default=0, help="of the fresh pictures")
    command.add_argument(
        "--out", type=Path, default=Path("lightkv-demo"), help="folder of pictures"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Runs the demo.

    Raises:
        ValueError: Options that do not go together, or a file that is no picture.
        OSError: A file or folder cannot be read or written.
    """
    own = options.model is not None or options.image is not None or options.prompt is not None
    if options.model and not (options.image and options.prompt):
        raise ValueError("--model needs --image FILE and --prompt TEXT to ask about")
    report = (lambda line: None) if options.json else print
    picture, questions = _picture_and_questions(options)
    if options.out.exists() and not options.out.is_dir():
        raise NotADirectoryError(f"--out {options.out} is a file: give a folder for the pictures")
    model, processor = demo.load_model(options.model)
    config = LightKVConfig.for_model(model, options.retention)
    report(_machine(model))
    report(_schedule_line(config))
    answered = demo.ask_all(model, processor, picture, questions, config)
    report(_answers(answered.answers))
    report(f"{answered.ledger}\n")
    files = demo.save_pictures(answered, options.out)
    if files:
        report("wrote " + ", ".join(map(str, files)))
    else:
        report("nothing is drawn: the model's adapter does not tell which pixels its tiles cover")
    if find_spec("matplotlib") is None:
        report("the merges are drawn with matplotlib: pip install 'lightkv-gnn[draw]'")
    table = {}
    if not own:
        report(f"\naccuracy on {options.questions} fresh questions:")
        table = demo.scores(
            model, processor, options.retention, options.questions, options.seed, report
        )
        held = demo.retentions(model, options.retention)
        report("\n" + _table(table, held, options.questions))
    if options.json:
        print(json.dumps(_result(options, model, config, answered, table, files), indent=2))


def _picture_and_questions(
    options: argparse.Namespace,
) -> tuple[Image.Image, dict[str, str | None]]:
    """The picture, and each prompt with the right answer where it is known."""
    rng = np.random.default_rng(options.seed)
    scene = tiny.sample_scene(rng)
    drawn = [tiny.ask(scene, group, rng) for group in tiny.GROUPS]
    questions: dict[str, str | None] = {q.prompt_text: q.answer for q in drawn}
    if options.prompt is not None:
        questions = {options.prompt: None}
    if options.image is None:
        return tiny.render(scene), questions
    try:
        with Image.open(options.image) as file:
            picture = file.convert("RGB")
    except UnidentifiedImageError as error:
        raise ValueError(f"{options.image} is not a picture that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{options.image} is too large a picture: {error}") from error
    return picture, dict.fromkeys(questions)


def _machine(model: Any) -> str:
    scatter = "installed" if find_spec("torch_scatter") else "not installed, and not needed"
    return (
        f"lightkv-gnn {__version__}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, Python {platform.python_version()}\n"
        f"{type(model).__name__} on {model.device}, {model.dtype}; scatter backend torch "
        f"(torch-scatter is {scatter})"
    )


def _schedule_line(config: LightKVConfig) -> str:
    stages = ", ".join(
        f"{stage.ratio:.0%} after layer {stage.layer} in {stage.windows}x{stage.windows} windows"
        for stage in config.stages
    )
    return f"merged away: {stages or 'nothing'}\n"


def _answers(answers: Sequence[demo.Answer]) -> str:
    lines = []
    for answer in answers:
        lines.append(f"Q  {answer.prompt}")
        if answer.expected is not None:
            lines.append(f"   right answer  {answer.expected}")
        lines.append(f"   uncompressed  {answer.full}")
        lines.append(f"   compressed    {answer.compressed}\n")
    return "\n".join(lines)


def _table(table: dict[str, dict[str, demo.Score]], held: dict[str, float], questions: int) -> str:
    lines = [f"{'':8}" + "".join(f"{name:>24}" for name in held)]
    lines.append(f"{'kept':8}" + "".join(f"{share:>24.1%}" for share in held.values()))
    for method, row in table.items():
        cells = (f"{s.value:6.1%} [{s.low:.1%}, {s.high:.1%}]" for s in row.values())
        lines.append(f"{method:8}" + "".join(f"{cell:>24}" for cell in cells))
    groups = " and ".join(demo.SCORED_GROUPS)
    lines.append(f"exact match with 95 % Wilson intervals, {questions} {groups} questions;")
    lines.append("kept: vision tokens, averaged over the layers, by every method but none")
    return "\n".join(lines)


def _result(
    options: argparse.Namespace,
    model: Any,
    config: LightKVConfig,
    answered: demo.Answered,
    table: dict[str, dict[str, demo.Score]],
    files: Sequence[Path],
) -> dict[str, Any]:
    return {
        "version": __version__,
        "model": type(model).__name__,
        "questions": options.questions if table else 0,
        "config": config.to_dict(),
        "schedules": {
            name: chosen.to_dict()["stages"]
            for name, chosen in demo.schedules(model, options.retention).items()
        },
        "answers": [asdict(answer) for answer in answered.answers],
        "accuracy": {
            method: {schedule: asdict(score) for schedule, score in row.items()}
            for method, row in table.items()
        },
        "ledger": answered.ledger.totals(),
        "files": [str(file) for file in files],
    }
