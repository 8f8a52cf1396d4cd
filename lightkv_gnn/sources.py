"""Where models and pictures come from: files, folders and the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]*\w)?")


def check_source(source: str) -> None:
    """Raises FileNotFoundError for what is neither there nor an id that the hub could have."""
    if not Path(source).exists() and not _HUB_ID.fullmatch(source):
        raise FileNotFoundError(
            f"{source}: there is no such folder, and it is no id on the hub, such as "
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
        ValueError: It holds none, or one too large to be decoded.
        OSError: It cannot be read.
    """
    name = name or str(file)
    try:
        with Image.open(file) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is not a picture that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large a picture: {error}") from error
