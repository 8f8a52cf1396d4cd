"""The JSON header of a trace's file, which tells what is not in tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

FORMAT = "lightkv-trace"
"""Key of the header in the file's metadata; the only one, so that equal traces are equal files."""

VERSION = 1

MOST = 2**31 - 1
"""Largest integer in a header."""

MOST_CELLS = 2**22
"""Cells of all grids together, at most: a small file may claim large ones, which take memory."""

MOST_SAMPLES = 2**16
"""Samples at most, which are numbered through, with pictures or not."""

_LEAST = {"layers": 0, "windows": 1, "grids": 1, "samples": 0, "counts": 1}
"""Lists of integers, with the least that each allows."""


def parse_header(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The header in a file's metadata.

    Raises:
        ValueError: It is not there, is no JSON, has another version, or fails
            :func:`check_header`.
    """
    if FORMAT not in metadata:
        raise ValueError(
            f"its metadata has the keys {sorted(metadata)}: expected {FORMAT!r}, as "
            "MergeTrace.save writes it"
        )
    try:
        header = json.loads(metadata[FORMAT])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise ValueError(f"its header is {short(header)}: expected a JSON object")
    if header.get("version") != VERSION:
        raise ValueError(
            f"it has version {short(header.get('version'))}: expected {VERSION}; a later release "
            "of this library may read it"
        )
    return check_header(header)


def check_header(header: dict[str, Any]) -> dict[str, Any]:
    """The header, where every entry is of the kind it has to be.

    Raises:
        ValueError: Entries are missing, too many, of another kind or out of range, or do not fit
            each other.
    """
    expected = {"version", "prompts", *_LEAST}
    if set(header) != expected:
        raise ValueError(
            f"its header lacks {sorted(expected - set(header))} and has "
            f"{short(sorted(set(header) - expected))} too many"
        )
    for name, least in _LEAST.items():
        _check_integers(name, header[name], least)
    layers, windows = header["layers"], header["windows"]
    if len(layers) != len(windows) or sorted(set(layers)) != layers:
        raise ValueError(
            f"stages run after layers {short(layers)} with windows {short(windows)}: expected "
            "each layer once, ascending, and as many windows"
        )
    grids, samples, counts = header["grids"], header["samples"], header["counts"]
    if not len(grids) == len(samples) == len(counts):
        raise ValueError(
            f"there are {len(grids)} grids, {len(samples)} samples and {len(counts)} counts: "
            "expected one of each per image"
        )
    cells = sum(rows * cols for rows, cols in grids)
    if cells > MOST_CELLS:
        raise ValueError(f"its grids have {cells} cells: expected {MOST_CELLS} at most")
    if max(samples, default=0) >= MOST_SAMPLES:
        raise ValueError(f"it names sample {max(samples)}: expected 0 to {MOST_SAMPLES - 1}")
    check_prompts(header["prompts"], samples)
    return header


def _check_integers(name: str, value: object, least: int) -> None:
    """Verifies a list of integers, or of pairs of them for grids."""
    pairs = name == "grids"
    rows = value if pairs else [value]
    good = isinstance(rows, list) and all(
        isinstance(row, list)
        and (len(row) == 2 or not pairs)
        and all(type(n) is int and least <= n <= MOST for n in row)
        for row in rows
    )
    if not good:
        raise ValueError(
            f"{name} is {short(value)}: expected a list of "
            f"{'pairs of ' if pairs else ''}integers from {least} to {MOST}"
        )


def check_prompts(prompts: object, samples: Sequence[int]) -> None:
    """Verifies prompts.

    Args:
        prompts: One string for each sample, or none at all.
        samples: Sample of each image.

    Raises:
        ValueError: Not all are strings, or there are fewer than samples.
    """
    if not isinstance(prompts, (list, tuple)) or not all(isinstance(own, str) for own in prompts):
        raise ValueError(f"prompts is {short(prompts)}: expected a list of strings")
    count = max(samples, default=-1) + 1
    if prompts and len(prompts) < count:
        raise ValueError(f"{len(prompts)} prompts for {count} samples: expected one each, or none")


def short(value: object) -> str:
    """What ``value`` looks like, cut off where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
