"""Asks a group of questions with one method at work, and adds up what that cost and lost."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lightkv_gnn.baselines import Bill, Budget, Loss, Method
from lightkv_gnn.baselines.inspection import Inspection, Seen
from lightkv_gnn.errors import UnsupportedInputError
from lightkv_gnn.evaluation.rows import StageLoss
from lightkv_gnn.evaluation.suite import Subject, Suite


@dataclass(frozen=True)
class Asked:
    """Answers to a group of questions; costs are per question.

    Attributes:
        scores: Of each question.
        retention: Vision tokens held, averaged over layers and questions; fraction.
        kv_bytes: Keys and values after the prefill.
        flops: Of the prefill.
        seconds: Wall time, without that of measuring what stages lose.
        stages: What each stage lost.
        answers: To each question; none where the suite has scores alone.
        prefill_seconds: Wall time of the prefill, without that of measuring; None if the suite did
            not call its model itself.
        method_seconds: Wall time of the method, in the prefill.
        effective_rank: Of the vision tokens left, mean of the first questions; None where none is
            left.
        attention_entropy: Of the last token's attention to them, likewise; None where it could not
            be recorded.
    """

    scores: tuple[float, ...]
    retention: float
    kv_bytes: float
    flops: float
    seconds: float
    stages: tuple[StageLoss, ...]
    answers: tuple[str, ...] = ()
    prefill_seconds: float | None = None
    method_seconds: float = 0.0
    effective_rank: float | None = None
    attention_entropy: float | None = None


def ask_all(
    suite: Suite,
    subject: Subject,
    group: str,
    method: Method,
    budget: Budget,
    questions: int,
    seed: int,
) -> Asked:
    """Asks a suite's questions of one group.

    Args:
        suite: Asks.
        subject: Is asked.
        group: Of questions.
        method: At work meanwhile.
        budget: Its budget.
        questions: How many.
        seed: Of the questions, and of what the method draws at random.

    Raises:
        ScheduleError: The method cannot keep to the budget.
        ValueError: The suite ran several prefills for one batch.
        UnsupportedInputError: It wants smaller pictures, which the suite does not have.
    """
    scores: list[float] = []
    bills: list[tuple[int, Bill]] = []
    losses: dict[int, list[Loss]] = defaultdict(list)
    answers: list[str] = []
    prefills: list[Seen] = []
    seconds = working = measuring = 0.0
    with (
        torch.random.fork_rng(devices=_devices(subject)),
        method.applied(subject.model, budget) as applied,
    ):
        if applied.side != 1 and not suite.resizable:
            raise UnsupportedInputError(f"the pictures of {suite.name!r} cannot be made smaller")
        torch.manual_seed(seed)
        inspection = Inspection(subject.model, applied.handle)
        for batch in suite.batches(subject, group, questions, seed, applied.side):
            applied.hints.relevant = batch.relevant
            applied.compressor.forget()
            with inspection.of_prefill() as seen:
                started = time.perf_counter()
                if suite.has_answers:
                    given = suite.answer(subject, group, batch)
                    answers += given
                    found = suite.score(group, batch, given)
                else:
                    found = suite.ask(subject, group, batch)
                if subject.model.device.type == "cuda":
                    torch.cuda.synchronize(subject.model.device)
                seconds += time.perf_counter() - started - applied.compressor.seconds
            measuring += applied.compressor.seconds
            working += applied.method_seconds()
            prefills.append(seen)
            scores += found
            bills.append((len(found), applied.bill()))
            trace = applied.handle.trace
            if len(trace) != len(applied.compressor.losses):
                raise ValueError(
                    f"{type(suite).__name__} ran {len(applied.compressor.losses)} stages, "
                    f"the last prefill {len(trace)}: expected one prefill with pictures"
                )
            for stage, loss in zip(trace, applied.compressor.losses, strict=True):
                losses[stage.layer].append(loss)
    total = len(scores)
    return Asked(
        scores=tuple(scores),
        retention=sum(number * bill.retention for number, bill in bills) / total,
        kv_bytes=sum(bill.kv_bytes for _, bill in bills) / total,
        flops=sum(bill.flops for _, bill in bills) / total,
        seconds=seconds / total,
        stages=tuple(_lost(layer, own, total) for layer, own in sorted(losses.items())),
        answers=tuple(answers),
        prefill_seconds=_prefill_seconds(prefills, measuring, total),
        method_seconds=working / total,
        effective_rank=_mean([rank for seen in prefills for rank in seen.ranks]),
        attention_entropy=_mean([one for seen in prefills for one in seen.entropies]),
    )


def _prefill_seconds(prefills: Sequence[Seen], measuring: float, questions: int) -> float | None:
    known = [seen.seconds for seen in prefills if seen.seconds is not None]
    return (sum(known) - measuring) / questions if len(known) == len(prefills) else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _lost(layer: int, losses: Sequence[Loss], questions: int) -> StageLoss:
    before, after = (sum(getattr(loss, name) for loss in losses) for name in ("before", "after"))
    divergence, error, norm = (
        sum(float(getattr(loss, name)) for loss in losses)
        for name in ("divergence", "squared_error", "squared_norm")
    )
    return StageLoss(
        layer=layer,
        before=before / questions,
        after=after / questions,
        divergence=divergence / (before - after),
        error=math.sqrt(error / norm),
    )


def _devices(subject: Subject) -> list[torch.device]:
    device = subject.model.device
    return [] if device.type == "cpu" else [device]
