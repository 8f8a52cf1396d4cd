"""What happens before and after the modules of an attached model."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightkv_gnn.adapters import Adapter
from lightkv_gnn.backends import mask_form
from lightkv_gnn.cache import CompressedMixin, check_cache
from lightkv_gnn.call import Call
from lightkv_gnn.checks import check_flash_window, check_same_backend
from lightkv_gnn.compiling import OutsideGraphs
from lightkv_gnn.compressor import TokenCompressor
from lightkv_gnn.config import LightKVConfig
from lightkv_gnn.masks import compressed_mask, real_tokens
from lightkv_gnn.positions import closed_up
from lightkv_gnn.prefill import Prefill

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Hooks:
    """The hooks of one attached model.

    A prefill with images is a :class:`Call`, which belongs to its thread from the model's start
    to its end.  Any other call needs nothing but the cache layers.

    Args:
        adapter: Of the model's family.
        config: What to do.
        compressor: Does it.
        finished: Is handed every call that ended well.
    """

    def __init__(
        self,
        adapter: Adapter,
        config: LightKVConfig,
        compressor: TokenCompressor,
        finished: Callable[[Call], None],
    ) -> None:
        self._adapter = adapter
        self._config = config
        self._compressor = compressor
        self._finished = finished
        self._running = threading.local()
        self._outside = OutsideGraphs()

    def install(self) -> list[torch.utils.hooks.RemovableHandle]:
        """Registers them; returns what removes them."""
        base, decoder = self._adapter.base, self._adapter.decoder
        self._signature = inspect.signature(base.forward)
        self._implementation = decoder.config._attn_implementation
        self._form = mask_form(self._implementation) or "dense"
        wrap = self._outside.wrap
        opening, layering = wrap(self._open, _many_tokens), wrap(self._before_layer, self._busy)
        closing, restoring = wrap(self._close, self._busy), wrap(self._restore, self._busy)
        hooks = [
            base.register_forward_pre_hook(opening, with_kwargs=True),
            base.register_forward_hook(closing, always_call=True),
            decoder.register_forward_hook(restoring),
        ]
        for number, layer in enumerate(decoder.layers):
            hook = partial(layering, number)
            hooks.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        return hooks

    def _busy(self, *args: Any, **kwargs: Any) -> bool:
        """Whether a prefill with images is running."""
        return self._call is not None

    @property
    def listener(self) -> Callable[..., None]:
        """Hears the attention of the layers that stages run after."""
        return self._outside.wrap(self._listen, self._busy)

    def _listen(self, query: Tensor, key: Tensor, scaling: float) -> None:
        if self._call is not None:
            self._call.prefill.listen(query, key, scaling)

    @property
    def _call(self) -> Call | None:
        return getattr(self._running, "call", None)

    def _open(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the model: plans the prefill, if the call is one with images."""
        self._running.call = None
        given = self._signature.bind_partial(*args, **kwargs).arguments
        given = {**given, **given.get("kwargs", {})}
        vision = self._vision_mask(given)
        if vision is None or vision.shape[1] == 1:
            return
        vision = vision.cpu()
        if not bool(vision.any()):
            return
        cache, past = given.get("past_key_values"), 0
        if cache is not None:
            for number in range(self._adapter.layers):
                check_cache(cache, number)
            past = int(cache.get_seq_length())
        batch, length = vision.shape
        real = real_tokens(given.get("attention_mask"), batch, length, past)
        vision &= real
        layout = self._adapter.layout(vision.sum(1).tolist())
        prefill = Prefill(self._config, self._compressor, layout, vision, real, past)
        self._running.call = Call(self._adapter, prefill)

    def _vision_mask(self, given: dict[str, Any]) -> Tensor | None:
        """Where vision tokens lie, `[batch, token]`; None where there can be none.

        Without pictures, a placeholder among the token ids is a token like any other.
        """
        encoded = (given.get("mm_encoder_outputs") or {}).values()
        pictures = given.get("pixel_values") is not None or any(x is not None for x in encoded)
        if given.get("input_ids") is not None:
            return self._adapter.vision_mask(given["input_ids"]) if pictures else None
        embeds = given.get("inputs_embeds")
        if embeds is None or embeds.shape[1] == 1:
            return None
        if not pictures:
            warnings.warn(
                "lightkv_gnn: inputs_embeds without pixel_values do not tell where the vision "
                "tokens are, so this prefill is not compressed; pass input_ids",
                stacklevel=2,
            )
            return None
        embedding = self._adapter.model.get_input_embeddings()
        own = embedding(torch.tensor(self._adapter.placeholder, device=embeds.device))
        return (embeds == own).all(-1)

    def _before_layer(
        self, number: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Arguments | None:
        """Before a decoder layer: runs a stage, and hands the layer what fits fewer tokens."""
        hidden_states: Tensor = args[0] if args else kwargs["hidden_states"]
        cache = kwargs.get("past_key_values")
        call = self._call
        if call is not None:
            check_same_backend(self._adapter, self._implementation)
            hidden_states = call.reach(number, hidden_states, cache, kwargs)
            if call.prefill.source is not None:
                kwargs = call.fitted(number, hidden_states, cache, kwargs)
                if args:
                    return (hidden_states, *args[1:]), kwargs
                return args, {**kwargs, "hidden_states": hidden_states}
        if cache is None or number >= len(cache.layers):
            return None
        layer = cache.layers[number]
        if not isinstance(layer, CompressedMixin) or not layer.compressed:
            return None
        check_same_backend(self._adapter, self._implementation)
        if self._form == "padding":
            length = layer.get_seq_length() + hidden_states.shape[1]
            check_flash_window(self._adapter, number, length)
        return args, self._continued(layer, hidden_states, kwargs)

    def _continued(
        self, layer: CompressedMixin, hidden_states: Tensor, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Arguments of a layer in which nothing is merged now, but something was before."""
        kwargs = dict(kwargs)
        batch, queries = hidden_states.shape[:2]
        layer.admit(queries)
        mask = kwargs.get("attention_mask")
        if mask is not None or layer.ragged:
            columns = layer.index_of(layer.entries() + queries, batch, hidden_states.device)
            kwargs["attention_mask"] = compressed_mask(
                mask, None, columns, ragged=layer.ragged, form=self._form
            )
        if layer.merged is not None:
            kwargs["position_embeddings"] = closed_up(
                self._adapter.decoder.rotary_emb,
                hidden_states,
                kwargs["position_ids"],
                layer.merged.to(hidden_states.device),
            )
        return kwargs

    def _restore(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """After the decoder: gives the hidden states the prompt's full length again."""
        call = self._call
        if call is None or call.prefill.source is None:
            return None
        if isinstance(output, tuple):
            return (call.prefill.restored(output[0]), *output[1:])
        output.last_hidden_state = call.prefill.restored(output.last_hidden_state)
        return output

    def _close(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """After the model, after an exception too (then without an output)."""
        call, self._running.call = self._call, None
        if call is not None and output is not None:
            call.end()
            self._finished(call)


def _many_tokens(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of the model is more than a step."""
    given = [*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds")]
    return any(isinstance(x, Tensor) and x.ndim > 1 and x.shape[1] > 1 for x in given)
