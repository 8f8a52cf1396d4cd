"""The command ``lightkv-gnn demo``."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import transformers
import typer
from PIL import Image

from lightkv_gnn import __version__, tiny
from lightkv_gnn.asking.loading import load
from lightkv_gnn.commands import bundled
from lightkv_gnn.commands import comparison as demos
from lightkv_gnn.commands.comparison import Report
from lightkv_gnn.commands.options import Json, Retention, make_app
from lightkv_gnn.costs.schedule import in_words
from lightkv_gnn.sources import TINY, read_picture

Table = dict[str, dict[str, demos.Score]]


app = make_app()

Model = Annotated[
    str | None, typer.Option(help="A folder of your own, or a hub id (default: bundled).")
]
ImageFile = Annotated[str | None, typer.Option(metavar="FILE", help="A picture of your own.")]
Prompt = Annotated[str | None, typer.Option(help="A question of your own.")]
Questions = Annotated[int, typer.Option(min=1, help="Fresh ones, to score on.")]
Seed = Annotated[int, typer.Option(help="Of the fresh pictures.")]
Out = Annotated[Path, typer.Option(help="Folder of pictures.")]


@app.command()
def demo(
    model: Model = None,
    image: ImageFile = None,
    prompt: Prompt = None,
    retention: Retention = 0.55,
    questions: Questions = 200,
    seed: Seed = 0,
    out: Out = Path("lightkv-demo"),
    as_json: Json = False,
) -> None:
    """Answer questions about a picture with and without compression; show what is saved."""
    report: Report = (lambda line: None) if as_json else print
    result = show(model, image, prompt, retention, questions, seed, out, report)
    if as_json:
        print(json.dumps(result, indent=2))


def show(
    source: str | None,
    image: str | None,
    prompt: str | None,
    retention: float,
    questions: int,
    seed: int,
    out: Path,
    report: Report,
) -> dict[str, Any]:
    """Runs the demo, telling ``report`` line by line; returns what it found.

    Raises:
        ValueError: Options that do not go together, or a file that is no picture.
        OSError: A file or folder cannot be read or written.
    """
    own = source is not None or image is not None or prompt is not None
    if source and not (image and prompt):
        raise ValueError("--model needs --image FILE and --prompt TEXT to ask about")
    picture, asked = _picture_and_questions(image, prompt, seed)
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"--out {out} is a file: give a folder for the pictures")
    model, processor = load(source or TINY)
    configs = demos.compared(model, retention)
    report(_machine(model))
    for name, config in configs.items():
        report(f"{name}: merged away {in_words(config.stages)}")
    note = None
    if own and source is None:
        note = bundled.limits(list(asked), processor.tokenizer.get_vocab())
        report(f"\n{note}")
    report("")
    answered = demos.ask_all(model, processor, picture, asked, configs)
    report(_answers(answered.answers))
    report(f"{answered.ledger}\n")
    files = demos.save_pictures(answered, out)
    if files:
        report("wrote " + ", ".join(map(str, files)))
    else:
        report("nothing is drawn: the model's adapter does not tell which pixels its tiles cover")
    if find_spec("matplotlib") is None:
        report("the merges are drawn with matplotlib: pip install 'lightkv-gnn[draw]'")
    table: Table = {}
    if not own:
        report(f"\naccuracy on {questions} fresh questions:")
        table = demos.scores(model, processor, retention, questions, seed, report)
        report("\n" + _table(table, questions))
    return {
        "version": __version__,
        "model": type(model).__name__,
        "questions": questions if table else 0,
        "note": note,
        "configs": {name: config.to_dict() for name, config in configs.items()},
        "answers": [asdict(answer) for answer in answered.answers],
        "accuracy": {
            method: {budget: asdict(score) for budget, score in row.items()}
            for method, row in table.items()
        },
        "ledger": answered.ledger.totals(),
        "files": [str(file) for file in files],
    }


def _picture_and_questions(
    image: str | None, prompt: str | None, seed: int
) -> tuple[Image.Image, dict[str, str | None]]:
    """The picture, and each prompt with the right answer where it is known."""
    rng = np.random.default_rng(seed)
    scene = tiny.sample_scene(rng)
    drawn = [tiny.ask(scene, group, rng) for group in tiny.GROUPS]
    questions: dict[str, str | None] = {q.prompt_text: q.answer for q in drawn}
    if prompt is not None:
        questions = {prompt: None}
    if image is None:
        return tiny.render(scene), questions
    return read_picture(image), dict.fromkeys(questions)


def _machine(model: Any) -> str:
    scatter = "installed" if find_spec("torch_scatter") else "not installed, and not needed"
    return (
        f"lightkv-gnn {__version__}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, Python {platform.python_version()}\n"
        f"{type(model).__name__} on {model.device}, {model.dtype}; scatter backend torch "
        f"(torch-scatter is {scatter})"
    )


def _lost(expected: str, told: str) -> str:
    """How many objects of a list an answer does not name."""
    objects, named = expected.split(" , "), told.split(" , ")
    lost = sum(thing not in named for thing in objects)
    return f"  ({lost} of {len(objects)} objects lost)" if lost and len(objects) > 1 else ""


def _answers(answers: Sequence[demos.Answer]) -> str:
    lines = []
    for answer in answers:
        lines.append(f"Q  {answer.prompt}")
        if answer.expected is not None:
            lines.append(f"   right answer  {answer.expected}")
        lines.append(f"   uncompressed  {answer.full}")
        lines += [
            f"   {name:12}  {told}{_lost(answer.expected or answer.full, told)}"
            for name, told in answer.compressed.items()
        ]
        lines.append("")
    return "\n".join(lines)


def _table(table: Table, questions: int) -> str:
    lines = [f"{'retention':9}" + "".join(f"{share:>24}" for share in table["none"])]
    for method, row in table.items():
        cells = (f"{s.value:6.1%} [{s.low:.1%}, {s.high:.1%}]" for s in row.values())
        lines.append(f"{method:9}" + "".join(f"{cell:>24}" for cell in cells))
    *groups, last = demos.SCORED_GROUPS
    asked = f"{questions} questions of {', '.join(groups)} and {last}"
    lines.append(f"exact match with 95 % Wilson intervals, {asked};")
    lines.append(
        "retention: vision tokens held, averaged over the layers, by every method but none"
    )
    return "\n".join(lines)
