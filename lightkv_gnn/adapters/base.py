"""What the session must know of a model family, and the registry of families."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from lightkv_gnn.errors import UnsupportedModelError
from lightkv_gnn.ledger import DecoderSize
from lightkv_graphs import Grid, TokenLayout


class Adapter(ABC):
    """One family of models: where its vision tokens are and what grid they lie on.

    Args:
        model: The model, as loaded by transformers.
    """

    model_type: ClassVar[str] = ""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    @property
    def base(self) -> Any:
        """The module that receives ``input_ids`` and image features."""
        return self.model.base_model

    @property
    def decoder(self) -> Any:
        """The text decoder, with ``layers``, ``rotary_emb`` and ``config``."""
        return self.model.get_decoder()

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return len(self.decoder.layers)

    def attention(self, layer: int) -> nn.Module:
        """The attention module of a decoder layer."""
        attention: nn.Module = self.decoder.layers[layer].self_attn
        return attention

    def decoder_size(self, bytes_per_value: int) -> DecoderSize:
        """What the costs of the decoder's layers depend on."""
        config, layer = self.decoder.config, self.decoder.layers[0]
        heads = config.num_attention_heads
        head = getattr(config, "head_dim", None) or config.hidden_size // heads
        return DecoderSize(
            parameters=sum(weight.numel() for weight in layer.parameters()),
            attention_channels=heads * head,
            kv_channels=config.num_key_value_heads * head,
            bytes_per_value=bytes_per_value,
        )

    @property
    def placeholder(self) -> int:
        """Token id that stands for one vision token in ``input_ids``."""
        return int(self.model.config.image_token_id)

    def vision_mask(self, input_ids: Tensor) -> Tensor:
        """True where a vision token lies, `[batch, token]`."""
        return input_ids == self.placeholder

    @property
    def grid(self) -> Grid | None:
        """(rows, columns) of every image where that never changes, else None."""
        return None

    @abstractmethod
    def layout(self, counts: Sequence[int]) -> TokenLayout:
        """The layout of a batch whose samples hold ``counts`` vision tokens, in sequence order.

        Raises:
            ImageTokensError: A sample's tokens do not make up whole images.
        """


_ADAPTERS: dict[str, type[Adapter]] = {}
_A = TypeVar("_A", bound=type[Adapter])


def register_adapter(model_type: str) -> Callable[[_A], _A]:
    """Class decorator: serves models whose ``config.model_type`` is ``model_type``.

    Raises:
        ValueError: That family has an adapter already.
    """

    def register(adapter: _A) -> _A:
        if model_type in _ADAPTERS:
            raise ValueError(
                f"{model_type!r} is served by {_ADAPTERS[model_type].__name__} already: "
                "subclass that, or register under another model type"
            )
        adapter.model_type = model_type
        _ADAPTERS[model_type] = adapter
        return adapter

    return register


def adapter_for(model: PreTrainedModel) -> Adapter:
    """The adapter of a model's family.

    Raises:
        UnsupportedModelError: No adapter is registered for it.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type in _ADAPTERS:
        return _ADAPTERS[model_type](model)
    raise UnsupportedModelError(
        f"no adapter for {type(model).__name__} with model type {model_type!r}; there are adapters "
        f"for {sorted(_ADAPTERS)}. Register one:\n\n"
        f"    @lightkv_gnn.register_adapter({str(model_type)!r})\n"
        "    class MyAdapter(lightkv_gnn.Adapter):\n"
        "        def layout(self, counts):\n"
        "            return lightkv_gnn.graphs.TokenLayout.from_grids(\n"
        "                [[(24, 24)] * (count // 576) for count in counts]\n"
        "            )"
    )
