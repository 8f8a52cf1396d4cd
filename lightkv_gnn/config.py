"""What the user wants: stages, guidance, message, matcher, positions, attention.  Frozen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch_geometric.nn import MessagePassing

from lightkv_gnn.adapters import AdapterChoice, adapter_for
from lightkv_gnn.attention.backends import why_no_mass
from lightkv_gnn.choices import ATTENTION, GUIDANCE, AttentionName, GuidanceName, ScatterName
from lightkv_gnn.costs.schedule import Stage, find_stages, one_stage
from lightkv_gnn.stage.compressor import (
    MATCHERS,
    by_name,
    check_callable,
    check_ratio,
)
from lightkv_gnn.stage.guidance import GuidanceFunction
from lightkv_gnn.stage.messages import MESSAGES, Message, guided_mean
from lightkv_gnn.tables import html_table
from lightkv_graphs import CoverageMatching, Matcher, cosine_matching, coverage_matching

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Positions = Literal["preserve", "reindex"]


@dataclass(frozen=True, repr=False)
class LightKVConfig:
    """How to compress; the fields' defaults are the paper's method, :meth:`for_model` has the best.

    Attributes:
        stages: In ascending order of their layers.
        guidance: "text_to_vision", "vision_to_text", "last_token", "none", or a callable; see
            :func:`lightkv_gnn.stage.guidance.prompt_guidance`.
        rotary: Whether guidance sees queries and keys with their rotary positions.
        message: "guided_mean", "mean", "mass_mean", "destination_only", or what they name; a
            callable ``(x_i, x_j, weight)``, or a ``MessagePassing``.
        matcher: "coverage", "cosine", "random", "stride", "resisting", "protecting", or what they
            name, ``coverage_matching`` and so on; or a callable.
        positions: "preserve": a survivor keeps its own position; "reindex": positions close up;
            with M-RoPE, entries of a compressed layer are numbered, three coordinates alike.
        attention: "plain": a survivor counts once, as in the paper; "mass": in every later layer
            and decoding step as often as the tokens it stands for, by the logarithm of their number
            on its logits.
        scatter: Who reduces: "torch", "torch_scatter", or "triton", which has fused kernels for the
            costly parts of a stage and needs a GPU; tried in Triton's interpreter alone.
    """

    stages: Sequence[Stage]
    guidance: GuidanceName | GuidanceFunction = "text_to_vision"
    rotary: bool = True
    message: Message | MessagePassing | str = field(default=guided_mean)
    matcher: Matcher | str = field(default=cosine_matching)
    positions: Positions = "preserve"
    attention: AttentionName = "plain"
    scatter: ScatterName = "torch"

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "stages", tuple(self.stages))
        except TypeError as error:
            raise TypeError(
                f"stages is {self.stages!r}: expected a list of Stage(layer, windows, ratio)"
            ) from error
        for stage in self.stages:
            if not isinstance(stage, Stage):
                raise TypeError(f"stages holds {stage!r}: expected Stage(layer, windows, ratio)")
        layers = [stage.layer for stage in self.stages]
        if sorted(set(layers)) != layers:
            raise ValueError(f"stages run after layers {layers}: expected each once, ascending")
        message = by_name("message", self.message, MESSAGES)
        matcher = by_name("matcher", self.matcher, MATCHERS)
        check_callable("message", message, "guided_mean")
        check_callable("matcher", matcher, "graphs.cosine_matching")
        object.__setattr__(self, "message", message)
        object.__setattr__(self, "matcher", matcher)
        for stage in self.stages:
            check_ratio(matcher, stage.ratio)
        if not isinstance(self.rotary, bool):
            raise TypeError(f"rotary is {self.rotary!r}: expected True or False")
        own = callable(self.guidance) and not isinstance(self.guidance, type)
        if not own and self.guidance not in GUIDANCE:
            raise ValueError(
                f"guidance is {self.guidance!r}: expected one of {GUIDANCE} or a callable"
            )
        named = {
            "positions": get_args(Positions),
            "attention": ATTENTION,
            "scatter": get_args(ScatterName),
        }
        for name, kinds in named.items():
            if getattr(self, name) not in kinds:
                raise ValueError(f"{name} is {getattr(self, name)!r}: expected one of {kinds}")

    @classmethod
    def for_model(
        cls,
        model: PreTrainedModel,
        retention: float = 0.55,
        *,
        stages: Sequence[Stage] | None = None,
        adapter: AdapterChoice = None,
        **options: Any,
    ) -> LightKVConfig:
        """What keeps the answers best at ``retention``: coverage, and mass where attention can.

        That is one early stage; with other matchers, which may not take more than half, stages are
        those of :meth:`lightkv`.

        Args:
            model: A model with an adapter.
            retention: Vision tokens held, averaged over the decoder's layers; fraction.
            stages: Of your own, in place of those for ``retention``.
            adapter: As for :func:`attach`, which has to be given the same.
            **options: Further fields, also in place of ``matcher=coverage_matching`` and
                ``attention="mass"``, which is "plain" on flash attention.

        Raises:
            ScheduleError: No schedule of this model's depth comes near ``retention``.
            UnsupportedModelError: The model has no adapter.
        """
        chosen = adapter_for(model, adapter)
        why_plain = why_no_mass(chosen.decoder.config._attn_implementation)
        best = {"matcher": coverage_matching, "attention": "plain" if why_plain else "mass"}
        named = cls(() if stages is None else stages, **{**best, **options})
        if stages is not None:
            return named
        find = one_stage if isinstance(named.matcher, CoverageMatching) else find_stages
        found = find(chosen.layers, retention, chosen.grid, chosen.legal_layers)
        return replace(named, stages=found)

    @classmethod
    def lightkv(
        cls,
        model: PreTrainedModel,
        retention: float = 0.55,
        *,
        adapter: AdapterChoice = None,
        **options: Any,
    ) -> LightKVConfig:
        """The paper's method: every other token leaves, in up to three halving stages.

        Its formula has vision tokens ask the prompt; attention is as it was.  Source: Chen et al.
        2026, section 3.

        Args:
            model: A model with an adapter.
            retention: Vision tokens held, averaged over the decoder's layers; fraction.
            adapter: As for :func:`attach`, which has to be given the same.
            **options: Further fields of the configuration.

        Raises:
            ScheduleError: No schedule of this model's depth comes near ``retention``.
            UnsupportedModelError: The model has no adapter.
        """
        chosen = adapter_for(model, adapter)
        stages = find_stages(chosen.layers, retention, chosen.grid, chosen.legal_layers)
        return cls(stages, **{"guidance": "vision_to_text", **options})

    def __repr__(self) -> str:
        return f"LightKVConfig({', '.join(f'{name}={value}' for name, value in self._shown())})"

    def _repr_html_(self) -> str:
        """Itself in a notebook: a table of its fields."""
        return html_table(("LightKVConfig", ""), self._shown())

    def _shown(self) -> list[tuple[str, str]]:
        """Its fields, parts of the library by their names."""
        shown = [("stages", repr(list(self.stages)))]
        for name in self.__dataclass_fields__:
            if name != "stages":
                value = getattr(self, name)
                known = _known_name(value, _NAMED.get(name, {}))
                shown.append((name, repr(value if known is None else known)))
        return shown

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a file.

        Raises:
            TypeError: It holds a callable of the user's own, which has no name in a file.
        """
        return {
            "stages": [asdict(stage) for stage in self.stages],
            "guidance": _name_of(self.guidance, {kind: kind for kind in GUIDANCE}, "guidance"),
            "rotary": self.rotary,
            "message": _name_of(self.message, MESSAGES, "message"),
            "matcher": _name_of(self.matcher, MATCHERS, "matcher"),
            "positions": self.positions,
            "attention": self.attention,
            "scatter": self.scatter,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LightKVConfig:
        """The reverse of :meth:`to_dict`; fields that are missing take their defaults.

        Raises:
            ValueError: No mapping, no stages, an unknown field or name, or a value out of range.
            TypeError: A value of the wrong type.
        """
        known = sorted(cls.__dataclass_fields__)
        if not isinstance(values, Mapping):
            raise ValueError(
                f"a configuration is a {type(values).__name__}: expected a mapping of {known}"
            )
        if unknown := sorted(set(values) - set(known), key=str):
            raise ValueError(f"a configuration has {unknown}: expected some of {known}")
        if "stages" not in values:
            raise ValueError(
                "a configuration needs stages, which are missing here: expected a list of objects "
                'with layer, windows and ratio, such as {"stages": [{"layer": 11, "windows": 4, '
                '"ratio": 0.5}]}'
            )
        fields = dict(values)
        try:
            fields["stages"] = [Stage(**stage) for stage in values["stages"]]
        except TypeError as error:
            raise ValueError(
                f"stages is {values['stages']!r}: expected a list of objects with layer, windows "
                "and ratio"
            ) from error
        for name in ("message", "matcher"):
            if name in fields and not isinstance(fields[name], str):
                raise ValueError(f"{name} is {fields[name]!r}: expected a name")
        return cls(**fields)

    def to_json(self) -> str:
        """A JSON object; see :meth:`to_dict`."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> LightKVConfig:
        """The reverse of :meth:`to_json`.

        Raises:
            ValueError: No JSON, or as in :meth:`from_dict`.
            TypeError: As in :meth:`from_dict`, or ``text`` is no text.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"expected a configuration as JSON, but: {error}") from error
        return cls.from_dict(values)


_NAMED: dict[str, Mapping[str, object]] = {"message": MESSAGES, "matcher": MATCHERS}


def _known_name(value: object, table: Mapping[str, object]) -> str | None:
    """The name of a part of the library, which an equal one has too."""
    return next((name for name, known in table.items() if value in (known, name)), None)


def _name_of(value: object, table: Mapping[str, object], field_name: str) -> str:
    known = _known_name(value, table)
    if known is not None:
        return known
    raise TypeError(
        f"{field_name} is {value!r}, a callable of your own: a configuration file can only name "
        f"{sorted(table)}; pass your callable in code"
    )
