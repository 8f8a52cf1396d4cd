"""The worker: one compressed model that answers batches of questions, whatever feeds it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from lightkv_gnn.adapters import AdapterChoice, adapter_for
from lightkv_gnn.asking.answers import generate_all
from lightkv_gnn.asking.loading import load
from lightkv_gnn.batch.pictures import Asked, Pictures
from lightkv_gnn.choices import GuidanceName, MatcherName, MessageName
from lightkv_gnn.config import LightKVConfig
from lightkv_gnn.costs.schedule import Stage
from lightkv_gnn.session.attach import attach
from lightkv_gnn.sources import TINY, reason_of

REFUSALS = (ValueError, ArithmeticError, LookupError, torch.OutOfMemoryError)
"""Errors that some pictures or prompts cause, and others do not; anything else stops the run."""


@dataclass(frozen=True)
class Settings:
    """Which model answers, and how.

    Attributes:
        model: A folder that ``save_pretrained`` wrote, a hub id, or "tiny" for the bundled model.
        retention: Vision tokens to hold, averaged over the layers; fraction.
        stages: A schedule in its place, if there are any.
        adapter: In place of the one of the model's type, by name; see
            :func:`lightkv_gnn.adapter_for`.
        guidance: How the prompt is heard.
        message: What a survivor becomes.
        matcher: Who stays, and who joins whom.
        max_new_tokens: Of each answer.
        device: A GPU if there is one, else the CPU, if not given.
        dtype: Of the weights, by name; "auto" is float32 on a CPU, else the checkpoint's.
    """

    model: str
    retention: float = 0.55
    stages: tuple[Stage, ...] = ()
    adapter: str | None = None
    guidance: GuidanceName = "text_to_vision"
    message: MessageName = "guided_mean"
    matcher: MatcherName = "coverage"
    max_new_tokens: int = 128
    device: str | None = None
    dtype: str = "auto"

    def to_dict(self) -> dict[str, Any]:
        """What answers depend on, as plain values; a model's folder by its whole path."""
        values = asdict(self)
        del values["device"]
        values["stages"] = [asdict(stage) for stage in self.stages]
        if self.stages:
            del values["retention"]
        if self.adapter is None:
            del values["adapter"]
        if self.model != TINY and Path(self.model).exists():
            values["model"] = str(Path(self.model).resolve())
        return values


class Outcome(NamedTuple):
    """An answer, or why there is none.

    Attributes:
        row: Of the input.
        error: Class of what went wrong; nothing if there is an answer.
        message: What it said.
        answer: Of the model.
        vision_tokens: Of the picture.
        vision_tokens_left: In the last decoder layer.
        retention: Vision tokens held, averaged over the layers; fraction.
        kv_bytes: Keys and values after the prefill, text included, without a batch's padding.
        kv_bytes_full: The same without compression.
        seconds: Wall time of its batch, shared out evenly.
    """

    row: int
    error: str = ""
    message: str = ""
    answer: str = ""
    vision_tokens: int = 0
    vision_tokens_left: int = 0
    retention: float = 0.0
    kv_bytes: int = 0
    kv_bytes_full: int = 0
    seconds: float = 0.0

    @classmethod
    def failed(cls, row: int, error: Exception) -> Outcome:
        """Why a row has no answer; a ValueError that tells of another error has its class."""
        told = error.__cause__ if isinstance(error, ValueError) else None
        kind = type(told or error).__name__
        return cls(row, kind, " ".join(reason_of(error).split()) or kind)


class Worker:
    """A model that is compressed as long as the worker is open; a context manager.

    Args:
        model: A transformers model whose family has an adapter.
        processor: Its processor; made to pad at the left, with a token for it.
        config: How to compress.
        pictures: Reads what is asked about.
        adapter: As for :func:`lightkv_gnn.attach`.
        max_new_tokens: Of each answer.

    Raises:
        Exception: As :func:`lightkv_gnn.attach`.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        config: LightKVConfig,
        pictures: Pictures,
        *,
        adapter: AdapterChoice = None,
        max_new_tokens: int = 128,
    ) -> None:
        self._model, self._processor, self._pictures = model, processor, pictures
        self._max_new_tokens = max_new_tokens
        tokenizer = processor.tokenizer
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._handle = attach(model, config, adapter=adapter)

    @classmethod
    def opened(cls, settings: Settings, pictures: Pictures) -> Worker:
        """A worker with a model of its own.

        Raises:
            Exception: As ``lightkv_gnn.asking.loading.load`` and :func:`lightkv_gnn.attach`.
        """
        model, processor = load(settings.model, settings.device, settings.dtype)
        chosen = adapter_for(model, settings.adapter)
        config = LightKVConfig.for_model(
            model,
            settings.retention,
            stages=settings.stages or None,
            adapter=chosen,
            guidance=settings.guidance,
            message=settings.message,
            matcher=settings.matcher,
        )
        return cls(
            model,
            processor,
            config,
            pictures,
            adapter=chosen,
            max_new_tokens=settings.max_new_tokens,
        )

    def close(self) -> None:
        """Makes the model as it was before."""
        self._handle.remove()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def answer(self, asked: Sequence[Asked]) -> list[Outcome]:
        """Answers, in any order, all that can be; tells what is wrong with the others."""
        outcomes: list[Outcome] = []
        shown: list[tuple[Asked, Image.Image]] = []
        for one in asked:
            try:
                shown.append((one, self._pictures.read(one)))
            except Exception as error:  # a decoder raises anything on broken bytes
                outcomes.append(Outcome.failed(one.row, error))
        return outcomes + self._answer(shown)

    def _answer(self, shown: Sequence[tuple[Asked, Image.Image]]) -> list[Outcome]:
        """As one batch; where that fails or does not fit, in halves, down to what cannot be."""
        if not shown:
            return []
        try:
            return self._generate(shown)
        except REFUSALS as error:
            if len(shown) == 1:
                return [Outcome.failed(shown[0][0].row, error)]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        middle = len(shown) // 2
        return self._answer(shown[:middle]) + self._answer(shown[middle:])

    def _generate(self, shown: Sequence[tuple[Asked, Image.Image]]) -> list[Outcome]:
        started = time.perf_counter()
        pictures = [picture for _, picture in shown]
        prompts = [asked.prompt for asked, _ in shown]
        answers = generate_all(
            self._model, self._processor, pictures, prompts, max_new_tokens=self._max_new_tokens
        )
        seconds = (time.perf_counter() - started) / len(shown)
        outcomes = []
        for (asked, _), answer, ledger in zip(shown, answers, self._handle.ledgers, strict=True):
            totals = ledger.totals()
            outcomes.append(
                Outcome(
                    asked.row,
                    answer=answer,
                    vision_tokens=ledger.rows[0].full.vision_tokens,
                    vision_tokens_left=ledger.rows[-1].planned.vision_tokens,
                    retention=ledger.retention,
                    kv_bytes=totals["kv_bytes"],
                    kv_bytes_full=totals["kv_bytes_full"],
                    seconds=seconds,
                )
            )
        return outcomes
