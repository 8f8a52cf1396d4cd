"""Methods that leave the prefill alone and shorten what it has cached, in all layers alike."""

from __future__ import annotations

import inspect
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightkv_gnn.adapters import Adapter, adapter_for
from lightkv_gnn.baselines.losses import MeasuredCompressor
from lightkv_gnn.baselines.method import Applied, Bill, Budget, Hints, Method
from lightkv_gnn.cache.layers import CompressedLayer, compressed_layer
from lightkv_gnn.config import LightKVConfig
from lightkv_gnn.errors import UnsupportedInputError
from lightkv_gnn.seams import ModelCall, cache_in
from lightkv_gnn.session.attach import attach
from lightkv_gnn.session.request import PrefillRequest, inspect_call
from lightkv_gnn.stage.compressor import TokenCompressor

RECENT = 4
"""Last tokens of each prompt, whose entries always stay."""


class Shrinker(ABC):
    """Shortens the cache of every prefill with pictures, after the model has run.

    Each layer keeps ``retention`` of each sample's entries of vision and text, besides the last
    few.  Masks and positions go on as if nothing had left.

    Args:
        adapter: Of the model.
        retention: Entries kept; fraction.
    """

    def __init__(self, adapter: Adapter, retention: float) -> None:
        self.adapter, self.retention = adapter, retention
        self.request: PrefillRequest | None = None
        self.bytes = 0
        self.seconds = 0.0
        self._vision = self._left = torch.zeros((), device="cpu")
        self._signature = inspect.signature(adapter.base.forward)

    def install(self, undo: ExitStack) -> None:
        """Registers hooks, and with ``undo`` how to take them away."""
        base = self.adapter.base
        undo.callback(base.register_forward_pre_hook(self._before, with_kwargs=True).remove)
        undo.callback(base.register_forward_hook(self._after, with_kwargs=True).remove)

    @abstractmethod
    def importance(self, number: int, real: Tensor) -> Tensor:
        """What an entry of a layer is worth, `[batch, entry]`.

        Args:
            number: Of the layer.
            real: Entries that are not padding, `[batch, entry]` bool.
        """

    def shortened(self, states: Tensor, kept: Tensor, real: Tensor) -> Tensor:
        """Keys or values of the entries that stay.

        Args:
            states: `[batch, head, entry, channel]`.
            kept: Entries that stay, in order, `[batch, left]`; -1 for padding.
            real: Entries that are not padding, `[batch, entry]` bool.

        Returns:
            `[batch, head, left, channel]`.
        """
        index = kept.clamp(min=0)[:, None, :, None]
        return states.gather(2, index.expand(-1, states.shape[1], -1, states.shape[3]))

    def observed_retention(self) -> float:
        """Vision entries of the last prefill that are left; fraction."""
        return float(self._left / self._vision) if bool(self._vision) else 1.0

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.request = inspect_call(self.adapter, ModelCall.of(self._signature, args, kwargs))
        if self.request is not None:
            self.seconds = 0.0
        if self.request is not None and self.request.past:
            raise UnsupportedInputError(
                "a picture comes after other tokens in the cache: methods that shorten the cache "
                "take prefills of an empty one"
            )

    def _after(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        request, self.request = self.request, None
        if request is None:
            return
        started = time.perf_counter()
        cache = cache_in(output)
        if cache is None:
            raise UnsupportedInputError("there is no cache to shorten: leave use_cache on")
        for number in range(self.adapter.layers):
            layer = compressed_layer(cache, number)
            if not isinstance(layer, CompressedLayer):
                raise UnsupportedInputError(
                    f"layer {number} of the cache is a {type(layer).__name__}: expected one that "
                    "grows and forgets nothing, as in DynamicCache()"
                )
        device = cache.layers[0].keys.device
        real = request.real.to(device)
        vision = torch.stack([*request.masks.values()]).any(0).to(device) & real
        lengths = request.real.sum(1).tolist()
        self.bytes, self._left = 0, torch.zeros((), device=device)
        self._vision = vision.sum() * self.adapter.layers
        for number in range(self.adapter.layers):
            layer = cache.layers[number]
            stays = self._stays(self.importance(number, real), real, lengths)
            kept = _listed_at_right(stays, max(map(self.planned, lengths)))
            keys, values = (self.shortened(x, kept, real) for x in (layer.keys, layer.values))
            layer.rewrite(keys, values, kept)
            self.bytes += sum(x.numel() * x.element_size() for x in (keys, values))
            self._left += (stays & vision).sum()
        self.seconds += time.perf_counter() - started

    def planned(self, length: int) -> int:
        """Entries that stay of a prompt of that many tokens."""
        last = min(RECENT, length)
        return last + round(self.retention * (length - last))

    def _stays(self, importance: Tensor, real: Tensor, lengths: list[int]) -> Tensor:
        """The planned number of each sample's entries, `[batch, entry]` bool."""
        after = real.flip(1).long().cumsum(1).flip(1)
        worth = importance.masked_fill(real & (after <= RECENT), torch.inf)
        worth = worth.masked_fill(~real, -torch.inf)
        rank = worth.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        number = torch.tensor([*map(self.planned, lengths)], device=real.device)
        return (rank < number[:, None]) & real


def _listed_at_right(mask: Tensor, width: int) -> Tensor:
    """Positions of each row's true entries, `[batch, width]`, after -1 for padding."""
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)[:, mask.shape[1] - width :]
    return order.masked_fill(~mask.gather(1, order), -1)


@dataclass(frozen=True, eq=False)
class Shrunk(Applied):
    """A method that shortens the cache, at work.

    Attributes:
        shrinker: Does it.
    """

    shrinker: Shrinker | None = None

    def method_seconds(self) -> float:
        """Wall time of shortening the last prefill's cache, on the host."""
        assert self.shrinker is not None
        return self.shrinker.seconds

    def bill(self) -> Bill:
        """The last prefill's: all operations, and what is left of the cache."""
        assert self.shrinker is not None
        left, size = self.shrinker.observed_retention(), self.shrinker.bytes
        return replace(super().bill(), retention=left, kv_bytes=size)


@dataclass(frozen=True)
class CacheMethod(Method):
    """A method that shortens the cache after the prefill; where stages begin has no meaning.

    Attributes:
        shrinker: Does it.
    """

    has_depth: ClassVar[bool] = False

    shrinker: type[Shrinker]

    @contextmanager
    def applied(self, model: Any, budget: Budget) -> Iterator[Applied]:
        """The method at work; see :meth:`Method.applied`."""
        measured = MeasuredCompressor(TokenCompressor())
        with ExitStack() as undo:
            # No stages: its hooks then look after decoding with shortened layers.
            handle = undo.enter_context(attach(model, LightKVConfig([]), compressor=measured))
            shrinker = self.shrinker(adapter_for(model), budget.retention)
            shrinker.install(undo)
            yield Shrunk(handle, Hints(), measured, shrinker=shrinker)
