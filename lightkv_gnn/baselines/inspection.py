"""What a prefill took, and what the tokens are like that a method leaves; no answer changes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightkv_gnn.adapters import adapter_for
from lightkv_gnn.attention import capture
from lightkv_gnn.session.attach import Handle
from lightkv_gnn.stage.guidance import attention_logits

MOST = 64
"""Questions whose tokens are looked at: singular values cost more than a stage."""


@dataclass
class Seen:
    """Of one prefill.

    Attributes:
        seconds: Wall time from the call of the model to its end; None if it was not called.
        ranks: Effective rank of each sample's vision tokens that were looked at.
        entropies: Entropy of the last token's attention to them, in nats, of its queries and keys:
            without what mass adds.
    """

    seconds: float | None = None
    ranks: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)


class Inspection:
    """Watches a model while a method is at work.

    What is left of the pictures is looked at where the decoder layer after the last stage takes
    it; without stages, where the second layer does.

    Args:
        model: The model, with the method at work.
        handle: Of the method's session.
        most: Questions whose tokens are looked at, the first ones.
        adapter: As it was attached with.
    """

    def __init__(
        self, model: Any, handle: Handle, most: int = MOST, adapter: str | None = None
    ) -> None:
        self._model, self._handle = model, handle
        self._adapter = adapter_for(model, adapter)
        stages = handle.config.stages
        self._layer = min(stages[-1].layer + 1 if stages else 1, self._adapter.layers - 1)
        self._left = most
        self._begin()

    def _begin(self) -> None:
        self._seen = Seen()
        self._started: float | None = None
        self._hidden: Tensor | None = None
        self._attention: tuple[Tensor, Tensor, float, float | None] | None = None

    @contextmanager
    def of_prefill(self) -> Iterator[Seen]:
        """The first call of the model in the block; told once the block ends."""
        self._begin()
        seen = self._seen
        with ExitStack() as undo:
            model: nn.Module = self._model
            undo.callback(model.register_forward_pre_hook(self._start, prepend=True).remove)
            undo.callback(model.register_forward_hook(self._stop).remove)
            if self._left > 0:
                self._listen(undo)
            yield seen
        if self._hidden is not None and self._handle.has_pictures:
            self._look(self._hidden)
        self._begin()

    def _listen(self, undo: ExitStack) -> None:
        layer = self._adapter.decoder.layers[self._layer]
        undo.callback(layer.register_forward_pre_hook(self._take, with_kwargs=True).remove)
        attention = getattr(layer, "self_attn", None)
        if attention is not None and not capture.is_recorded(attention):
            backend = self._adapter.decoder.config._attn_implementation
            capture.install(backend)
            undo.callback(capture.uninstall, backend)
            capture.start(attention, self._record)
            undo.callback(capture.stop, attention)

    def _start(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self._started is None:
            self._started = self._now()

    def _stop(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._seen.seconds is None and self._started is not None:
            self._seen.seconds = self._now() - self._started

    def _take(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._hidden is None:
            self._hidden = (args[0] if args else kwargs["hidden_states"]).detach()

    def _record(self, query: Tensor, key: Tensor, scaling: float, softcap: float | None) -> None:
        if self._attention is None:
            own = key[:, :, : query.shape[2]]  # a cache may have room for more
            self._attention = query.detach(), own.detach(), scaling, softcap

    def _look(self, hidden: Tensor) -> None:
        trace, (vision, real) = self._handle.trace, self._handle.masks
        stays, rows = real.clone(), torch.arange(vision.shape[1], device="cpu").expand_as(vision)
        if len(trace):
            place = vision.reshape(-1).nonzero()[:, 0]
            gone = torch.ones_like(place, dtype=torch.bool)
            gone[trace.kept().cpu()] = False
            stays.view(-1)[place[gone]] = False
            width = int(stays.sum(dim=1).max())
            rows = width - stays.long().flip(1).cumsum(1).flip(1)
        else:
            width = vision.shape[1]
        if hidden.shape[:2] != (len(vision), width):
            return  # the first call in the block was another
        for sample in range(min(len(hidden), self._left)):
            there, seen = rows[sample, stays[sample]], rows[sample, stays[sample] & vision[sample]]
            if len(seen):
                tokens = hidden[sample, seen.to(hidden.device)]
                self._seen.ranks.append(effective_rank(tokens))
                self._entropy(sample, there, seen)
        self._left -= len(hidden)

    def _entropy(self, sample: int, there: Tensor, seen: Tensor) -> None:
        if self._attention is None:
            return
        query, key, scaling, softcap = self._attention
        rows, last = there.to(key.device), int(there[-1])
        own = key[sample, :, rows][None]
        asking = query[sample, :, last : last + 1][None]
        share = attention_logits(asking, own, scaling, softcap).softmax(dim=3).mean(dim=1)[0, 0]
        share = share[torch.isin(there, seen).to(key.device)]
        self._seen.entropies.append(entropy(share))

    def _now(self) -> float:
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)
        return time.perf_counter()


def effective_rank(x: Tensor) -> float:
    """How many directions tokens take up: from 1, if all are multiples of one, to as many as rows.

    The exponential of the entropy of the singular values as shares of their sum.
    Source: Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality",
    section 2; of pruned vision tokens: Baek et al. 2026, "AgilePruner".

    Args:
        x: Features, `[token, channel]`.

    Returns:
        The rank; 0 where all features are zero.
    """
    # Singular values from the smaller matrix of products, in digits enough for their squares.
    x = x.double() if x.shape[0] <= x.shape[1] else x.double().T
    values = torch.linalg.eigvalsh(x @ x.T).clamp(min=0).sqrt()
    if not bool(values.sum() > 0):
        return 0.0
    return math.exp(entropy(values))


def entropy(weights: Tensor) -> float:
    """Of weights of 0 or more as shares of their sum, in nats; 0 for none, or all on one.

    Of the attention that the last token pays to vision tokens it says over how many of them the
    attention is spread.  Source: Shannon 1948; of attention scores: Baek et al. 2026.

    Args:
        weights: `[token]`.
    """
    total = weights.double().sum()
    share = weights.double() / total.clamp(min=torch.finfo(torch.float64).tiny)
    return max(0.0, -float(torch.special.xlogy(share, share).sum()))
