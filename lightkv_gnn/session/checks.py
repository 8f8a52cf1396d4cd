"""What must hold of a model and a configuration before a model is touched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightkv_gnn.adapters import Adapter
from lightkv_gnn.attention.backends import SUPPORTED, mask_form, why_no_mass
from lightkv_gnn.attention.masks import check_padding_mask
from lightkv_gnn.cache.compressed import CompressedMixin
from lightkv_gnn.cache.sizes import entries_written, holds_state
from lightkv_gnn.config import LightKVConfig
from lightkv_gnn.costs.plan import PlannedStage
from lightkv_gnn.errors import ScheduleError, UnsupportedInputError, UnsupportedModelError
from lightkv_gnn.seams import check_attention, check_transformers, names_of, tested


def check_adapter(adapter: Adapter) -> None:
    """Raises UnsupportedModelError for an adapter that would never find a picture."""
    name, encoders = type(adapter).__name__, adapter.encoders
    for encoder in encoders.values():
        if not callable(getattr(adapter.base, encoder, None)):
            raise UnsupportedModelError(
                f"{name} names the encoder {encoder!r}, which {type(adapter.base).__name__} does "
                "not have: override encoders"
            )
    if not set(adapter.placeholders) & set(encoders) & set(adapter.pixels):
        raise UnsupportedModelError(
            f"{name} knows no kind of pictures with an encoder, a placeholder and pixels: there "
            f"are encoders {dict(encoders)}, placeholders {dict(adapter.placeholders)} and pixels "
            f"{dict(adapter.pixels)}; override those that are called differently in this model"
        )


def check_seams(adapter: Adapter, config: LightKVConfig) -> None:
    """Looks for everything in transformers that hooks rely on, before any is registered.

    Raises:
        UnsupportedModelError: Something is missing, or called by a name that is not known.
    """
    check_transformers()
    names_of(adapter.decoder.layers)
    for layer in recorded_layers(config):
        check_attention(adapter.attention(layer))


def recorded_layers(config: LightKVConfig) -> list[int]:
    """Layers whose attention is recorded: those that a stage runs after, with guidance."""
    if config.guidance == "none":
        return []
    return [stage.layer for stage in config.stages if stage.ratio > 0]


def check_schedule(adapter: Adapter, config: LightKVConfig) -> None:
    """Raises ScheduleError for layers and windows that the model does not have."""
    legal, grid = adapter.legal_layers, adapter.grid
    for stage in config.stages:
        if stage.layer not in legal:
            raise ScheduleError(
                f"{stage} runs after layer {stage.layer}, but in this model, with decoder layers "
                f"0..{adapter.layers - 1}, a stage may run after {_listed(legal)}"
            )
        if not adapter.placed and stage.windows > 1:
            raise ScheduleError(
                f"{stage} has {stage.windows} windows per side, but the vision tokens of "
                f"{adapter.model.config.model_type!r} are queries that have read the whole picture "
                "and have no place in it: use 1 window"
            )
        if grid is not None and stage.windows > min(grid):
            raise ScheduleError(
                f"{stage} cuts a grid of {grid[0]}x{grid[1]} tokens into {stage.windows} windows "
                f"per side, which leaves windows empty: use at most {min(grid)}"
            )


def check_backend(adapter: Adapter, config: LightKVConfig) -> None:
    """Raises UnsupportedInputError for attention or positions not supported."""
    decoder = adapter.decoder.config
    if mask_form(decoder._attn_implementation) is None:
        raise UnsupportedInputError(
            f"attention implementation {decoder._attn_implementation!r} is not supported: load the "
            f"model with attn_implementation one of {SUPPORTED}, or with a function of your own "
            "whose masks one of theirs makes: AttentionMaskInterface.register(name, sdpa_mask)"
        )
    if config.attention == "mass":
        check_mass(decoder._attn_implementation)
    if config.positions == "preserve":
        return
    growing = {"dynamic", "longrope"} & _rope_types(getattr(decoder, "rope_parameters", None) or {})
    if growing:
        raise UnsupportedInputError(
            f'positions="reindex" does not work with {growing.pop()!r} rotary positions, whose '
            'tables depend on the longest one: use positions="preserve"'
        )


def check_mass(implementation: str) -> None:
    """Raises UnsupportedInputError for attention that nothing can be added to the logits of."""
    if why := why_no_mass(implementation):
        raise UnsupportedInputError(
            f"{why}, so it cannot count a token as often as it stands for: use "
            'attention="plain", or load the model with attn_implementation="sdpa" or "eager"'
        )


def check_masses(cache: Any, why_not: str) -> None:
    """Raises UnsupportedInputError for a cache whose entries count, where attention cannot."""
    if any(getattr(layer, "log_mass", None) is not None for layer in cache.layers):
        raise UnsupportedInputError(
            f'this cache was made with attention="mass", and {why_not}: go on with the attention '
            "implementation that it was made with"
        )


def _rope_types(parameters: dict[str, Any]) -> set[str]:
    """Kinds of rotary positions, of all kinds of layers where they differ."""
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return {each.get("rope_type", "default") for each in nested or [parameters]}


def _listed(layers: Sequence[int]) -> str:
    if isinstance(layers, range):
        return f"layers {layers[0]} to {layers[-1]}" if layers else "none"
    return f"layers {', '.join(map(str, layers))}"


def check_same_backend(adapter: Adapter, attached: str) -> None:
    """Raises RuntimeError if the attention implementation is no longer ``attached``."""
    now = adapter.decoder.config._attn_implementation
    if now != attached:
        raise RuntimeError(
            f"the attention implementation was switched from {attached!r} to {now!r} while "
            "lightkv_gnn is attached: switch it outside the context, and attach again"
        )


def check_checkpointing(adapter: Adapter) -> None:
    """Raises UnsupportedInputError where activation checkpointing would run hooks once more.

    Older transformers checkpoint a layer with its hooks, and the backward pass would then run it on
    tokens that were merged since.
    """
    layer = adapter.decoder.layers[0]
    around = type(layer).__call__ is not nn.Module.__call__
    if around and layer.training and getattr(layer, "gradient_checkpointing", False):
        raise UnsupportedInputError(
            "activation checkpointing in this version of transformers runs the hooks of a layer "
            "again in the backward pass: use a newer one, such as 5.23, or switch it off"
        )


def check_flash_call(mask: Any, positions: Tensor | None, cache: Any) -> None:
    """Looks at what the first layer is given, where flash attention is to run.

    Flash attention cuts a batch of one sample into packed sequences where it finds their borders
    in the positions; compression has but whole samples.

    Raises:
        UnsupportedInputError: A mask that flash attention cannot obey, positions with borders, or
            a static cache, whose empty slots it has no mask for.
    """
    check_padding_mask(mask)
    if (
        mask is None
        and positions is not None
        and positions.shape[0] == 1
        and bool((torch.diff(positions, dim=-1) != 1).any())
    ):
        raise UnsupportedInputError(
            "position_ids with gaps are borders between packed sequences to flash attention: "
            "pass one sequence per row, padded, with an attention_mask"
        )
    if getattr(cache, "is_compileable", False):
        raise UnsupportedInputError(
            "static caches are not supported with flash attention: use a dynamic cache, or load "
            'the model with attn_implementation="sdpa"'
        )


def check_states(adapter: Adapter, planned: Sequence[PlannedStage], past: int) -> None:
    """Looks at a later turn of a batch, where layers hold a state.

    Raises:
        UnsupportedInputError: Samples have unequal numbers of tokens left.  The padding would then
            lie between a sample's state and its tokens, and the state would fade in it.
    """
    ragged = any(min(step.lengths) < max(step.lengths) for step in planned)
    if past and ragged and not all(map(adapter.holds_entries, range(adapter.layers))):
        raise UnsupportedInputError(
            "samples of a batch have unequal numbers of tokens left in a later turn, and layers "
            "that hold a state cannot skip what is padding between the turns: pass such samples "
            "one by one"
        )


def check_flash_windows(adapter: Adapter, layers: Iterable[int], length: int) -> None:
    """Looks at compressed layers, where flash attention is to run over ``length`` tokens.

    Raises:
        UnsupportedInputError: A layer's window is shorter.  Flash attention would count the
            entries that are left, and so look back further than the model was trained to.
    """
    for layer in layers:
        window = adapter.sliding_window(layer)
        if window is not None and length > window:
            raise UnsupportedInputError(
                f"the context of {length} tokens grew past the sliding window of {window}, which "
                "flash attention would count in merged tokens: use a shorter context, or "
                'attn_implementation="sdpa"'
            )


def check_held(
    given: Any,
    returned: Any,
    before: Sequence[int | None],
    shapes: Sequence[tuple[int, int]],
    stages: Mapping[int, int],
) -> None:
    """Looks at the cache that a prefill leaves: has every layer taken what it was given?

    Only sizes that the host knows are asked for.

    Args:
        given: The cache that the layers were given, or None.
        returned: The one that the model returned, or None.
        before: Entries that each layer had, where the host knows.
        shapes: (samples, tokens) that each layer was given.
        stages: Stage that runs before a layer, by the layer's number.

    Raises:
        RuntimeError: One has not, or keeps its entries elsewhere.
    """
    first = min(stages, default=len(shapes))
    if given is None:
        if returned is not None and first < len(shapes):
            raise RuntimeError(
                "the model filled a cache that its decoder layers were not given by a name that "
                f"is known, so nothing in it is compressed; {tested()}"
            )
        return
    for number, (entries, (_, tokens)) in enumerate(zip(before, shapes, strict=True)):
        layer = given.layers[number]
        if holds_state(layer):
            continue
        if number >= first and (not isinstance(layer, CompressedMixin) or layer.announced):
            raise RuntimeError(
                f"decoder layer {number} did not write the entries that were announced for it: "
                f"expected {tokens} in a compressed cache layer, found {layer}; {tested()}"
            )
        held = entries_written(given, number)
        if entries is not None and held is not None and held - entries != tokens:
            raise RuntimeError(
                f"decoder layer {number} wrote {held - entries} entries, but was given {tokens} "
                f"tokens: the cache is not what was planned; {tested()}"
            )
