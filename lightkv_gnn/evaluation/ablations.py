"""Ablations: a method with one choice varied, each variant a method of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lightkv_gnn.baselines import Budget, Hints, StageMethod, progressive
from lightkv_gnn.baselines.merging import OURS, Early, random_attention
from lightkv_gnn.baselines.square_folded import SquareFolded
from lightkv_gnn.config import LightKVConfig
from lightkv_gnn.costs.schedule import MOST, Stage
from lightkv_gnn.errors import ScheduleError
from lightkv_gnn.stage.compressor import TokenCompressor
from lightkv_gnn.stage.messages import (
    WeightedMean,
    destination_only,
    guided_mean,
    mass_mean,
    mean,
)
from lightkv_graphs import (
    CoverageMatching,
    PromptMatching,
    cosine_matching,
    coverage_matching,
)

ORIGIN = "a variant of guided merging"


@dataclass(frozen=True)
class Windowed(StageMethod):
    """Guided merging with windows of one's own.

    Attributes:
        windows: Windows per side of each stage; the last number counts for later stages too.
    """

    windows: tuple[int, ...] = (1,)

    def stages(self, budget: Budget) -> tuple[Stage, ...]:
        """The usual ones, with these windows."""
        return progressive(
            budget.layers, budget.retention, budget.depth, budget.grid, windows=self.windows
        )


@dataclass(frozen=True)
class Stepped(StageMethod):
    """Coverage in a number of stages, each as large as the budget asks.

    Attributes:
        number: How many stages.
        windows: Windows per side of each stage; the last number counts for later stages too.
    """

    number: int = 1
    windows: tuple[int, ...] = (1,)

    def stages(self, budget: Budget) -> tuple[Stage, ...]:
        """So many of equal ratio, evenly over the layers.

        Raises:
            ScheduleError: The budget takes another number.
        """
        stages = progressive(
            budget.layers,
            budget.retention,
            budget.depth,
            budget.grid,
            stages=self.number,
            windows=self.windows,
            most=MOST,
        )
        if len(stages) != self.number:
            raise ScheduleError(
                f"keeping {budget.retention:.0%} from layer {budget.depth} of {budget.layers} on "
                f"takes {len(stages)} stages: expected a budget for {self.number}"
            )
        return stages


@dataclass(frozen=True)
class Once(StageMethod):
    """A tenth of the tokens stays, after one layer: the same for every depth."""

    def budgets(
        self, model: Any, retentions: Sequence[float], depths: Sequence[int]
    ) -> list[Budget]:
        """One for every layer that a stage may run after."""
        layers = Budget.of(model, 1.0, 0).layers
        return [
            Budget.of(model, round((depth + 1 + (layers - depth - 1) / 10) / layers, 4), depth)
            for depth in range(layers - 1)
        ]

    def stages(self, budget: Budget) -> tuple[Stage, ...]:
        """One."""
        return (Stage(budget.depth, 1, 0.9),)


mass_guided = WeightedMean("mass_guided", lambda guidance, mass, stays: guidance + mass.log())
"""The prompt's guidance times the mass."""


class Folded(Windowed):
    """Merging in windows over the sequence folded on a square, as released."""

    def compressor(self, config: LightKVConfig, hints: Hints) -> TokenCompressor:
        """Cuts the windows so."""
        return SquareFolded(config.message, config.matcher, config.scatter)


def _guidance() -> list[StageMethod]:
    names = ("vision_to_text", "text_to_vision", "last_token")
    variants = [
        StageMethod(f"{name}{'' if rotary else ', no rotary'}", ORIGIN, _options(name, rotary))
        for name in names
        for rotary in (True, False)
    ]
    blind = StageMethod("none: equal weights", ORIGIN, {"guidance": "none"})
    random = StageMethod("random logits", ORIGIN, {"guidance": random_attention})
    return [*variants, blind, random]


def _options(guidance: str, rotary: bool) -> dict[str, Any]:
    return {"guidance": guidance, "rotary": rotary}


def _prompt() -> list[StageMethod]:
    matchers = {
        "": cosine_matching,
        "matching": PromptMatching(resist=True),
        "protection": PromptMatching(resist=False, protect=0.1),
        "matching, protection": PromptMatching(resist=True, protect=0.1),
    }
    variants = []
    for where, matcher in matchers.items():
        for weights in (guided_mean, mean):
            parts = ["weights"] * (weights is guided_mean) + [where] * bool(where)
            name = f"prompt in {', '.join(parts) or 'nothing'}"
            variants.append(StageMethod(name, ORIGIN, {"matcher": matcher, "message": weights}))
    return variants


