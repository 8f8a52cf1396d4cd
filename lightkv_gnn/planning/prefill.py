"""What a prefill will cost, told without running it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightkv_gnn.adapters import AdapterChoice, VisionTokens, adapter_for
from lightkv_gnn.config import LightKVConfig
from lightkv_gnn.costs.ledger import LayerRow, Ledger
from lightkv_gnn.costs.plan import plan_costs, plan_stages
from lightkv_gnn.session.checks import check_schedule
from lightkv_gnn.session.request import vision_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def plan_prefill(
    model: PreTrainedModel,
    config: LightKVConfig,
    inputs: Mapping[str, Any] | VisionTokens,
    *,
    adapter: AdapterChoice = None,
    bytes_per_value: int | None = None,
) -> Ledger:
    """What a prefill on an empty dynamic cache will cost; nothing is observed.

    The decoder does not run.  To learn how many tokens each picture has, the model's encoders run
    once, unless ``inputs`` tells: then weights are not needed, and the model may be on the meta
    device.

    Args:
        model: A model with an adapter.
        config: How to compress.
        inputs: What the processor returned, or the call's placeholders and pictures.
        adapter: As for :func:`attach`.
        bytes_per_value: Of the cache; those of the model's dtype if not given.

    Raises:
        ImageTokensError: Placeholders and pictures do not fit each other.
        ScheduleError: Layers and windows that the model does not have.
        UnsupportedInputError: There are no pictures, or their sizes are not told.
        UnsupportedModelError: No adapter for this family.
        TypeError: ``config`` or ``inputs`` is something else.
        ValueError: ``bytes_per_value`` is below 1.
    """
    chosen = adapter_for(model, adapter)
    if not isinstance(config, LightKVConfig):
        raise TypeError(f"config is {config!r}: expected a LightKVConfig")
    if bytes_per_value is None:
        bytes_per_value = model.dtype.itemsize
    if bytes_per_value < 1:
        raise ValueError(f"bytes_per_value is {bytes_per_value}: expected 1 or more")
    check_schedule(chosen, config)
    tokens = inputs if isinstance(inputs, VisionTokens) else vision_tokens(chosen, inputs)
    layout, lengths = chosen.layout(tokens), tokens.real.sum(1).tolist()
    planned = plan_stages(config.stages, layout, lengths)
    windows = [chosen.sliding_window(layer) for layer in range(chosen.layers)]
    room = [None if window is None else window - 1 for window in windows]
    sizes = [chosen.decoder_size(bytes_per_value, layer) for layer in range(chosen.layers)]
    costs = plan_costs(sizes, planned, lengths, len(layout), tokens.real.shape[1], room)
    rows = [LayerRow(layer, *both, None, None, None) for layer, both in enumerate(costs)]
    return Ledger(tuple(rows), 0.0)
