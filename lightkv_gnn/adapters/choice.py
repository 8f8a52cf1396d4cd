"""Which adapter a model gets: its family's, one of the caller's, or one that looks for itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from lightkv_gnn.adapters import base
from lightkv_gnn.adapters.base import Adapter
from lightkv_gnn.adapters.generic import GenericAdapter
from lightkv_gnn.adapters.generic.decoders import check_layers
from lightkv_gnn.adapters.notices import say_once
from lightkv_gnn.adapters.refusals import no_adapter, no_model
from lightkv_gnn.errors import UnsupportedModelError

AUTO = "auto"
"""The name of the choice that finds out by itself."""

AdapterChoice = Adapter | type[Adapter] | str | None
"""An adapter of the model, a class, a ``model_type`` that has one, "auto", or None."""


def adapter_for(model: PreTrainedModel, adapter: AdapterChoice = None) -> Adapter:
    """The adapter of a model.

    Args:
        model: As loaded by transformers.
        adapter: None for the one that is registered for the model's type.  "auto" for that one
            too, on text models that it is not known to work with as well; where there is none, a
            :class:`GenericAdapter`.  What it takes for granted is said in a warning, once.  Else an
            adapter, a class of them, or another ``model_type``, whose adapter fits this model.

    Raises:
        UnsupportedModelError: No adapter is registered for it, the one that was chosen does not
            fit, or it is no model.
        TypeError: ``adapter`` is something else.
        ValueError: ``adapter`` is a name that is not known, or belongs to another model.
    """
    if not isinstance(model, nn.Module):
        raise no_model(model)
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if not isinstance(model_type, str):
        raise UnsupportedModelError(
            f"no adapter for {type(model).__name__}, whose config names no model type: expected a "
            "model of transformers that takes pictures, as from_pretrained returns it"
        )
    if adapter is None or adapter == AUTO:
        registered = base._ADAPTERS.get(model_type)
        if registered is None and adapter is None:
            raise no_adapter(type(model).__name__, model.config)
        if registered is None:
            return GenericAdapter(model)
        return registered(model) if adapter is None else _on_any_text(registered, model)
    if isinstance(adapter, str):
        check_name(adapter)
        return base._ADAPTERS[adapter](model)
    if isinstance(adapter, type) and issubclass(adapter, Adapter):
        return adapter(model)
    if not isinstance(adapter, Adapter):
        raise TypeError(
            f"adapter is {adapter!r}: expected an Adapter, a class of them, a model type, or "
            f"{AUTO!r}"
        )
    if adapter.model is not model:
        raise ValueError(
            f"adapter is a {type(adapter).__name__} of another model: expected one that was made "
            "with this one, or its class"
        )
    return adapter


def geometry_of(config: Any) -> Adapter:
    """The adapter of a configuration alone, where no model of transformers runs.

    It tells what tiles pictures have; of the rest, which it would ask of layers, nothing.

    Raises:
        UnsupportedModelError: No adapter is registered for the configuration's type.
    """
    registered = base._ADAPTERS.get(config.model_type)
    if registered is None:
        raise no_adapter(type(config).__name__, config)
    any_text = type(registered.__name__, (registered,), {"text_models": ()})
    return any_text(cast(PreTrainedModel, SimpleNamespace(config=config)))


def check_name(name: str) -> None:
    """Raises ValueError for a name of no adapter."""
    if name != AUTO and name not in base._ADAPTERS:
        raise ValueError(
            f"adapter is {name!r}: expected {AUTO!r} or one of {', '.join(sorted(base._ADAPTERS))}"
        )


def _on_any_text(registered: type[Adapter], model: PreTrainedModel) -> Adapter:
    """A family's adapter, on a text model that it is not known to work with too."""
    text = model.config.get_text_config().model_type
    if not registered.text_models or text in registered.text_models:
        return registered(model)
    adapter = type(registered.__name__, (registered,), {"text_models": ()})(model)
    check_layers(adapter.decoder)
    say_once(
        model,
        f"{type(model).__name__} on a {text!r} text model is not among those that were tested, "
        f"{', '.join(registered.text_models)}; its layers take what compression hands them",
    )
    return adapter
