"""What a decoder must be for compression, where no adapter vouches for it."""

from __future__ import annotations

import inspect
from typing import Any

from lightkv_gnn.errors import UnsupportedModelError
from lightkv_gnn.seams import CACHE, STATES, TOKEN_AXES, last_added, layer_names, tested

TAKEN = {
    *("hidden_states", "attention_mask", "position_ids", "position_embeddings"),
    *CACHE,
    *TOKEN_AXES,
    *("use_cache", "output_attentions", "cache_position", "kwargs"),
}
"""Arguments of a decoder layer that a shorter one is handed as it needs them."""

LAYER_TYPES = {"full_attention", "sliding_attention", *STATES}
"""Kinds of layers that hold an entry for each token, or a state."""

EMBEDS = "deepstack_visual_embeds"
"""The argument of a decoder that brings features for its first layers, one list for each."""


def decoder_of(model: Any) -> Any:
    """The module that has the decoder's layers.

    Raises:
        UnsupportedModelError: There is none where transformers usually has it.
    """
    decoder = model.get_decoder()
    for module in (decoder, getattr(decoder, "model", None)):
        if hasattr(module, "layers"):
            return module
    raise UnsupportedModelError(
        f"{type(model).__name__}.get_decoder() is a {type(decoder).__name__} without layers, so "
        "it is unknown what a stage could run between"
    )


def check_layers(decoder: Any) -> None:
    """Looks at every layer of a decoder that nobody has tested.

    Raises:
        UnsupportedModelError: One of them takes or holds something that belongs to single tokens,
            which compression does not know how to leave out.
    """
    if not hasattr(decoder, "rotary_emb"):
        raise UnsupportedModelError(
            f"{type(decoder).__name__} has no rotary_emb, so its positions are not rotary ones"
        )
    kinds = set(getattr(decoder.config, "layer_types", None) or ())
    if unknown := sorted(kinds - LAYER_TYPES):
        raise UnsupportedModelError(
            f"{type(decoder).__name__} has layers of {', '.join(unknown)}: expected "
            f"{' or '.join(sorted(LAYER_TYPES))}; {tested()}"
        )
    for number, layer in enumerate(decoder.layers):
        layer_names(layer)
        name = f"decoder layer {number}, a {type(layer).__name__},"
        more = [one for one in inspect.signature(layer.forward).parameters if one not in TAKEN]
        if more:
            raise UnsupportedModelError(
                f"{name} takes {', '.join(more)}: expected nothing but {', '.join(sorted(TAKEN))}, "
                f"since that may belong to single tokens; {tested()}"
            )
        attends = not kinds or decoder.config.layer_types[number] not in STATES
        if attends and not hasattr(layer, "self_attn"):
            raise UnsupportedModelError(f"{name} has no self_attn: it may be no attention at all")


def check_features(decoder: Any, config: Any) -> None:
    """Looks at what is added to vision tokens between layers; the configuration has to tell it.

    Args:
        decoder: With layers.
        config: Of the whole model.

    Raises:
        UnsupportedModelError: Something is added, and it is not told to how many layers.
    """
    takes = [name for name in inspect.signature(decoder.forward).parameters if "deepstack" in name]
    if takes and (takes != [EMBEDS] or not last_added(config)):
        raise UnsupportedModelError(
            f"{type(decoder).__name__}.forward takes {', '.join(takes)}, which may be added to "
            f"vision tokens between layers: expected {EMBEDS}, and a list in the configuration "
            "with an entry for each of the first layers"
        )
