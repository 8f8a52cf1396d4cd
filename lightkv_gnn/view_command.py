"""The command ``lightkv-gnn view``: a page that shows how a trace's tokens merged."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from lightkv_graphs import MergeTrace, View, write_page


def add_parser(commands: Any) -> None:
    """Adds the command to those of a parser."""
    command = commands.add_parser(
        "view", help="make a page that shows how the image tokens of a trace merged"
    )
    command.add_argument(
        "traces",
        nargs="+",
        type=Path,
        metavar="TRACE",
        help="what MergeTrace.save wrote; several of the same image are shown side by side",
    )
    command.add_argument(
        "-o", "--out", type=Path, help="the page (default: beside the trace, as .html)"
    )
    command.add_argument(
        "--image",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="the picture; where it is cut into tiles, one for each, in order",
    )
    command.add_argument(
        "--prompt",
        action="append",
        help="one for each trace, in order (default: what the trace has)",
    )
    command.add_argument("--title", help="of the page")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Writes the page.

    Raises:
        ValueError: A file holds no trace or no picture, or they do not go together.
        OSError: A file cannot be read, or the page not be written.
    """
    files, prompts = options.traces, options.prompt or [None] * len(options.traces)
    if len(prompts) != len(files):
        raise ValueError(f"{len(prompts)} --prompt for {len(files)} traces: give one for each")
    out = options.out or files[0].with_suffix(".html")
    if out.resolve() in {file.resolve() for file in (*files, *options.image)}:
        raise ValueError(f"{out} is read here: name another file for the page with -o")
    pictures = [_picture(file) for file in options.image]
    views = [
        View(MergeTrace.load(file), pictures, prompt, name=file.stem if len(files) > 1 else "")
        for file, prompt in zip(files, prompts, strict=True)
    ]
    write_page(out, views, **({} if options.title is None else {"title": options.title}))
    if options.json:
        print(json.dumps({"files": [str(out)], "traces": [repr(view.trace) for view in views]}))
    else:
        print(f"wrote {out}: open it in a browser")


def _picture(file: Path) -> Image.Image:
    """The picture as processors see it, turned as its camera was."""
    try:
        with Image.open(file) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except UnidentifiedImageError as error:
        raise ValueError(f"{file} is not a picture that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{file} is too large a picture: {error}") from error