def _windows() -> list[StageMethod]:
    """Of coverage: one stage in windows of one size, or three in ever fewer; mass in each."""
    choices = {(1,): 1, (2,): 1, (4,): 1, (4, 2, 1): 3}
    return [
        Stepped(f"windows {'-'.join(map(str, windows))}{name}", ORIGIN, options, number, windows)
        for windows, number in choices.items()
        for name, options in _with_mass_and_without()
    ]


def _stages() -> list[StageMethod]:
    """Of coverage over the whole picture: mass, and merging or dropping, in each number."""
    dropped = {"message": destination_only}
    return [
        Stepped(f"{n} stage{'s' * (n > 1)}{name}{way}", ORIGIN, {**options, **message}, n)
        for n in (1, 2, 3)
        for name, options in _with_mass_and_without()
        for way, message in (("", {}), (", dropped", dropped))
    ]


def _with_mass_and_without() -> list[tuple[str, dict[str, Any]]]:
    return [("", OURS.options), (", no mass", {**OURS.options, "attention": "plain"})]


def _depth() -> list[StageMethod]:
    best = OURS.options
    return [
        Once("guided, a tenth", ORIGIN, best),
        Once("mean, a tenth", ORIGIN, {**best, "guidance": "none", "message": mean}),
        Once(
            "pruned, a tenth",
            ORIGIN,
            {**best, "guidance": "none", "message": destination_only},
        ),
    ]


def _positions() -> list[StageMethod]:
    return [StageMethod(name, ORIGIN, {"positions": name}) for name in ("preserve", "reindex")]


def _message() -> list[StageMethod]:
    messages = (guided_mean, mean, mass_mean, mass_guided, destination_only)
    return [StageMethod(message.name, ORIGIN, {"message": message}) for message in messages]


def _matcher() -> list[StageMethod]:
    """Of the default, one choice at a time; and the paper's matching in stages of its own."""
    choices = {
        "power 1/2": CoverageMatching(),
        "power 0": CoverageMatching(0.0),
        "power 1": CoverageMatching(1.0),
        "power 2": CoverageMatching(2.0),
        "anchors 1/3": CoverageMatching(anchors=1 / 3),
        "max": CoverageMatching(objective="max"),
    }
    coverage = [
        Early(f"coverage, {name}", ORIGIN, {"matcher": matcher, "attention": "mass"})
        for name, matcher in choices.items()
    ]
    plain = Early("coverage, no mass", ORIGIN, {"matcher": coverage_matching})
    dropped = {"matcher": coverage_matching, "message": destination_only}
    parity = [
        StageMethod(f"parity, {name}", ORIGIN, {"attention": attention})
        for name, attention in (("mass", "mass"), ("no mass", "plain"))
    ]
    return [*coverage, plain, Early("coverage, dropped", ORIGIN, dropped), *parity]


def _default() -> list[StageMethod]:
    """Of what ``LightKVConfig.for_model`` gives; its matcher's choices are varied above."""
    best = OURS.options
    choices: dict[str, dict[str, Any]] = {
        "as it is": {},
        "vision_to_text": {"guidance": "vision_to_text"},
        "last_token": {"guidance": "last_token"},
        "no guidance": {"guidance": "none"},
        "mean": {"message": mean},
        "dropped": {"message": destination_only},
        "reindex": {"positions": "reindex"},
        "no mass": {"attention": "plain"},
        "no mass, dropped": {"attention": "plain", "message": destination_only},
    }
    return [Early(name, ORIGIN, {**best, **options}) for name, options in choices.items()]


def _geometry() -> list[StageMethod]:
    blind = {"guidance": "none", "message": mean}
    return [
        kind(f"{name}, {where}", ORIGIN, options, (2,))
        for name, options in (("guided", {}), ("mean", blind))
        for where, kind in (("true windows", Windowed), ("folded windows", Folded))
    ]


ABLATIONS: dict[str, Callable[[], Sequence[StageMethod]]] = {
    "guidance": _guidance,
    "prompt": _prompt,
    "windows": _windows,
    "stages": _stages,
    "depth": _depth,
    "positions": _positions,
    "geometry": _geometry,
    "message": _message,
    "matcher": _matcher,
    "default": _default,
}
"""What is varied, and the variants."""
