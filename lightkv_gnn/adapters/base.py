"""What the session must know of a model family, and the registry of families."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from lightkv_gnn.adapters.counting import weights_by_kind
from lightkv_gnn.adapters.encoded import Encoded, VisionTokens, tiles_of_samples
from lightkv_gnn.costs.ledger import DecoderSize
from lightkv_gnn.errors import ImageTokensError, UnsupportedModelError
from lightkv_gnn.seams import STATES, TOKEN_AXES, last_added, unscaled_places
from lightkv_graphs import Grid, Tile, TokenLayout

Process = Callable[..., Mapping[str, Any]]
"""Runs an image processor on a picture, with options by name: its output, by name."""

KINDS = ("image", "video")
"""Kinds of pictures; transformers' names of their encoders and placeholders are made of them."""


class Adapter(ABC):
    """One family of models: where its vision tokens are and what grid they lie on.

    Args:
        model: The model, as loaded by transformers.

    Raises:
        UnsupportedModelError: The text model is none of ``text_models``.
    """

    text_models: ClassVar[tuple[str, ...]] = ()
    """Text models known to work with the session; any if empty."""

    placed: ClassVar[bool] = True
    """Whether vision tokens have a place in the picture; without one, windows are refused."""

    token_axes: ClassVar[Mapping[str, int | None]] = TOKEN_AXES
    """Of tensors that decoder layers are given beside the usual, by name: the axis that counts
    tokens, after that of samples; None where a shorter layer takes all of it."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        text = model.config.get_text_config().model_type
        if self.text_models and text not in self.text_models:
            raise UnsupportedModelError(
                f"{type(model).__name__} on a {text!r} text model is not supported: expected one "
                f'of {self.text_models}, or adapter="auto", which lets in others whose layers take '
                "what compression hands them"
            )

    @property
    def base(self) -> Any:
        """The module that receives ``input_ids`` and encodes pictures."""
        return self.model.base_model

    @cached_property
    def decoder(self) -> Any:
        """The text decoder, with ``layers``, ``rotary_emb`` and ``config``."""
        return self.model.get_decoder()

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return len(self.decoder.layers)

    @property
    def legal_layers(self) -> Sequence[int]:
        """Layers that a stage may run after: all but the last.

        Where layers of full attention alternate with others, only those: the prompt may lie outside
        a sliding window, and a layer that holds a state has no keys that could guide.  Where visual
        features are added between the first layers, only layers after which none are.
        """
        kinds = getattr(self.decoder.config, "layer_types", None) or []
        first = max(last_added(self.model.config) - 1, 0)
        if len(set(kinds)) < 2 and not set(kinds) & set(STATES):
            return range(first, self.layers - 1)
        return [n for n, kind in enumerate(kinds[:-1]) if n >= first and kind == "full_attention"]

    def holds_entries(self, layer: int) -> bool:
        """Whether a decoder layer caches keys and values, and not a state of fixed size."""
        return self._kinds is None or self._kinds[layer] not in STATES

    @cached_property
    def _kinds(self) -> Sequence[str] | None:
        """Kinds of the decoder's layers, looked up once: every step asks for them."""
        kinds: Sequence[str] | None = getattr(self.decoder.config, "layer_types", None)
        return kinds

    def sliding_window(self, layer: int) -> int | None:
        """Tokens that a decoder layer looks back over, its own included; None for all."""
        config = self.decoder.config
        kinds = getattr(config, "layer_types", None)
        kind = "sliding_attention" if kinds is None else kinds[layer]
        named = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
        window: int | None = getattr(config, named[kind], None) if kind in named else None
        return window

    def attention(self, layer: int) -> nn.Module:
        """The attention module of a decoder layer."""
        attention: nn.Module = self.decoder.layers[layer].self_attn
        return attention

    def rotary(self, layer: int) -> Callable[..., Any]:
        """Makes a decoder layer's rotary tables: ``rotary(hidden_states, position_ids=...)``."""
        decoder = self.decoder
        if self._rotary_takes_kind:
            return partial(decoder.rotary_emb, layer_type=decoder.config.layer_types[layer])
        rotary: Callable[..., Any] = decoder.rotary_emb
        return rotary

    @cached_property
    def _rotary_takes_kind(self) -> bool:
        """Whether kinds of layers rotate differently; asked in every step, so looked up once."""
        return "layer_type" in inspect.signature(self.decoder.rotary_emb.forward).parameters

    @property
    def positions_close_up(self) -> bool:
        """Whether positions count tokens, one by one, and so close up where some are gone.

        With M-RoPE, text after a picture counts from its rows and columns.  ``"reindex"`` then
        numbers a compressed layer's entries instead, all three coordinates alike.
        """
        rope = getattr(self.decoder.config, "rope_parameters", None) or {}
        kinds = [kind for kind in rope.values() if isinstance(kind, Mapping)]  # of layers
        return not any("mrope_section" in kind for kind in (rope, *kinds))

    def decoder_size(self, bytes_per_value: int, layer: int = 0) -> DecoderSize:
        """What the costs of a decoder layer depend on."""
        return replace(self._decoder_sizes[layer], bytes_per_value=bytes_per_value)

    @cached_property
    def _decoder_sizes(self) -> Sequence[DecoderSize]:
        """Of values of one byte, looked up once: configurations answer slowly."""
        return [self._decoder_size(layer) for layer in range(self.layers)]

    def _decoder_size(self, layer: int) -> DecoderSize:
        text, vision = self._weights[layer]
        size = DecoderSize(text, 0, 0, 1, vision_parameters=vision)
        if not self.holds_entries(layer):
            return size
        config = self.layer_config(layer)
        heads = config.num_attention_heads
        if (latent := getattr(config, "kv_lora_rank", None)) is not None:
            rotated = config.qk_rope_head_dim
            both = config.qk_nope_head_dim + rotated + config.v_head_dim
            attention = heads * both // 2
            return replace(
                size, attention_channels=attention, kv_channels=latent, value_channels=rotated
            )
        head = getattr(config, "head_dim", None) or config.hidden_size // heads
        return replace(
            size,
            attention_channels=heads * head,
            kv_channels=config.num_key_value_heads * head,
        )

    def layer_config(self, layer: int) -> Any:
        """The decoder's configuration as one layer has it, where heads differ."""
        return self._layer_configs[layer]

    @cached_property
    def _layer_configs(self) -> Sequence[Any]:
        config = self.decoder.config
        return getattr(config, "per_layer_config", None) or [config] * self.layers

    @cached_property
    def _weights(self) -> tuple[tuple[int, int], ...]:
        """Of each decoder layer, weights that a token passes through: of text, and of pictures.

        Asked in every prefill.
        """
        config = self.decoder.config
        return tuple(weights_by_kind(layer, config) for layer in self.decoder.layers)

    @property
    def longest(self) -> int | None:
        """Tokens of a prefill, and before it, that shorter layers are right for; None for any."""
        return unscaled_places(self.decoder.config)

    @property
    def encoders(self) -> Mapping[str, str]:
        """Of each kind of pictures, the method of :attr:`base` that encodes them."""
        names = {kind: f"get_{kind}_features" for kind in KINDS}
        return {kind: name for kind, name in names.items() if hasattr(self.base, name)}

    @property
    def placeholders(self) -> Mapping[str, int]:
        """Of each kind of pictures, the token id that stands for one vision token."""
        ids = {kind: getattr(self.model.config, f"{kind}_token_id", None) for kind in self.encoders}
        return {kind: int(token) for kind, token in ids.items() if token is not None}

    @property
    def pixels(self) -> Mapping[str, str]:
        """Of each kind of pictures, the argument of the model that they come in."""
        return {"image": "pixel_values", "video": "pixel_values_videos"}

    @property
    def grid(self) -> Grid | None:
        """(rows, columns) of a tile that every image has, where there is one, else None.

        Stages are checked against it, and chosen for it.  Other tiles may be smaller, such as
        frames of a video; some of their windows are then empty.
        """
        return None

    def lengths(self, kind: str, output: Any) -> tuple[int, ...]:
        """Vision tokens of each picture in the output of an encoder."""
        pooled = output.pooler_output if hasattr(output, "pooler_output") else output[1]
        return tuple(picture.shape[:-1].numel() for picture in pooled)

    def expected(self, size: Grid, images: int, process: Process) -> Encoded:
        """A picture of (height, width) pixels as the model would encode it; nothing is encoded.

        Args:
            size: Of the picture, before any processor has seen it.
            images: Pictures of the sample, this one included.
            process: Makes the image processor's output for the picture; asked only by families
                whose configuration does not tell all.

        Raises:
            UnsupportedInputError: The processor is needed, and is not there.
            UnsupportedModelError: The adapter does not tell.
        """
        if self.grid is None:
            raise UnsupportedModelError(
                f"{type(self).__name__} does not tell how many tokens a picture will have: give it "
                "a method expected(size, images, process)"
            )
        return Encoded("image", {}, (self.grid[0] * self.grid[1],))

    @abstractmethod
    def tiles(self, encoded: Encoded) -> Sequence[Sequence[Tile]]:
        """The tiles of each picture, in the order of its tokens.

        Raises:
            UnsupportedInputError: The call does not tell the pictures' sizes.
        """

    def seen(self, encoded: Encoded, pixels: Tensor) -> Sequence[Sequence[Tensor]]:
        """What the model saw of each picture; only drawing needs it.

        Args:
            encoded: The pictures.
            pixels: What they were encoded from, as the processor returned it.

        Returns:
            For each tile of :meth:`tiles` the pixels that its grid covers from edge to edge,
            `[channel, height, width]`.

        Raises:
            UnsupportedModelError: The adapter does not tell.
        """
        raise UnsupportedModelError(
            f"{type(self).__name__} does not tell which pixels its tiles cover: give it a method "
            "seen(encoded, pixels), or draw over pictures of your own"
        )

    def layout(self, tokens: VisionTokens) -> TokenLayout:
        """The layout of a call's vision tokens.

        Raises:
            ImageTokensError: A sample's placeholders do not make up whole pictures.
            UnsupportedInputError: The call does not tell the pictures' sizes.
        """
        tiles = {}
        for kind, encoded in tokens.encoded.items():
            tiles[kind] = self.tiles(encoded)
            made = tuple(sum(tile.tokens for tile in own) for own in tiles[kind])
            if made != encoded.lengths:
                raise ImageTokensError(
                    f"{type(self).__name__}.tiles() lays out {kind}s of {made} tokens, but the "
                    f"model encoded {encoded.lengths}: the adapter is not right for this model"
                )
        return TokenLayout.from_tiles(tiles_of_samples(tokens, tiles))


_ADAPTERS: dict[str, type[Adapter]] = {}
_A = TypeVar("_A", bound=type[Adapter])


class SharedPlaceholder(Adapter):
    """Frames of a video have the placeholder of images; a call has one kind or the other."""

    @property
    def placeholders(self) -> Mapping[str, int]:
        """The same for both kinds."""
        return dict.fromkeys(self.encoders, int(self.model.config.image_token_id))


def register_adapter(*model_types: str) -> Callable[[_A], _A]:
    """Class decorator: serves models whose ``config.model_type`` is one of ``model_types``.

    Raises:
        ValueError: A family has an adapter already, and this is no subclass of it.
    """

    def register(adapter: _A) -> _A:
        for model_type in model_types:
            if not issubclass(adapter, known := _ADAPTERS.get(model_type, Adapter)):
                raise ValueError(
                    f"{model_type!r} is served by {known.__name__} already: a subclass of that may "
                    "take its place"
                )
        _ADAPTERS.update(dict.fromkeys(model_types, adapter))
        return adapter

    return register


def families() -> tuple[str, ...]:
    """Every ``config.model_type`` that has an adapter."""
    return tuple(_ADAPTERS)
