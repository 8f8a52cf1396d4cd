"""Traces as files: safetensors with a JSON header, checked when they are read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lightkv_graphs.certificate import Certificate
from lightkv_graphs.header import FORMAT, VERSION, check_header, parse_header, short
from lightkv_graphs.layout import TokenLayout
from lightkv_graphs.stage import StageTrace

_INTEGER, _BOOL, _FLOAT = ("I8", "I16", "I32"), ("BOOL",), ("F32",)

_LAYOUT = {"row": _INTEGER, "col": _INTEGER, "mass": _INTEGER, "protected": _BOOL}
"""Tensors of the first layout, `[token]`, with what may hold them."""

_STAGE = {"window": _INTEGER, "stays": _BOOL, "weight": _FLOAT}
"""Tensors of a stage, `[token]`; ``guidance`` comes to them where the prompt was heard, and
``certificate``, `[3, image]`, where the matcher told what it lost."""

_MERGED = {"survivor": _INTEGER, "similarity": _FLOAT}
"""Tensors of a stage for the tokens that do not stay, `[merged]`."""


_OPTIONAL = ("guidance", "certificate")
"""Tensors that a stage may have."""


class TraceFileError(ValueError):
    """A file that holds no valid trace."""


class Parts(NamedTuple):
    """What a trace is made of; see :class:`lightkv_graphs.MergeTrace`."""

    layout: TokenLayout
    stages: tuple[StageTrace, ...]
    prompts: tuple[str, ...]


def write_trace(path: str | os.PathLike[str], parts: Parts) -> None:
    """Writes a trace to one file, which is there whole or not at all.

    Raises:
        ValueError: The trace is not valid: it could not be read again.
        OSError: The file cannot be written; one that was there is as it was.
    """
    header, tensors = _encode(parts)
    _decode(check_header(header), tensors)
    data = save(tensors, {FORMAT: json.dumps(header)})
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}")
    unfinished = path.with_name(f".{uuid4().hex}.part")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_trace(path: str | os.PathLike[str]) -> Parts:
    """Reads a file of :func:`write_trace`; nothing in it is executed.

    Raises:
        TraceFileError: The file holds no valid trace; the message names it, what was expected and
            what came.
        OSError: The file cannot be read.
    """
    with Path(path).open("rb"):  # what is missing or forbidden is told by Python itself
        pass
    try:
        with safe_open(path, framework="pt") as file:
            header = parse_header(file.metadata() or {})
            names = list(file.keys())
            _check_tensors(header, {name: file.get_slice(name).get_dtype() for name in names})
            return _decode(header, {name: file.get_tensor(name).clone() for name in names})
    except (SafetensorError, ValueError) as error:
        raise TraceFileError(f"{os.fspath(path)} holds no valid trace: {error}") from error


def _encode(parts: Parts) -> tuple[dict[str, Any], dict[str, Tensor]]:
    layout, stages, prompts = parts
    header = {
        "version": VERSION,
        "layers": [stage.layer for stage in stages],
        "windows": [stage.windows for stage in stages],
        "grids": [list(grid) for grid in layout.grids],
        "samples": list(layout.samples),
        "counts": list(layout.counts),
        "prompts": list(prompts),
    }
    tensors = {name: getattr(layout, name) for name in _LAYOUT}
    for number, stage in enumerate(stages):
        own = {name: getattr(stage, name) for name in _STAGE}
        own.update({name: getattr(stage, name)[~stage.stays] for name in _MERGED})
        if stage.guidance is not None:
            own["guidance"] = stage.guidance
        if stage.certificate is not None:
            own["certificate"] = torch.stack(stage.certificate)
        tensors.update({f"{number}.{name}": value for name, value in own.items()})
    return header, {name: _narrowed(value.detach().cpu()) for name, value in tensors.items()}


def _narrowed(value: Tensor) -> Tensor:
    """The same numbers in few bytes: logarithms and cosines near one need float32."""
    if value.dtype == torch.bool:
        return value.contiguous()
    if value.is_floating_point():
        return value.float().contiguous()
    ends = [int(end) for end in value.aminmax()] if len(value) else [0]
    for dtype in (torch.int8, torch.int16, torch.int32):
        if all(torch.iinfo(dtype).min <= end <= torch.iinfo(dtype).max for end in ends):
            return value.to(dtype)
    return value


def _check_tensors(header: Mapping[str, Any], dtypes: Mapping[str, str]) -> None:
    """Verifies that there are the tensors that the header promises, and no others."""
    expected = dict(_LAYOUT)
    optional: dict[str, tuple[str, ...]] = {}
    for number in range(len(header["layers"])):
        for name, kinds in {**_STAGE, **_MERGED}.items():
            expected[f"{number}.{name}"] = kinds
        optional |= {f"{number}.{name}": _FLOAT for name in _OPTIONAL}
    for name in expected:
        if name not in dtypes:
            raise ValueError(f"it has no tensor {name!r}: expected one, as its header says")
    expected.update(optional)
    for name, dtype in dtypes.items():
        if name not in expected:
            raise ValueError(f"it has a tensor {short(name)}: expected {short(sorted(expected))}")
        if dtype not in expected[name]:
            raise ValueError(f"tensor {name!r} is {dtype}: expected {' or '.join(expected[name])}")


def _decode(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Parts:
    counts = header["counts"]
    for name in _LAYOUT:
        if tensors[name].shape != (sum(counts),):
            raise ValueError(
                f"{name} has shape {list(tensors[name].shape)}: expected [{sum(counts)}], as the "
                "images have tokens"
            )
    image = torch.arange(len(counts), device="cpu").repeat_interleave(
        torch.tensor(counts, dtype=torch.int64, device="cpu")
    )
    first = layout = TokenLayout.from_tokens(
        sample=torch.tensor(header["samples"], dtype=torch.int64, device="cpu")[image],
        image=image,
        grids=header["grids"],
        **{name: tensors[name] for name in _LAYOUT},
    )
    stages: list[StageTrace] = []
    for number, (layer, windows) in enumerate(
        zip(header["layers"], header["windows"], strict=True)
    ):
        own = {
            name: tensors[f"{number}.{name}"]
            for name in (*_STAGE, *_MERGED, *_OPTIONAL)
            if f"{number}.{name}" in tensors
        }
        try:
            stages.append(
                StageTrace.from_tokens(
                    layout, layer=layer, windows=windows, **_whole(own, len(layout))
                )
            )
        except ValueError as error:
            raise ValueError(f"stage {number}: {error}") from error
        layout = stages[-1].layout
    return Parts(first, tuple(stages), tuple(header["prompts"]))


def _certificate(rows: Tensor) -> Certificate:
    if rows.ndim != 2 or len(rows) != len(Certificate._fields):
        raise ValueError(f"certificate has shape {list(rows.shape)}: expected [3, image]")
    return Certificate(*rows)


def _whole(own: dict[str, Any], tokens: int) -> dict[str, Any]:
    """Entries for every token, where the file has them for those that do not stay."""
    stays = own.pop("stays")
    if stays.shape != (tokens,):
        raise ValueError(f"stays has shape {list(stays.shape)}: expected [token] = [{tokens}]")
    merged = int((~stays).sum())
    for name in _MERGED:
        if own[name].shape != (merged,):
            raise ValueError(
                f"{name} has shape {list(own[name].shape)}: expected [merged] = [{merged}]"
            )
    survivor = (stays.cumsum(0) - 1).masked_scatter(~stays, own["survivor"].long())
    similarity = torch.ones(tokens, device="cpu").masked_scatter(~stays, own["similarity"])
    if "certificate" in own:
        own["certificate"] = _certificate(own["certificate"])
    return {**own, "kept": stays.nonzero()[:, 0], "survivor": survivor, "similarity": similarity}
