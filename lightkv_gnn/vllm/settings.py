"""How pictures are compressed in vLLM: one frozen object, part of every hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import lru_cache
from numbers import Real
from typing import Any

from lightkv_gnn import __version__
from lightkv_gnn.choices import check_retention, named
from lightkv_gnn.vllm.guidance import named_guidance, resolved_guidance

MATCHERS = ("coverage_matching", "cosine_matching", "random_matching", "stride_matching")
MESSAGES = ("mass_mean", "mean", "destination_only")
LEAST, MOST_WINDOWS = 0.01, 64
"""The least retention of a matcher of any ratio, and the most windows per side."""


@dataclass(frozen=True)
class Settings:
    """How much of each picture is kept, and how.

    Every picture gives up the same share of its tokens, in one step after the encoder's projector
    and before the first layer of the decoder.  Unless the prompt guides it, what is kept of a
    picture is the same for every question about it.

    Attributes:
        retention: Share of a picture's tokens that the decoder gets; 0.01 to 1, and 0.5 or more
            with matchers that merge every other token at most.
        windows: Windows per side that a picture is cut into, no merge crosses them; 1 to 64.
        matcher: Who stays: "coverage", "cosine", "random" or "stride", each also with
            ``_matching`` behind it, as it is kept; "random" draws alike for all pictures of a grid.
        message: What a survivor becomes: "mass_mean" or "mean", one and the same in a single step,
            or "destination_only", itself.
        guidance: Who stays: "none", whatever is asked; with the coverage matcher also
            "text_to_vision", what the text before the end of the picture's turn attends to in the
            decoder's first layer, or "vision_to_text", what attends to it; or a function of one's
            own, see :data:`lightkv_gnn.stage.guidance.GuidanceFunction`, or where it is found,
            "module:function", as it is kept if it can be imported.
    """

    retention: float
    windows: int = 2
    matcher: str = "coverage_matching"
    message: str = "mass_mean"
    guidance: str | Callable[..., Any] = "none"

    def __post_init__(self) -> None:
        if not isinstance(self.retention, Real) or isinstance(self.retention, bool):
            raise TypeError(f"retention is {self.retention!r}: expected a number")
        check_retention(self.retention)
        object.__setattr__(self, "retention", float(self.retention))  # plain, as JSON has it
        if not isinstance(self.windows, int) or isinstance(self.windows, bool):
            raise TypeError(f"windows is {self.windows!r}: expected an integer")
        if not 1 <= self.windows <= MOST_WINDOWS:
            raise ValueError(f"windows is {self.windows}: expected 1 to {MOST_WINDOWS} per side")
        for name, known in (("matcher", MATCHERS), ("message", MESSAGES)):
            own = named(getattr(self, name), known)
            if own is not None:
                object.__setattr__(self, name, own)  # one hash, however it was written
            else:
                raise ValueError(f"{name} is {getattr(self, name)!r}: expected one of {known}")
        least = LEAST if self.matcher == "coverage_matching" else 0.5
        if self.retention < least:
            raise ValueError(
                f"retention is {self.retention}: with {self.matcher} expected {least} or more"
            )
        object.__setattr__(self, "guidance", named_guidance(self.guidance))
        if self.guided and self.matcher != "coverage_matching":
            raise ValueError(
                f"guidance is {self.guidance!r}, and {self.matcher} does not look at it: expected "
                "the matcher coverage, or guidance 'none'"
            )

    @property
    def guided(self) -> bool:
        """Whether what is kept of a picture depends on the prompt."""
        return self.guidance != "none"

    @property
    def guide(self) -> Any:
        """The guidance's name, or the function."""
        return resolved_guidance(self.guidance)

    @property
    def ratio(self) -> float:
        """Share of the tokens that is merged away."""
        return 1 - self.retention

    @property
    def digest(self) -> str:
        """Hash of the settings, and of the library's version."""
        return _digest(self)

    def sign(self, found: str, text: Sequence[int] | None = None) -> str:
        """A hash of a picture's hash, and of all else that its tokens depend on.

        Args:
            found: The picture's hash.
            text: Tokens of the text that guides it, if any does.
        """
        parts = [found, self.digest]
        if text is not None:
            parts.append(" ".join(map(str, text)))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, such as ``hf_overrides={"lightkv": ...}`` takes."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: object) -> Settings:
        """The reverse of :meth:`to_dict`; fields that are missing take their defaults.

        Raises:
            ValueError: No mapping, no retention, an unknown field, or a value out of range.
            TypeError: A value of the wrong type.
        """
        known = sorted(cls.__dataclass_fields__)
        if not isinstance(values, Mapping):
            raise ValueError(
                f"lightkv is {values!r}: expected an object with some of {known}, such as "
                '{"retention": 0.25}'
            )
        for name in values:
            if name not in known:
                near = get_close_matches(str(name), known, n=1)
                meant = f" (did you mean {near[0]}?)" if near else ""
                raise ValueError(f"lightkv has {name!r}{meant}: expected some of {known}")
        if "retention" not in values:
            raise ValueError('lightkv has no retention: expected one, such as {"retention": 0.25}')
        return cls(**values)

    @classmethod
    def of_config(cls, config: Any) -> Settings:
        """Settings of a model's configuration, where ``--hf-overrides`` has put them.

        Raises:
            ValueError: There are none, or as in :meth:`from_dict`.
            TypeError: As in :meth:`from_dict`.
        """
        values = getattr(config, "lightkv", None)
        if values is None:
            raise ValueError(
                "a compressed architecture was asked for without settings: expected --hf-overrides "
                'with "lightkv": {"retention": 0.25} or the like; without compression, leave out '
                '"architectures"'
            )
        return cls.from_dict(values)


@lru_cache
def _digest(settings: Settings) -> str:
    values = {"lightkv-gnn": __version__, **settings.to_dict()}
    if callable(settings.guidance):
        values["guidance"] = None
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
