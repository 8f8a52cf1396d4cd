"""How many weights a layer has, however they are stored."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lightkv_gnn.seams import experts_of, parts_by_kind


def active_weights(layer: nn.Module, config: Any) -> int:
    """Weights of a decoder layer that a token passes through: of experts, so many as are chosen.

    Args:
        layer: Of the decoder.
        config: Of the decoder.
    """
    weights = count_weights(layer)
    for part, chosen, experts in experts_of(layer, config):
        every = count_weights(part)
        weights -= every - every * chosen // experts
    return weights


def weights_by_kind(layer: nn.Module, config: Any) -> tuple[int, int]:
    """:func:`active_weights` of a token of text, and of a vision token.

    Args:
        layer: Of the decoder.
        config: Of the decoder.
    """
    every = active_weights(layer, config)
    text, vision = (
        sum(active_weights(part, config) for part in parts) for parts in parts_by_kind(layer)
    )
    return every - vision, every - text


def count_weights(layer: nn.Module) -> int:
    """Weights of a layer, which each token is multiplied with.

    Linear modules that pack theirs, in 8 bits or 4, have as many as their ``in_features`` and
    ``out_features`` say; of all others, parameters are counted.
    """
    packed = [module for module in layer.modules() if _packs(module)]
    inside = {id(weight) for module in packed for weight in module.parameters()}
    stored = sum(weight.numel() for weight in layer.parameters() if id(weight) not in inside)
    return stored + sum(map(_linear_weights, packed))


def _packs(module: nn.Module) -> bool:
    """Whether a module is linear and keeps no floating-point weights, nor is made of such ones."""
    if not all(isinstance(getattr(module, name, None), int) for name in _SIZES):
        return False
    if any(hasattr(part, _SIZES[0]) for part in module.modules() if part is not module):
        return False  # an adapter around a linear module
    weight = getattr(module, "weight", None)
    return not (isinstance(weight, Tensor) and weight.is_floating_point())


def _linear_weights(module: Any) -> int:
    bias = getattr(module, "bias", None)
    bias = bias() if callable(bias) and not isinstance(bias, Tensor) else bias
    extra = bias.numel() if isinstance(bias, Tensor) else 0
    return int(module.in_features * module.out_features) + extra


_SIZES = ("in_features", "out_features")
