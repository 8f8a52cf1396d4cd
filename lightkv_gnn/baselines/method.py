"""What a method is: a budget in, a model that keeps to it out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from lightkv_gnn.adapters import adapter_for
from lightkv_gnn.baselines.losses import MeasuredCompressor
from lightkv_gnn.baselines.schedules import progressive
from lightkv_gnn.config import LightKVConfig
from lightkv_gnn.costs.schedule import Stage
from lightkv_gnn.session.attach import Handle, attach
from lightkv_gnn.stage.compressor import TokenCompressor
from lightkv_graphs import Grid


@dataclass(frozen=True)
class Budget:
    """How much a method may keep, and from where on.

    Attributes:
        retention: Vision tokens held, averaged over the decoder's layers; fraction.
        depth: First decoder layer after which tokens may leave; -1 where that has no meaning.
        layers: Decoder layers.
        grid: (rows, columns) of the pictures' tokens where it is always the same.
    """

    retention: float
    depth: int
    layers: int
    grid: Grid | None = None

    @classmethod
    def of(cls, model: Any, retention: float, depth: int) -> Budget:
        """The budget for a model."""
        adapter = adapter_for(model)
        return cls(retention, depth, adapter.layers, adapter.grid)


@dataclass(frozen=True)
class Bill:
    """What a prefill cost.

    Attributes:
        retention: Vision tokens held, averaged over the layers; fraction of the full picture's.
        kv_bytes: Keys and values after the prefill, of the whole batch, text included.
        flops: Floating-point operations of the prefill, of the whole batch.
    """

    retention: float
    kv_bytes: int
    flops: int


@dataclass(eq=False)
class Hints:
    """What a method may be told of the batch that is about to be asked; only the oracle looks.

    Attributes:
        relevant: Vision tokens that the answers depend on, `[batch, vision]` bool.
    """

    relevant: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Applied:
    """A method at work on a model.

    Attributes:
        handle: Of the session.
        hints: To be filled in before each batch.
        compressor: Has measured what the stages lost.
        side: Side of the pictures that the method wants, as a fraction of the full one.
    """

    handle: Handle
    hints: Hints
    compressor: MeasuredCompressor
    side: float = 1.0

    def method_seconds(self) -> float:
        """Wall time of the method itself in the last prefill, whole batch; no measuring in it.

        That of the stages, their guidance included.
        """
        return max(0.0, self.handle.ledger.compressor_seconds - self.compressor.seconds)

    def bill(self) -> Bill:
        """The last prefill's."""
        totals = self.handle.ledger.totals()
        return Bill(totals["retention"], totals["kv_bytes"], totals["flops"])


@dataclass(frozen=True)
class Method(ABC):
    """One way to make the vision tokens fewer, on the hooks that all of them share.

    Attributes:
        name: Its name in tables.
        source: Where it comes from, and what differs from there.
        has_depth: Whether it matters where stages begin.
    """

    has_depth: ClassVar[bool] = True

    name: str
    source: str

    def budgets(
        self, model: Any, retentions: Sequence[float], depths: Sequence[int]
    ) -> list[Budget]:
        """The budgets to try it on: every retention with every depth, or with -1 for none."""
        chosen = depths if self.has_depth else [-1]
        return [Budget.of(model, share, depth) for share in retentions for depth in chosen]

    @abstractmethod
    def applied(self, model: Any, budget: Budget) -> Any:
        """Context manager: the method at work on the model; the model is as before afterwards.

        Args:
            model: A model with an adapter.
            budget: What to keep.

        Returns:
            Context manager whose value is an :class:`Applied`.

        Raises:
            ScheduleError: The method cannot keep to the budget from that depth on.
        """


@dataclass(frozen=True)
class StageMethod(Method):
    """A method that takes tokens out between decoder layers.

    Attributes:
        options: Fields of the configuration besides the stages.
    """

    options: dict[str, Any] = field(default_factory=dict)

    def stages(self, budget: Budget) -> tuple[Stage, ...]:
        """Its schedule: several stages of equal ratio; see :func:`progressive`."""
        return progressive(budget.layers, budget.retention, budget.depth, budget.grid)

    def config(self, budget: Budget) -> LightKVConfig:
        """How it compresses."""
        return LightKVConfig(self.stages(budget), **self.options)

    def compressor(self, config: LightKVConfig, hints: Hints) -> TokenCompressor:
        """Runs its stages."""
        return TokenCompressor(config.message, config.matcher, config.scatter)

    @contextmanager
    def applied(self, model: Any, budget: Budget) -> Iterator[Applied]:
        """The method at work; see :meth:`Method.applied`."""
        hints = Hints()
        config = self.config(budget)
        measured = MeasuredCompressor(self.compressor(config, hints))
        with attach(model, config, compressor=measured) as handle:
            yield Applied(handle, hints, measured)
