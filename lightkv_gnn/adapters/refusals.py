"""What is said of models without an adapter."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightkv_gnn.adapters.unserved import KINDS, UNSERVED, Unserved
from lightkv_gnn.errors import UnsupportedModelError

PAGE, HOW_TO = "docs/families.md", "docs/how-to/adapter.md"
"""The table of families, and how to write an adapter."""

EXAMPLE = """\
    @lightkv_gnn.register_adapter({model_type!r})
    class MyAdapter(lightkv_gnn.Adapter):
        def tiles(self, encoded):  # of every picture: its grids of tokens, in order
            return [[lightkv_gnn.graphs.Tile(24, 24)] for _ in encoded.lengths]"""
"""An adapter for a model whose pictures are squares of 24 x 24 tokens."""


def no_adapter(name: str, config: Any, *, example: bool = True) -> UnsupportedModelError:
    """The error for a type of models that no adapter is registered for.

    Args:
        name: Of the model.
        config: Its configuration.
        example: Whether to show how to write one.
    """
    model_type = config.model_type
    start = f"no adapter for {name} with model type {model_type!r}"
    reason = why_not(config)
    if reason is not None:
        return UnsupportedModelError(f"{start}, and one alone could not serve it: {reason}; {PAGE}")
    text = (
        f'{start}. {PAGE} lists the families that have one; adapter="auto" (--adapter auto) '
        "finds vision tokens and their grids in the model itself, or says what is missing; "
        f"{HOW_TO} shows how to write one"
    )
    shown = f", and register it:\n\n{EXAMPLE.format(model_type=model_type)}"
    return UnsupportedModelError(text + (shown if example else ""))


def why_not(config: Any) -> str | None:
    """Why models of a configuration are not served, whatever the adapter; None if one might do."""
    known = UNSERVED.get(config.model_type) or _by_structure(config)
    return None if known is None else f"{known.kind}: {known.why} ({KINDS[known.kind]})"


def _by_structure(config: Any) -> Unserved | None:
    """What the configuration of a type that nobody has looked at tells of its kind."""
    if getattr(config, "is_encoder_decoder", False):
        return Unserved("encoder–decoder", "is_encoder_decoder is set in its configuration")
    text = config.get_text_config()
    for name in ("cross_attention_layers", "add_cross_attention"):
        if getattr(config, name, None) or getattr(text, name, None):
            return Unserved("cross-attention", f"{name} is set in its configuration")
    return None


def no_model(given: object) -> UnsupportedModelError:
    """The error for what is no model of transformers."""
    kind = type(given).__name__
    if isinstance(given, str):
        given_as, hint = (
            f"the text {given!r}",
            f"AutoModelForImageTextToText.from_pretrained({given!r})",
        )
    elif isinstance(getattr(given, "model", None), nn.Module):  # a pipeline
        given_as, hint = f"a {kind} around a model", "the model inside it, its attribute model"
    else:
        given_as, hint = f"a {kind}", "what AutoModelForImageTextToText.from_pretrained returns"
    return UnsupportedModelError(
        f"no adapter for {kind}: model is {given_as}, expected a model of transformers: {hint}"
    )
