"""What tokens say to each other: messages, their weights, and the convolution that carries them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
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
        """
        messages = self.phi(x_i, x_j, edge_weight)
        if not isinstance(messages, Tensor):
            raise TypeError(
                f"the message returned a {type(messages).__name__}: expected a tensor "
                f"[edge, channel] = {list(x_j.shape)}"
            )
        return messages
