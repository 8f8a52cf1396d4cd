"""What transformers calls things: the one file that knows.

Names are read from the signatures of the model that is attached, once.  What is not there is an
error then, before anything is changed, and never a call that silently does something else.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType, MethodType
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers import cache_utils, masking_utils, modeling_utils
from transformers.utils.import_utils import is_torch_npu_available

from lightkv_gnn.errors import UnsupportedModelError

OLDEST, NEWEST = "5.17", "5.24"
"""The first and the last minor version of transformers that the tests have run on."""

PREPARE = "prepare_inputs_for_generation"
"""The method of a model that prepares its inputs for ``generate``."""

ENCODED = "mm_encoder_outputs"
"""The argument of a model that brings pictures which are encoded already, by kind."""

CACHE = ("cache", "past_key_values")
"""The cache among the arguments and outputs of models and layers: since 5.24, and before."""

BIAS = "position_bias"
"""The argument of an attention function that is added to its logits, `[batch, head, query, key]`.
"""

TOKEN_AXES: Mapping[str, int | None] = MappingProxyType(
    {
        "per_layer_input": 1,
        "moe_mm_token_type_ids": 1,
        "mm_token_type_ids": 1,
        "token_type_ids": 1,
        "cache_position": None,
    }
)
"""Further tensors that decoder layers are given: the axis of their tokens, after that of samples.

None where a shorter layer takes all of it.
"""

STATES = ("linear_attention", "conv", "mamba")
"""Kinds of decoder layers that hold a state of the tokens so far, and no entries."""

_INTERFACE = "ALL_ATTENTION_FUNCTIONS"
_OF_A_CACHE_LAYER = ("update", "get_seq_length", "get_mask_sizes", "get_max_length", "reset")


class LayerNames(NamedTuple):
    """What a decoder layer calls its arguments.

    Attributes:
        hidden_states: `[batch, token, channel]`.
        mask: The attention mask.
        positions: Position ids.
        tables: Cosines and sines of rotary positions.
        cache: The whole model's.
        order: All of them that may come without a name, in their order.
        reads_positions: Whether attention itself reads position ids, and not only flash attention,
            for borders between packed sequences.
    """

    hidden_states: str = "hidden_states"
    mask: str = "attention_mask"
    positions: str = "position_ids"
    tables: str = "position_embeddings"
    cache: str = CACHE[0]
    order: tuple[str, ...] = ("hidden_states",)
    reads_positions: bool = False

    def of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """A layer's arguments by name."""
        return {**dict(zip(self.order, args, strict=False)), **kwargs}


