"""What ``--model_args`` may say, read and checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from lightkv_gnn.adapters import check_name
from lightkv_gnn.baselines import METHODS, NONE
from lightkv_gnn.baselines.downsample import DOWNSAMPLE
from lightkv_gnn.baselines.oracle import ORACLE, ORACLE_PRUNING
from lightkv_gnn.choices import GUIDANCE, named
from lightkv_gnn.costs.schedule import Stage, read_stage
from lightkv_gnn.stage.compressor import MATCHERS
from lightkv_gnn.stage.messages import MESSAGES

BASELINES = {
    name: method
    for name, method in METHODS.items()
    if method not in (DOWNSAMPLE, ORACLE, ORACLE_PRUNING)
}
"""Methods that a benchmark can be run with: those that want to be told no answers, and take the
pictures as they are."""

NAMES: dict[str, Mapping[str, Any]] = {
    "guidance": {name: name for name in GUIDANCE},
    "message": MESSAGES,
    "matcher": MATCHERS,
}
"""Parts that can be given by name, or by the import path of one's own."""


@dataclass(frozen=True)
class Arguments:
    """What to run, and how.

    Attributes:
        pretrained: A folder that ``save_pretrained`` wrote, a hub id, or "tiny", which is bundled.
        retention: Vision tokens held, averaged over the layers; fraction.
        schedule: Stages to run instead; none to find some for ``retention``.
        adapter: By name, in place of the one of the model's type; "auto" where it has none.
        parts: Further fields of :class:`lightkv_gnn.LightKVConfig`.
        baseline: Name of a method to run instead, among :data:`BASELINES`; "none" compresses
            nothing.
        depth: First layer after which a baseline's tokens may leave; None for the first that may.
        batch_size: Questions asked at once.
        max_new_tokens: Of an answer, where a task does not say.
        device: None for a GPU of each process's own if there is one, else the CPU.
        dtype: Of the weights, by name; "auto" is float32 on a CPU, else the checkpoint's.
        attention: Of transformers' attention implementations; None for the model's default.
        agreement: Whether questions with pictures are asked without compression too, to tell how
            many answers are the same; nothing to likelihoods.
    """

    pretrained: str
    retention: float = 0.55
    schedule: tuple[Stage, ...] = ()
    adapter: str | None = None
    parts: Mapping[str, Any] = field(default_factory=dict)
    baseline: str | None = None
    depth: int | None = None
    batch_size: int = 1
    max_new_tokens: int = 1024
    device: str | None = None
    dtype: str = "auto"
    attention: str | None = None
    agreement: bool = False

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Arguments:
        """Reads ``--model_args`` as lmms-eval has split them.

        Raises:
            ValueError: An argument that is not known, that cannot be read, or that goes with no
                other; ``pretrained`` is missing.
            ImportError: An import path that leads nowhere.
        """
        _check_names(given)
        if "pretrained" not in given:
            raise ValueError("--model_args has no pretrained=: give a folder, a hub id or tiny")
        values = {_FIELDS.get(name, name): _read(name, value) for name, value in given.items()}
        _check_company(given)
        parts = {name: values.pop(name) for name in PARTS if name in values}
        return cls(parts=parts, **values)


PARTS = ("guidance", "rotary", "message", "matcher", "positions", "scatter")

_FIELDS = {"lightkv_baseline": "baseline", "attn_implementation": "attention"}

_OWN = {field: name for name, field in _FIELDS.items()}

KNOWN = (
    *(_OWN.get(one.name, one.name) for one in fields(Arguments) if one.name != "parts"),
    *PARTS,
)
"""Names of all arguments."""


def _check_names(given: Collection[str]) -> None:
    for name in given:
        if name not in KNOWN:
            near = get_close_matches(name, KNOWN, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(
                f"--model_args {name}= is not known: expected some of {', '.join(KNOWN)}{hint}"
            )


def _check_company(given: Mapping[str, Any]) -> None:
    """Raises ValueError for arguments that would have no effect beside others."""
    if "schedule" in given and "retention" in given:
        raise ValueError("--model_args has schedule= and retention=: give one of them")
    name = given.get("lightkv_baseline")
    if name is None:
        if "depth" in given:
            raise ValueError("--model_args depth= is for baselines: give lightkv_baseline= too")
        return
    idle = ["schedule", "adapter", *PARTS]
    if name == NONE.name:
        idle += ["retention", "depth", "agreement"]
    elif not BASELINES[name].has_depth:
        idle += ["depth"]
    for other in idle:
        if other in given:
            raise ValueError(
                f"--model_args {other}= means nothing with lightkv_baseline={name}: leave it out"
            )


def _read(name: str, value: Any) -> Any:
    """One argument's value.  lmms-eval makes numbers and truth values of what looks like them."""
    if name in NAMES:
        return _part(name, str(value))
    if name == "schedule":
        return read_schedule(str(value))
    if name == "lightkv_baseline":
        if value not in BASELINES:
            raise ValueError(
                f"--model_args lightkv_baseline={value}: expected one of {', '.join(BASELINES)}"
            )
        return value
    if name == "adapter":
        try:
            check_name(str(value))
        except ValueError as error:
            raise ValueError(f"--model_args adapter={value}: {error}") from error
        return str(value)
    if name in _COUNTS:
        return _count(name, value)
    if name == "retention":
        try:
            return float(value)
        except ValueError as error:
            raise ValueError(f"--model_args retention={value}: expected a fraction") from error
    if name == "agreement":
        if str(value) not in ("True", "False"):
            raise ValueError(f"--model_args agreement={value}: expected True or False")
        return str(value) == "True"
    return value if name == "rotary" or value is None else str(value)


_COUNTS = {"batch_size": 1, "max_new_tokens": 1, "depth": 0}
"""Whole numbers, and the least that makes sense."""


def _count(name: str, value: Any) -> int:
    text = str(value)
    if not text.isdecimal() or int(text) < _COUNTS[name]:
        raise ValueError(
            f"--model_args {name}={value}: expected a whole number from {_COUNTS[name]} up"
        )
    return int(text)


def read_schedule(text: str) -> tuple[Stage, ...]:
    """Stages written as ``LAYER:WINDOWS:RATIO`` with plus signs between them: ``11:4:0.5+17:2``.

    Raises:
        ValueError: It is not written so, or a stage is out of range.
    """
    try:
        return tuple(read_stage(one) for one in text.split("+"))
    except ValueError as error:
        raise ValueError(
            f"--model_args schedule={text}: expected LAYER:WINDOWS:RATIO with + between "
            f"stages, such as 11:4:0.5+17:2:0.5; {error}"
        ) from error


def _part(name: str, text: str) -> Any:
    """A part by its name, or what an import path leads to."""
    known = NAMES[name]
    own = named(text, known)
    if own is not None:
        return known[own]
    module, colon, attribute = text.partition(":")
    if not colon:
        raise ValueError(
            f"--model_args {name}={text}: expected one of {', '.join(known)}, or the import path "
            "of your own, such as my_module:my_function"
        )
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"--model_args {name}={text}: {error}; Python must find the module, with PYTHONPATH=. "
            "in the current folder"
        ) from error
