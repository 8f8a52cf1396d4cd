"""Where models and pictures come from: files, folders and the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

_SIXTEEN_BITS = ("PNG", "PPM")
"""Formats whose grey of 16 bits Pillow opens as integers of 32."""

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]*\w")

TINY = "tiny"
"""What the bundled model is called."""


def check_source(source: str, *names: str) -> None:
    """Looks at where a model is to come from, without asking the hub.

    Args:
        source: A folder, or an id on the hub: ``owner/name``.
        names: What else it may be.

    Raises:
        FileNotFoundError: It is not there, and no id that the hub could have.
    """
    if source not in names and not Path(source).exists() and not _HUB_ID.fullmatch(source):
        raise FileNotFoundError(
            f"{source}: there is no such folder, and it is no id on the hub, OWNER/NAME, such as "
            "llava-hf/llava-1.5-7b-hf"
        )


def check_exists(path: Path) -> None:
    """Raises FileNotFoundError for what is not there."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file or folder")


@contextmanager
def loading(source: str) -> Iterator[None]:
    """Names the model in whatever keeps transformers from loading it.

    Raises:
        OSError: As transformers', but for its advice.
    """
    try:
        yield
    except OSError as error:
        reason = str(error).strip().partition("\n")[0]
        raise OSError(
            f"{source} cannot be loaded: expected a folder with a model and its processor, as "
            f"save_pretrained writes them, or an id on the hub; {reason}"
        ) from error


def reason_of(error: BaseException) -> str:
    """What an error says; one about a file, which file and what is wrong with it."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def read_picture(file: str | Path | BinaryIO, name: str = "") -> Image.Image:
    """The picture in a file as processors see it, turned as its camera was.

    Args:
        file: Or an open one.
        name: What errors call it; the file's own if not given.

    Raises:
        ValueError: It holds none, one too large to be decoded, or numbers that have no white.
        OSError: It cannot be read.
    """
    name = name or str(file)
    try:
        with Image.open(file) as opened:
            return as_rgb(opened, name)
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is not a picture that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large a picture: {error}") from error


def as_rgb(picture: Image.Image, name: str = "the picture") -> Image.Image:
    """A picture in 8 bits per colour, turned as its camera was; the first frame of several.

    Grey of 16 bits is scaled, where Pillow would cut it off; transparency is dropped, colours below
    it stay as they are stored, as processors have it.

    Args:
        picture: As Pillow opened it.
        name: What errors call it.

    Raises:
        ValueError: Floats, or integers of 32 bits: no file says which of them is white.
    """
    mode, turned = picture.mode, ImageOps.exif_transpose(picture)
    if mode.startswith("I;16") or (mode == "I" and picture.format in _SIXTEEN_BITS):
        return turned.convert("I").point(lambda grey: grey * (1 / 257) + 0.5).convert("RGB")
    if mode in ("I", "F"):
        kind = "integers of 32 bits" if mode == "I" else "floats"
        raise ValueError(
            f"{name} holds {kind} (mode {mode}), which do not say what is white: expected a "
            "picture of 8 or 16 bits; scale it to 0..255 and save it as L or RGB"
        )
    if mode == "P":  # its transparency may be a table, which becomes an alpha channel alone
        turned = turned.convert("RGBA")
    return turned.convert("RGB")
