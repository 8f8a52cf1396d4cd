"""A whole prefill, and decoding after it, with and without compression."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightkv_gnn.bench.measure import Timing, extra_bytes, largest, side_by_side
from lightkv_gnn.bench.shapes import Shape, build, inputs_of
from lightkv_gnn.config import LightKVConfig
from lightkv_gnn.planning.prefill import plan_prefill
from lightkv_gnn.session.attach import attach

STEPS = 16
"""Tokens that are decoded after a prefill."""


@dataclass(frozen=True)
class PrefillRow:
    """One prefill with compression beside one without.

    Attributes:
        shape: Name of the decoder's.
        batch: Samples.
        tokens: Of each sample.
        retention: Vision tokens held, averaged over layers; fraction.
        seconds: Median wall time with compression, vision tower included.
        seconds_full: Without.
        seconds_ratio: Of the two.
        flops_ratio: Of the decoder's operations, from the plan.
        gain_share: Time saved as a fraction of the operations saved.
        kv_ratio: Of the bytes of keys and values.
        peak_ratio: Of the most memory held at once, beyond the weights.
    """

    shape: str
    batch: int
    tokens: int
    retention: float
    seconds: float
    seconds_full: float
    seconds_ratio: float
    flops_ratio: float
    gain_share: float
    kv_ratio: float
    peak_ratio: float


@dataclass(frozen=True)
class DecodeRow:
    """Decoding after a compressed prefill beside an uncompressed one.

    Attributes:
        shape: Name of the decoder's.
        batch: Samples.
        retention: Vision tokens held, averaged over layers; fraction.
        tokens_per_second: Of the whole batch, with compression.
        tokens_per_second_full: Without.
        speed_ratio: Of the two.
        mass_ratio: Time of a step that adds the logarithm of each entry's mass, over that of one
            that does not.
        kv_bytes: Keys and values of one sample after the prefill, with compression.
        kv_bytes_full: Without.
        largest_batch: Samples whose prefill fits into the memory asked about, with compression; on
            a CPU, whose keys and values fit beside the weights.  None if none was asked about.
        largest_batch_full: Without.
    """

    shape: str
    batch: int
    retention: float
    tokens_per_second: float
    tokens_per_second_full: float
    speed_ratio: float
    mass_ratio: float
    kv_bytes: int
    kv_bytes_full: int
    largest_batch: int | None
    largest_batch_full: int | None


class Contest:
    """A model with random weights, and calls of it with and without compression.

    Args:
        name: Of the decoder's shape.
        shape: Of its decoder.
        batch: Samples.
        retention: Vision tokens to hold, averaged over layers; fraction.
        dtype: Of the weights.
        device: Where.
    """

    def __init__(
        self,
        name: str,
        shape: Shape,
        batch: int,
        retention: float,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.name = name
        self.device = device
        self.shape = shape
        self.model = build(shape, dtype, device)
        self.inputs = inputs_of(shape, batch, self.model)
        self.config = LightKVConfig.for_model(self.model, retention)
        self.bill = plan_prefill(self.model, self.config, self.inputs).totals()
        self.batch = batch

    def side_by_side(
        self, run: Callable[[], object], rounds: int, *, plain: bool = False
    ) -> dict[str, Timing]:
        """Times ``run`` attached ("light") and as it is ("full"), in turn.

        With ``plain`` also attached with plain attention ("plain").
        """
        calls = {"light": self._in(self.config, run), "full": self._in(None, run)}
        if plain:
            calls["plain"] = self._in(replace(self.config, attention="plain"), run)
        return side_by_side(calls, self.device, rounds=rounds, warmup=1)

    def peaks(self, run: Callable[[], object]) -> dict[str, int]:
        """Most memory of the same two."""
        calls = {"light": self._in(self.config, run), "full": self._in(None, run)}
        return {name: extra_bytes(call, self.device) for name, call in calls.items()}

    def largest_batches(self, memory: int) -> dict[str, int]:
        """Samples that fit into ``memory`` bytes of a GPU, weights included, by trying them."""
        calls = {"light": self.config, "full": None}
        whole = torch.cuda.get_device_properties(self.device).total_memory
        if memory > whole:
            raise ValueError(
                f"memory is {memory} bytes: {self.device} has {whole}, and larger batches than fit "
                "there cannot be tried"
            )
        torch.cuda.set_per_process_memory_fraction(memory / whole, self.device)
        try:
            return {name: largest(partial(self._fits, config)) for name, config in calls.items()}
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, self.device)

    @torch.no_grad()
    def _fits(self, config: LightKVConfig | None, batch: int) -> bool:
        torch.cuda.empty_cache()
        try:
            inputs = inputs_of(self.shape, batch, self.model)
            self._in(config, lambda: self.model(**inputs, use_cache=True, logits_to_keep=1))()
        except torch.OutOfMemoryError:
            return False
        return True

    def _in(self, config: LightKVConfig | None, run: Callable[[], object]) -> Callable[[], object]:
        def call() -> object:
            with nullcontext() if config is None else attach(self.model, config):
                return run()

        return call

    @torch.no_grad()
    def prefill(self) -> Any:
        """The model's output for all inputs."""
        return self.model(**self.inputs, use_cache=True, logits_to_keep=1)

    @torch.no_grad()
    def decode(self, steps: int) -> Tensor:
        """The inputs with ``steps`` more tokens, greedily chosen."""
        found: Tensor = self.model.generate(
            **self.inputs, do_sample=False, min_new_tokens=steps, max_new_tokens=steps
        )
        return found


