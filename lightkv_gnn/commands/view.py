"""The command ``lightkv-gnn view``: a page that shows how a trace's tokens merged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lightkv_gnn.commands.options import Json, make_app
from lightkv_gnn.sources import read_picture

if TYPE_CHECKING:
    from lightkv_graphs import View

app = make_app()

Traces = Annotated[
    list[Path],
    typer.Argument(
        metavar="TRACE...",
        help="What MergeTrace.save wrote; several of the same image are shown side by side.",
    ),
]
Out = Annotated[
    Path | None, typer.Option("-o", "--out", help="The page.", show_default="beside the trace")
]
Images = Annotated[
    list[Path] | None,
    typer.Option(
        "--image",
        metavar="FILE",
        help="What the model saw; where it is cut into tiles, one for each, in order.",
    ),
]
Prompts = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt", help="One for each trace, in order.", show_default="what the trace has"
    ),
]
Title = Annotated[str | None, typer.Option(help="Of the page.")]


@app.command()
def view(
    traces: Traces,
    out: Out = None,
    image: Images = None,
    prompt: Prompts = None,
    title: Title = None,
    as_json: Json = False,
) -> None:
    """Make a page that shows how the vision tokens of a trace merged."""
    page, views = make_page(traces, out, image or [], prompt, title)
    if as_json:
        print(json.dumps({"files": [str(page)], "traces": [repr(one.trace) for one in views]}))
    else:
        print(f"wrote {page}: open it in a browser")


def make_page(
    traces: Sequence[Path],
    out: Path | None,
    images: Sequence[Path],
    prompts: Sequence[str] | None,
    title: str | None,
) -> tuple[Path, list[View]]:
    """Writes the page; returns where, and what it shows.

    Raises:
        ValueError: A file holds no trace or no picture, they do not go together, or the page would
            replace one of them.
        OSError: A file cannot be read, or the page not be written.
    """
    asked: Sequence[str | None] = prompts or [None] * len(traces)
    if len(asked) != len(traces):
        raise ValueError(f"{len(asked)} --prompt for {len(traces)} traces: give one for each")
    page = out or traces[0].with_suffix(".html")
    if page.resolve() in {file.resolve() for file in (*traces, *images)}:
        raise ValueError(f"{page} is read here: name another file for the page with -o")
    for file in traces:
        file.stat()
    pictures = [read_picture(file) for file in images]

    from lightkv_graphs import MergeTrace, View, write_page

    views = [
        View(MergeTrace.load(file), pictures, prompt, name=file.stem if len(traces) > 1 else "")
        for file, prompt in zip(traces, asked, strict=True)
    ]
    write_page(page, views, **({} if title is None else {"title": title}))
    return page, views
