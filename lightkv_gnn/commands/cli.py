"""The command line: ``lightkv-gnn``.

A command's module is imported when the command is called, so that help and completion need not wait
for torch.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from lightkv_gnn import __version__
from lightkv_gnn.commands.options import hush, make_app
from lightkv_gnn.sources import reason_of

NAME = "lightkv-gnn"

COMMANDS = {
    "demo": ("lightkv_gnn.commands.demo", "Ask about a picture, with and without compression."),
    "run": ("lightkv_gnn.commands.run", "Answer a question about pictures of your own."),
    "batch": ("lightkv_gnn.commands.batch", "Ask about many pictures, on one machine or several."),
    "serve": ("lightkv_gnn.commands.serve", "Start vLLM's server with fewer tokens per picture."),
    "plan": ("lightkv_gnn.commands.plan", "Tell what compression will save, without weights."),
    "view": ("lightkv_gnn.commands.view", "Make a page that shows how a trace's tokens merged."),
    "eval": ("lightkv_gnn.commands.eval", "Ask trained models, with many methods."),
    "report": ("lightkv_gnn.commands.report", "Make a page of tables from rows."),
    "bench": ("lightkv_gnn.commands.bench", "Measure time and memory, side by side."),
    "doctor": ("lightkv_gnn.commands.doctor", "Tell what is installed and works here."),
}
"""Of each command, the module whose ``app`` it is, and what it does in a line."""


USERS = (ValueError, TypeError, OSError, ImportError)
"""Errors that a user can mend, and torch's OutOfMemoryError, which is known by its name."""


class Commands(TyperGroup):
    """All commands, imported when called; their errors end with one line."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        for name, (_, summary) in COMMANDS.items():
            self.add_command(TyperCommand(name, help=summary, rich_markup_mode=None))

    def resolve_command(
        self, ctx: Any, args: list[str]
    ) -> tuple[str | None, Any | None, list[str]]:
        """The command itself in place of its line of help."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, None if name is None else _load(COMMANDS[name][0]), rest

    def invoke(self, ctx: Any) -> Any:
        """Runs a command; errors of the user's make one line."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # whoever read the output has stopped, as ``head`` does
            raise
        except Exception as error:
            if not isinstance(error, USERS) and type(error).__name__ != "OutOfMemoryError":
                raise
            first = reason_of(error).strip().partition("\n\n")[0]
            typer.echo(f"{NAME}: {' '.join(first.split())}", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            typer.echo(f"{NAME}: interrupted; what was written is kept", err=True)
            raise typer.Exit(130) from error


def _load(module: str) -> Any:
    command = get_command(import_module(module).app)
    hush()
    return command


app = make_app(
    cls=Commands,
    add_completion=True,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"{NAME} {__version__}")
        raise typer.Exit()


@app.callback()
def _commands(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Lighter vision KV caches by message passing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        get_command(app).main(arguments, NAME, obj=shlex.join([NAME, *arguments]))
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0
