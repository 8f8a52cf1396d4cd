"""What a page shows: a trace, and what is known beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from lightkv_graphs.header import check_prompts
from lightkv_graphs.trace import MergeTrace

if TYPE_CHECKING:
    from PIL.Image import Image


class LayerBar(NamedTuple):
    """What one decoder layer held.

    Attributes:
        tokens: Vision tokens.
        full: Vision tokens without compression.
        kv_bytes: Bytes of its keys and values; None where that is not known.
        kv_bytes_full: The same without compression.
    """

    tokens: int
    full: int
    kv_bytes: int | None = None
    kv_bytes_full: int | None = None


@dataclass(frozen=True, eq=False)
class View:
    """One prefill, as a page shows it.

    Attributes:
        trace: From ``handle.trace``.
        pictures: What the model saw, one for each image of the trace, as from
            ``lightkv_gnn.seen_tiles``; one picture for a trace of one image; or none, and the
            places of the tokens are coloured instead.
        prompt: The text that guided, one for all samples or one for each; if not given, what the
            trace has.
        answer: What the model said.
        layers: What each decoder layer held; if not given, the tokens that the trace tells of.
        name: Heads the view where a page has several.

    Raises:
        TypeError: ``trace`` is no trace, or a picture no picture.
        ValueError: There are not as many pictures as images, or fewer prompts than samples.
    """

    trace: MergeTrace
    pictures: Image | Sequence[Image] = ()
    prompt: str | Sequence[str] | None = None
    answer: str = ""
    layers: Sequence[LayerBar] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.trace, MergeTrace):
            raise TypeError(f"trace is a {type(self.trace).__name__}: expected a MergeTrace")
        for seen in (self.pictures,) if isinstance(self.pictures, str) else self.seen:
            if not hasattr(seen, "getpixel"):
                raise TypeError(f"a picture is {seen!r}: expected a PIL image, Image.open(file)")
        images = len(self.trace.layout.grids)
        if self.seen and len(self.seen) != images:
            raise ValueError(
                f"{len(self.seen)} pictures for a trace of {images} images: every tile and every "
                "frame is an image, see lightkv_gnn.seen_tiles"
            )
        check_prompts(self.prompts, self.trace.layout.samples)

    @property
    def seen(self) -> tuple[Image, ...]:
        """A picture for each image, or none."""
        return tuple(self.pictures) if isinstance(self.pictures, Sequence) else (self.pictures,)

    @property
    def prompts(self) -> tuple[str, ...]:
        """A prompt for each sample, or none."""
        if self.prompt is None:
            return self.trace.prompts
        if isinstance(self.prompt, str):
            return (self.prompt,) * (max(self.trace.layout.samples, default=0) + 1)
        return tuple(self.prompt)


def check_together(views: Sequence[View]) -> None:
    """Views of one page show the same tokens.

    Raises:
        ValueError: There are no views, or they begin with different tokens.
    """
    if not views:
        raise ValueError("no views: a page shows at least one")
    first = views[0].trace.layout
    for number, view in enumerate(views[1:], start=1):
        layout = view.trace.layout
        if (layout.grids, layout.counts, layout.samples) != (
            first.grids,
            first.counts,
            first.samples,
        ) or not all(
            torch.equal(getattr(layout, name).cpu(), getattr(first, name).cpu())
            for name in ("row", "col")
        ):
            raise ValueError(
                f"view {number} has other vision tokens than view 0 ({layout!r} and {first!r}): "
                "views beside each other are of the same image; write a page for each"
            )
