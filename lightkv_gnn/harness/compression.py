"""What is at work while a benchmark runs, and what each prefill then cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lightkv_gnn.adapters import adapter_for
from lightkv_gnn.baselines import Applied, Budget
from lightkv_gnn.config import LightKVConfig
from lightkv_gnn.harness.arguments import BASELINES, Arguments
from lightkv_gnn.session.attach import Handle, attach


@dataclass(frozen=True)
class Cost:
    """Of one prefill with pictures, whole batch, summed over the decoder's layers.

    Attributes:
        vision: Vision tokens held.
        vision_full: Without compression.
        kv_bytes: Keys and values, text and padding included.
        kv_bytes_full: Without compression.
    """

    vision: float
    vision_full: int
    kv_bytes: int
    kv_bytes_full: int


@dataclass(frozen=True, eq=False)
class Books:
    """Tells of the last prefill.

    Attributes:
        handle: Of the session.
        applied: The baseline at work, if it is one.
    """

    handle: Handle
    applied: Applied | None = None

    def cost(self) -> Cost:
        """Of the last prefill with pictures."""
        ledger = self.handle.ledger
        totals = ledger.totals()
        retention, kv_bytes = totals["retention"], totals["kv_bytes"]
        if self.applied is not None:
            bill = self.applied.bill()
            retention, kv_bytes = bill.retention, bill.kv_bytes
        full = sum(row.full.vision_tokens for row in ledger.rows)
        return Cost(retention * full, full, kv_bytes, totals["kv_bytes_full"])

    def method_seconds(self) -> float:
        """Seconds that the method took in the last prefill, whole batch."""
        if self.applied is not None:
            return self.applied.method_seconds()
        return self.handle.ledger.compressor_seconds

    def measuring(self) -> float:
        """Seconds that a baseline spent on measuring what it lost, since this was last asked."""
        if self.applied is None:
            return 0.0
        seconds = self.applied.compressor.seconds
        self.applied.compressor.forget()
        return seconds


@contextmanager
def at_work(model: Any, arguments: Arguments) -> Iterator[Books]:
    """Compresses as asked for; the model is as before afterwards.

    Raises:
        ScheduleError: Neither a schedule nor the method can be had on this model.
        UnsupportedModelError: The model has no adapter.
    """
    if arguments.baseline is None:
        config = config_of(model, arguments)
        with attach(model, config, adapter=arguments.adapter) as handle:
            yield Books(handle)
        return
    depth = arguments.depth
    if depth is None:
        depth = adapter_for(model).legal_layers[0]
    method = BASELINES[arguments.baseline]
    with method.applied(model, Budget.of(model, arguments.retention, depth)) as applied:
        yield Books(applied.handle, applied)


def config_of(model: Any, arguments: Arguments) -> LightKVConfig:
    """How LightKV compresses: by the stages asked for, else by some that keep the retention."""
    stages = arguments.schedule or None
    chosen = {"adapter": arguments.adapter, **arguments.parts}
    return LightKVConfig.for_model(model, arguments.retention, stages=stages, **chosen)
