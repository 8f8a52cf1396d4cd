"""Traces and pictures as compact JSON, for the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightkv_graphs.explore.view import View, check_together
from lightkv_graphs.layout import Grid

if TYPE_CHECKING:
    from PIL.Image import Image

PIXELS = 3 * 2**18
"""Most pixels of all pictures of a page together."""

LOSSLESS = 2**16
"""Most bytes of a picture that is kept exactly; larger ones become JPEG."""

KINDS = {"u8": (0, 2**8 - 1), "i16": (-(2**15), 2**15 - 1), "i32": (-(2**31), 2**31 - 1)}
"""How whole numbers are packed, smallest first: name, lowest and highest value."""


def payload(views: Sequence[View]) -> dict[str, Any]:
    """All that the page knows, as plain values.

    Numbers per token are packed, see :func:`pack`.  Pictures are listed once, however many views
    show them.

    Raises:
        ValueError: There are no views, or they begin with different tokens.
    """
    check_together(views)
    different = {id(picture): picture for view in views for picture in view.seen}
    pixels = PIXELS // max(1, len(different))
    sources: dict[str, int] = {}
    number = {
        key: sources.setdefault(data_uri(picture, pixels), len(sources))
        for key, picture in different.items()
    }
    return {
        "pictures": list(sources),
        "views": [_view(view, [number[id(picture)] for picture in view.seen]) for view in views],
    }


def _view(view: View, pictures: Sequence[int]) -> dict[str, Any]:
    layout = view.trace.layout
    heard = [view.trace.relative_guidance(stage) for stage in range(len(view.trace))]
    images = []
    for image, (rows, cols) in enumerate(layout.grids):
        shown: dict[str, Any] = {"sample": layout.samples[image], "rows": rows, "cols": cols}
        shown["tokens"] = layout.counts[image]
        if pictures:
            seen = view.seen[image]
            shown["picture"] = pictures[image]
            shown["shape"] = seen.height / seen.width
            shown["colours"] = _packed(mean_colours(seen, (rows, cols)), "u8")
        images.append(shown)
    return {
        "name": view.name,
        "prompts": list(view.prompts),
        "answer": view.answer,
        "images": images,
        **{name: pack(getattr(layout, name)) for name in ("row", "col", "mass", "protected")},
        "stages": [
            {
                "layer": stage.layer,
                "windows": stage.windows,
                **{name: pack(getattr(stage, name)) for name in ("window", "kept", "survivor")},
                **{name: pack(getattr(stage, name)) for name in ("weight", "similarity")},
                "guidance": None if guidance is None else pack(guidance),
                "lost": None if stage.certificate is None else stage.certificate.shares_of_images(),
            }
            for stage, guidance in zip(view.trace, heard, strict=True)
        ],
        "layers": None if view.layers is None else [layer._asdict() for layer in view.layers],
    }


def pack(values: Tensor) -> dict[str, str]:
    """Numbers as base64 of little-endian bytes, with the kind of number.

    Args:
        values: `[value]`.  Whole numbers and truth values take the smallest of ``KINDS`` that
            holds them, others become float32 ("f32").
    """
    values = values.detach().cpu()
    if values.is_floating_point():
        return _packed(values.float().numpy().astype("<f4").tobytes(), "f32")
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    kind = next(kind for kind, (least, most) in KINDS.items() if least <= low and high <= most)
    return _packed(values.numpy().astype(f"<{kind[0]}{int(kind[1:]) // 8}").tobytes(), kind)


def _packed(data: bytes, kind: str) -> dict[str, str]:
    return {"kind": kind, "data": base64.b64encode(data).decode("ascii")}


def data_uri(picture: Image, pixels: int) -> str:
    """A picture, made smaller if it has more pixels, as text that stands in for its address."""
    from PIL.Image import Resampling

    picture = picture.convert("RGB")
    scale = (pixels / (picture.width * picture.height)) ** 0.5
    if scale < 1:
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        picture = picture.resize(size, Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    kind = "png"
    if stream.tell() > LOSSLESS:
        stream, kind = io.BytesIO(), "jpeg"
        picture.save(stream, "JPEG", quality=82, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def mean_colours(picture: Image, grid: Grid) -> bytes:
    """Mean colour of each cell of a grid over the picture: red, green, blue, row by row."""
    from PIL.Image import Resampling

    rows, cols = grid
    return picture.convert("RGB").resize((cols, rows), Resampling.BOX).tobytes()