def compare_prefill(contest: Contest, rounds: int) -> PrefillRow:
    """Time to the first token, with and without compression."""
    times = contest.side_by_side(contest.prefill, rounds)
    peaks = contest.peaks(contest.prefill)
    light, full = times["light"].seconds, times["full"].seconds
    bill = contest.bill
    return PrefillRow(
        shape=contest.name,
        batch=contest.batch,
        tokens=contest.inputs["input_ids"].shape[1],
        retention=bill["retention"],
        seconds=light,
        seconds_full=full,
        seconds_ratio=light / full,
        flops_ratio=bill["flops_ratio"],
        gain_share=(1 - light / full) / (1 - bill["flops_ratio"]),
        kv_ratio=bill["kv_ratio"],
        peak_ratio=peaks["light"] / peaks["full"],
    )


def compare_decode(contest: Contest, rounds: int, memory: int | None = None) -> DecodeRow:
    """Tokens a second after the prefill; ``memory`` in bytes, to ask how many samples fit."""
    batch = contest.batch
    short = contest.side_by_side(lambda: contest.decode(1), rounds, plain=True)
    long = contest.side_by_side(lambda: contest.decode(1 + STEPS), rounds, plain=True)
    bill = contest.bill
    each = {"light": bill["kv_bytes"] // batch, "full": bill["kv_bytes_full"] // batch}
    took = {kind: long[kind].seconds - short[kind].seconds for kind in long}
    speed = {kind: batch * STEPS / took[kind] for kind in each}
    fits: Mapping[str, int | None] = dict.fromkeys(each)
    if memory is not None and contest.device.type == "cuda":
        fits = contest.largest_batches(memory)
    elif memory is not None:
        weights = sum(weight.nbytes for weight in contest.model.parameters())
        fits = {kind: max(0, (memory - weights) // size) for kind, size in each.items()}
    return DecodeRow(
        shape=contest.name,
        batch=batch,
        retention=bill["retention"],
        tokens_per_second=speed["light"],
        tokens_per_second_full=speed["full"],
        speed_ratio=speed["light"] / speed["full"],
        mass_ratio=took["light"] / took["plain"],
        kv_bytes=each["light"],
        kv_bytes_full=each["full"],
        largest_batch=fits["light"],
        largest_batch_full=fits["full"],
    )
