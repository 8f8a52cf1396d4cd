"""What commands share: how they are made, and options that mean the same in all of them."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from lightkv_gnn.choices import check_retention

DtypeName = Literal["float32", "bfloat16", "float16"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Threads = Annotated[int, typer.Option(min=1, help="Of a CPU.")]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer and smaller.")]


def _retention(share: float) -> float:
    check_retention(share)
    return share


Retention = Annotated[
    float,
    typer.Option(
        metavar="SHARE",
        callback=_retention,
        help="Vision tokens to hold, averaged over the layers.",
    ),
]


def _adapter(name: str | None) -> str | None:
    if name is not None:
        from lightkv_gnn.adapters import check_name

        try:
            check_name(name)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
    return name


AdapterName = Annotated[
    str | None,
    typer.Option(
        "--adapter",
        metavar="NAME",
        callback=_adapter,
        help="auto: let the library find vision tokens and grids where the model's type has no "
        "adapter of its own; or another model type, whose adapter fits.",
        show_default="of the model's type",
    ),
]


def _stage(text: str) -> Any:
    from lightkv_gnn.costs.schedule import read_stage

    try:
        return read_stage(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


Stages = Annotated[
    list[Any] | None,
    typer.Option(
        "--stage",
        parser=_stage,
        metavar="LAYER:WINDOWS:RATIO",
        help="A stage instead of a retention; repeat it for more.",
    ),
]


def make_app(**options: Any) -> typer.Typer:
    """An app whose help and errors are plain text, whatever writes or reads them."""
    plain: dict[str, Any] = {
        "add_completion": False,
        "rich_markup_mode": None,
        "pretty_exceptions_enable": False,
    }
    return typer.Typer(**{**plain, **options})


def hush() -> None:
    """Keeps transformers, where it is imported, from telling more than errors."""
    if transformers := sys.modules.get("transformers"):
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()


def one_of(names: Collection[str], **options: Any) -> Any:
    """An option that takes one of ``names``, which the shell completes."""

    def known(value: str) -> str:
        if value not in names:
            raise typer.BadParameter(f"{value!r}: expected one of {', '.join(names)}")
        return value

    def begun(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return typer.Option(parser=known, autocompletion=begun, **options)


class ManyValues(TyperCommand):
    """A command whose repeatable options take several values at once: ``--seeds 0 1 2``.

    For commands without arguments, which such values would be taken for.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As if each value had its own option before it."""
        many = {
            name
            for parameter in self.params
            if getattr(parameter, "multiple", False)
            for name in parameter.opts
        }
        return super().parse_args(ctx, list(_repeated(args, many)))


def _repeated(args: Sequence[str], many: Collection[str]) -> Iterator[str]:
    option, waiting = "", False
    for arg in args:
        if arg.startswith("-") and not arg[1:2].isdigit():
            option, _, value = arg.partition("=")
            waiting = not value
        elif option in many and not waiting:
            yield option
        else:
            waiting = False
        yield arg