@dataclass(frozen=True, eq=False)
class ModelCall:
    """The arguments of a call of a model, by name.

    Attributes:
        given: All of them, those that only one family has too.
    """

    given: Mapping[str, Any]

    @classmethod
    def of(
        cls, signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> ModelCall:
        """A call of a function with that signature."""
        return cls(named(signature, args, kwargs))

    @property
    def ids(self) -> Tensor | None:
        """Token ids, `[batch, token]`."""
        return self.given.get("input_ids")

    @property
    def tokens(self) -> Tensor | None:
        """Token ids, or else embeddings, `[batch, token, channel]`."""
        return self.given.get("inputs_embeds") if self.ids is None else self.ids

    @property
    def mask(self) -> Any:
        """The attention mask, in whatever form."""
        return self.given.get("attention_mask")

    @property
    def positions(self) -> Tensor | None:
        """Position ids."""
        return self.given.get("position_ids")

    @property
    def cache(self) -> Any:
        """The cache, by its name of now or by the older one."""
        return cache_in(self.given)

    @property
    def labels(self) -> Tensor | None:
        """What is to be learnt, `[batch, token]`."""
        return self.given.get("labels")

    @property
    def scores_all(self) -> bool:
        """Whether a model with a head is asked for the logits of all tokens, as for scores."""
        return not isinstance(kept := self.given.get("logits_to_keep", 0), Tensor) and kept == 0

    @property
    def encoded(self) -> dict[str, Any]:
        """Outputs of the model's encoders, by kind."""
        outputs = self.given.get(ENCODED) or {}
        return {kind: output for kind, output in outputs.items() if output is not None}

    @property
    def packed(self) -> bool:
        """Whether several prompts are packed into one row."""
        return self.given.get("cu_seq_lens_q") is not None


def named(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """A call's arguments by name, those in ``**kwargs`` too."""
    given = signature.bind_partial(*args, **kwargs).arguments
    return {**given, **given.get("kwargs", {})}


def cache_in(given: Any) -> Any:
    """The cache among arguments or outputs; None if there is none, or they have no names."""
    if not isinstance(given, Mapping):
        return None
    return next((given[name] for name in CACHE if given.get(name) is not None), None)


def patches_in(output: Mapping[str, Any]) -> Tensor:
    """The encoded pictures among a LLaVA's outputs, `[patch, channel]`.

    Since transformers 5.24 they come as the encoder's own output, one by one.
    """
    encoded = output.get("image_outputs")
    if encoded is None:
        patches: Tensor = output["image_hidden_states"]
        return patches
    return torch.cat(list(encoded.pooler_output))


def layer_names(layer: nn.Module) -> LayerNames:
    """What a decoder layer calls its arguments.

    Raises:
        UnsupportedModelError: It does not take what compression has to hand it.
    """
    signature = _signature(layer.forward)
    parameters = signature.parameters
    cache = next((name for name in CACHE if name in parameters), None)
    order = tuple(name for name, one in parameters.items() if one.kind is one.POSITIONAL_OR_KEYWORD)
    names = LayerNames(cache=cache or CACHE[0], order=order)
    names = names._replace(reads_positions=_reads(layer, names.positions))
    # A layer hands on whatever else its attention reads.
    free = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    needed = [names.hidden_states, names.mask, names.tables]
    needed += [] if free else [names.positions]
    missing = [name for name in needed if name not in parameters]
    if cache is None:
        missing.append(" or ".join(CACHE))
    if missing:
        raise UnsupportedModelError(
            f"{type(layer).__name__}.forward{signature} does not take {', '.join(missing)}, which "
            f"compression has to hand a decoder layer; {tested()}"
        )
    return names


def _reads(layer: nn.Module, name: str) -> bool:
    """Whether a part of a layer asks for an argument by its name."""
    return any(name in _signature(part.forward).parameters for part in layer.children())


def _signature(call: Callable[..., Any]) -> inspect.Signature:
    """Of a callable; of a method looked up once for all objects that have it."""
    if isinstance(call, MethodType):
        return _signature_of_method(call.__func__)
    return inspect.signature(call)


@lru_cache(maxsize=512)
def _signature_of_method(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(MethodType(function, function))


def check_attention(module: nn.Module) -> None:
    """Raises UnsupportedModelError for attention that asks no registry for its function."""
    functions = (
        inspect.unwrap(function)
        for parent in type(module).__mro__
        for function in vars(parent).values()
        if inspect.isfunction(function)
    )
    if not any(_INTERFACE in function.__code__.co_names for function in functions):
        raise UnsupportedModelError(
            f"{type(module).__name__} does not go through transformers' attention interface "
            f'({_INTERFACE}), so the prompt\'s guidance cannot be recorded: use guidance="none"'
        )


def last_added(config: Any) -> int:
    """The decoder layer that the last visual features are added before; 0 if none are later.

    Args:
        config: Of the model.
    """
    if (layers := getattr(config, "deepstack_layer_map", None)) is not None:
        later = getattr(config, "spatial_target_layers", None) or ()
        return max(int(layer) for layer in (*(layer for _, layer in layers), *later))
    vision = getattr(config, "vision_config", None)
    return len(getattr(vision, "deepstack_visual_indexes", None) or ())


def unscaled_places(config: Any) -> int | None:
    """Tokens up to which attention is scaled alike wherever they stand; None for any number.

    Llama 4 scales the queries of layers without rotary positions by their place in the row.

    Args:
        config: Of the decoder.
    """
    if not getattr(config, "attn_temperature_tuning", False):
        return None
    return int(config.floor_scale) - 1


def experts_of(layer: nn.Module, config: Any) -> Iterator[tuple[nn.Module, int, int]]:
    """Of a decoder layer: modules of experts, how many a token passes through, and of how many.

    Args:
        layer: Of the decoder; its experts are a list of modules, or tensors of all together.
        config: Of the decoder.
    """
    names = ("num_experts_per_tok", "moe_topk", "top_k_experts")
    chosen = next((n for name in names if (n := getattr(config, name, None)) is not None), None)
    if chosen is None:
        return
    for name, part in layer.named_modules():
        if name.rpartition(".")[2] == "experts":
            together = not isinstance(part, nn.ModuleList)
            yield part, chosen, len(next(part.parameters()) if together else part)


def parts_by_kind(layer: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """Of a decoder layer, modules that only tokens of text pass through, and only vision tokens."""
    own: dict[str, list[nn.Module]] = {"text_moe": [], "vision_moe": []}
    for name, part in layer.named_modules():
        own.get(name.rpartition(".")[2], []).append(part)
    return own["text_moe"], own["vision_moe"]


def takes_bias(implementation: str) -> bool:
    """Whether an attention function adds something to its logits."""
    function = modeling_utils.ALL_ATTENTION_FUNCTIONS[implementation]
    return BIAS in inspect.signature(function).parameters


def masks_only_hide(implementation: str) -> bool:
    """Whether numbers in a mask are read as truth values, as sdpa does on an Ascend NPU."""
    return implementation == "sdpa" and is_torch_npu_available()


def check_transformers() -> None:
    """Looks at what the library relies on outside of models; warns of a version never tested.

    Raises:
        UnsupportedModelError: Something is missing.
    """
    uses = {
        cache_utils.DynamicLayer: _OF_A_CACHE_LAYER,
        cache_utils.StaticLayer: _OF_A_CACHE_LAYER,
        cache_utils.Cache: ("get_seq_length", "get_mask_sizes"),
        type(modeling_utils.ALL_ATTENTION_FUNCTIONS): ("_global_mapping", "get"),
        masking_utils.AttentionMaskInterface: ("_global_mapping",),
    }
    missing = [
        f"{kind.__name__}.{name}"
        for kind, names in uses.items()
        for name in names
        if not hasattr(kind, name)
    ]
    if missing:
        raise UnsupportedModelError(
            f"transformers {transformers.__version__} has no {', '.join(missing)}; {tested()}"
        )
    if is_newer():
        warnings.warn(
            f"lightkv_gnn: transformers {transformers.__version__} is newer than the versions "
            f"that were tested, {OLDEST} to {NEWEST}; what a prefill does is checked as it goes",
            stacklevel=4,
        )


def with_versions(error: ImportError) -> ImportError:
    """What to raise where a name cannot be imported from transformers."""
    return ImportError(f"{error}; lightkv_gnn is {tested()}")


def is_newer() -> bool:
    """Whether the transformers that is installed is newer than those tested."""
    return _minor(transformers.__version__) > _minor(NEWEST)


def tested() -> str:
    """The versions that were tested, for errors."""
    return f"tested with transformers {OLDEST} to {NEWEST}, installed is {transformers.__version__}"


def _minor(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def names_of(layers: Iterable[nn.Module]) -> tuple[LayerNames, ...]:
    """The names of every layer of a decoder; see :func:`layer_names`."""
    return tuple(layer_names(layer) for layer in layers)
