"""A smaller picture in the first place."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from lightkv_gnn.adapters import adapter_for
from lightkv_gnn.baselines.losses import MeasuredCompressor
from lightkv_gnn.baselines.method import Applied, Bill, Budget, Hints, Method
from lightkv_gnn.choices import check_retention
from lightkv_gnn.config import LightKVConfig
from lightkv_gnn.errors import ScheduleError
from lightkv_gnn.session.attach import attach
from lightkv_gnn.stage.compressor import TokenCompressor
from lightkv_graphs import Grid

OPTION = "interpolate_pos_encoding"
"""Of vision towers with a table of positions, which they stretch over a picture of any size."""


@dataclass(frozen=True, eq=False)
class Smaller(Applied):
    """Smaller pictures at work.

    Attributes:
        grid: (rows, columns) of the full picture's tokens.
    """

    grid: Grid = (1, 1)

    def bill(self) -> Bill:
        """The last prefill's; retention is of the full picture's tokens."""
        layout = self.handle.trace.layout
        full = len(layout.counts) * self.grid[0] * self.grid[1]
        return replace(super().bill(), retention=len(layout) / full)


class Downsample(Method):
    """The pictures are made smaller before the model sees them, so all layers hold fewer tokens.

    Where stages begin has no meaning.  :attr:`Applied.side` says how much smaller; who makes the
    inputs has to do it, with :func:`smaller` for instance.  Interpolated positions are no training:
    a model that has seen one size only, such as the bundled tiny one, may read no other.
    """

    has_depth: ClassVar[bool] = False

    @contextmanager
    def applied(self, model: Any, budget: Budget) -> Iterator[Applied]:
        """The method at work; see :meth:`Method.applied`."""
        if budget.grid is None:
            raise ScheduleError(
                "downsampling is told by the size of the full picture, which is not always the "
                "same for this model: give Budget.grid"
            )
        measured = MeasuredCompressor(TokenCompressor())
        with ExitStack() as undo:
            handle = undo.enter_context(attach(model, LightKVConfig([]), compressor=measured))
            for tower in towers(adapter_for(model).base):
                hook = tower.register_forward_pre_hook(_interpolating, with_kwargs=True)
                undo.callback(hook.remove)
            side = side_of(budget.retention, budget.grid)
            yield Smaller(handle, Hints(), measured, side, budget.grid)


def side_of(retention: float, grid: Grid) -> float:
    """Side of a picture with ``retention`` of the tokens, whole ones along its shorter side."""
    check_retention(retention)
    shorter = min(grid)
    return max(1, round(shorter * retention**0.5)) / shorter


def towers(base: nn.Module) -> list[nn.Module]:
    """The outermost modules in a model that can interpolate their positions."""
    if OPTION in inspect.signature(base.forward).parameters:
        return [base]
    return [tower for child in base.children() for tower in towers(child)]


def _interpolating(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    given = inspect.signature(module.forward).bind_partial(*args).arguments
    return (args, kwargs) if OPTION in given else (args, {**kwargs, OPTION: True})


def smaller(processor: Any, side: float) -> dict[str, Any]:
    """What to call a processor with, besides pictures and text, for smaller pictures.

    The placeholders in the text become fewer with it.

    Args:
        processor: Of a model whose pictures are scaled to one size, such as LLaVA-1.5's.
        side: Fraction of the full side.

    Raises:
        ValueError: The side is no whole number of patches.
    """
    options: dict[str, Any] = {}
    for name in ("size", "crop_size"):
        full = getattr(processor.image_processor, name, None)
        for key, pixels in (dict(full) if full else {}).items():
            if pixels is None:
                continue
            patches = pixels * side / processor.patch_size
            if abs(patches - round(patches)) > 1e-6:
                raise ValueError(
                    f"{side} of the side makes {name}.{key} {pixels * side:g} pixels: expected "
                    f"whole patches of {processor.patch_size}"
                )
            options.setdefault(name, {})[key] = round(patches) * processor.patch_size
    return options


DOWNSAMPLE = Downsample(
    "downsample",
    "the picture scaled down; position tables of the vision tower are interpolated",
)
