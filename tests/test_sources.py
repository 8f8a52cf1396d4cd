"""Pictures in files, of every mode that Pillow opens: their colours, or words."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lightkv_gnn.harness.prompts import pictures_of
from lightkv_gnn.sources import read_picture

GREY = np.arange(256, dtype="u1").reshape(16, 16)
COLOURS = np.stack([GREY, GREY.T, 255 - GREY], -1)
WIDE = GREY.astype("u2") * 257


def saved(picture: Image.Image, kind: str, **options: Any) -> BytesIO:
    file = BytesIO()
    picture.save(file, kind, **options)
    file.seek(0)
    return file


def pgm() -> BytesIO:
    return BytesIO(b"P5 16 16 65535\n" + WIDE.astype(">u2").tobytes())


def big_endian() -> BytesIO:
    return saved(Image.frombytes("I;16B", (16, 16), WIDE.astype(">u2").tobytes()), "TIFF")


@pytest.mark.parametrize(
    ("file", "mode"),
    [
        (saved(Image.fromarray(GREY), "PNG"), "L"),
        (saved(Image.fromarray(WIDE), "PNG"), "I;16"),
        (saved(Image.fromarray(WIDE), "TIFF"), "I;16"),
        (big_endian(), "I;16B"),
        (pgm(), "I"),
    ],
    ids=["L", "png", "tiff", "big-endian tiff", "pgm"],
)
def test_grey_of_sixteen_bits_is_that_of_eight(file: BytesIO, mode: str) -> None:
    with Image.open(file) as opened:
        assert opened.mode == mode
        asked = pictures_of([{"content": [{"type": "image", "image": opened}]}])[0]
    file.seek(0)
    for picture in (read_picture(file), asked):
        assert picture.mode == "RGB"
        assert (np.asarray(picture) == GREY[:, :, None]).all()


@pytest.mark.parametrize(("kind", "words"), [("i4", "integers of 32 bits"), ("f4", "floats")])
def test_numbers_without_a_white_are_refused(kind: str, words: str) -> None:
    file = saved(Image.fromarray(WIDE.astype(kind)), "TIFF")
    with pytest.raises(ValueError, match=rf"scan.tif holds {words}.*expected a picture of 8 or 16"):
        read_picture(file, "scan.tif")


MODES = {"1": "TIFF", "LA": "PNG", "RGB": "PNG", "RGBA": "PNG", "CMYK": "TIFF", "P": "PNG"}
MODES |= {"YCbCr": "TIFF", "LAB": "TIFF"}


@pytest.mark.parametrize("mode", MODES)
def test_other_modes_are_their_colours(mode: str) -> None:
    """As Pillow converts them; colours below transparency stay as they are stored."""
    picture = Image.fromarray(COLOURS)
    if mode == "LAB":
        picture = Image.frombytes("LAB", picture.size, COLOURS.tobytes())
    else:
        picture = picture.convert(mode)
    if mode in ("LA", "RGBA"):
        picture.putalpha(Image.fromarray(GREY))
    file = saved(picture, MODES[mode])
    with Image.open(file) as opened:
        assert opened.mode == mode
        expected = opened.convert("RGB")
    file.seek(0)
    assert np.array_equal(read_picture(file), expected)


@pytest.mark.parametrize("clear", [3, bytes(range(64))], ids=["one colour", "a table"])
def test_transparent_colours_of_a_palette(clear: Any) -> None:
    picture = Image.fromarray(COLOURS).quantize(64)
    file = saved(picture, "PNG", transparency=clear)
    with Image.open(file) as opened:
        assert "transparency" in opened.info
    file.seek(0)
    assert np.array_equal(read_picture(file), picture.convert("RGB"))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    file = saved(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
    with Image.open(file) as opened:
        assert opened.n_frames == 3  # type: ignore[attr-defined]
    file.seek(0)
    assert np.array_equal(read_picture(file), frames[0])


def test_what_cannot_be_a_file_is_converted() -> None:
    """Modes that programs make, and hand to a chat."""
    picture = Image.fromarray(COLOURS).convert("HSV")
    found = pictures_of([{"content": [{"type": "image", "image": picture}]}])[0]
    assert np.array_equal(found, picture.convert("RGB"))
