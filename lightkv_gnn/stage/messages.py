"""What tokens say to each other: messages, their weights, and the convolution that carries them."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from lightkv_gnn.stage.scatter import ScatterBackend, ScatterSum, TorchBackend

Message = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``message(x_i, x_j, weight)``: receiving survivor's and sending token's features
`[edge, channel]` and the weight `[edge]`, to messages `[edge, channel]`, which are summed."""


@dataclass(frozen=True)
class WeightedMean:
    """A message that sends ``weight * x_j``; ``weigh`` says what the weights are made of.

    Attributes:
        name: Its name in a configuration file.
        weigh: ``weigh(guidance, mass, stays)``, each `[token]`: the logarithm of the prompt's
            guidance, the mass, and whether the token stays; returns logarithms of weights
            `[token]`, normalised per survivor afterwards.
    """

    name: str
    weigh: Callable[[Tensor, Tensor, Tensor], Tensor]

    def __call__(self, x_i: Tensor, x_j: Tensor, weight: Tensor) -> Tensor:
        """Messages, `[edge, channel]`; a weight of zero sends nothing, of a NaN neither."""
        return (weight[:, None] * x_j).masked_fill((weight == 0)[:, None], 0)

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> str | tuple[Any, ...]:
        """The library's own are pickled and copied by name, and stay what they are."""
        own = MESSAGES.get(self.name) is self
        return self.name if own else (WeightedMean, (self.name, self.weigh))


guided_mean = WeightedMean("guided_mean", lambda guidance, mass, stays: guidance)
"""The prompt's guidance weighs the mean.  Source: Chen et al. 2026, section 3.2."""

mean = WeightedMean("mean", lambda guidance, mass, stays: torch.zeros_like(guidance))
"""All tokens of a survivor weigh the same, whatever they stand for."""

mass_mean = WeightedMean("mass_mean", lambda guidance, mass, stays: mass.to(guidance.dtype).log())
"""Tokens weigh by how many original tokens they stand for."""

destination_only = WeightedMean(
    "destination_only", lambda guidance, mass, stays: torch.where(stays, 0.0, -torch.inf)
)
"""Survivors keep their own features: merging becomes pruning."""

MESSAGES = {message.name: message for message in (guided_mean, mean, mass_mean, destination_only)}


def forgets_weight(message: Message) -> bool:
    """Whether a message's code never reads its third argument; False where that cannot be told.

    One whose name begins with an underscore is left out on purpose.
    """
    function = message.forward if isinstance(message, nn.Module) else message
    code = getattr(inspect.unwrap(function), "__code__", None)
    if not isinstance(code, CodeType):
        return False
    place = 3 if inspect.ismethod(function) else 2
    if code.co_argcount <= place:
        return False
    weight, read = code.co_varnames[place], set[str]()
    for instruction in dis.get_instructions(code):
        if "LOAD" in instruction.opname:
            named = instruction.argval
            read.update(named if isinstance(named, tuple) else [named])
    return weight not in read and not weight.startswith("_")


class MergeConv(MessagePassing):
    """One round of message passing from the tokens of a stage to its survivors.

    Every token sends one message: to itself if it stays, else to its destination.

    Args:
        message: ``phi(x_i, x_j, weight)``; see :data:`Message`.
        scatter: How messages are summed.
    """

    def __init__(
        self, message: Message = guided_mean, scatter: ScatterBackend | None = None
    ) -> None:
        super().__init__(aggr=ScatterSum(scatter or TorchBackend()), node_dim=0)
        self.phi = message

    def forward(self, x: tuple[Tensor, Tensor], edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        """Sums the messages.

        Args:
            x: Features of the tokens `[token, channel]` and of the survivors
                `[survivor, channel]`.
            edge_index: From token, to survivor, `[2, edge]`, sorted by survivor.
            edge_weight: `[edge]`; the weights into one survivor sum to one.

        Returns:
            `[survivor, channel]`.
        """
        size = (x[0].shape[0], x[1].shape[0])
        return self.propagate(edge_index, x=x, edge_weight=edge_weight, size=size)

    def message(self, x_i: Tensor, x_j: Tensor, edge_weight: Tensor) -> Tensor:
        """Messages of all edges, `[edge, channel]`.

        Raises:
            TypeError: The message returned no tensor.
            ValueError: It returned not one row for each edge.
        """
        messages = self.phi(x_i, x_j, edge_weight)
        if not isinstance(messages, Tensor):
            raise TypeError(
                f"the message returned a {type(messages).__name__}: expected a tensor "
                f"[edge, channel] = {list(x_j.shape)}"
            )
        if messages.shape[:1] != x_j.shape[:1]:
            raise ValueError(
                f"the message returned shape {list(messages.shape)}: expected one row per edge, "
                f"[edge, channel] = {list(x_j.shape)}; messages are summed per survivor afterwards"
            )
        return messages
