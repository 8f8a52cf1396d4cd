"""What happens before and after the modules of an attached model."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from lightkv_gnn.adapters import Adapter, Encoded
from lightkv_gnn.attention.backends import form_of, why_no_mass
from lightkv_gnn.attention.masks import compressed_mask, with_log_mass
from lightkv_gnn.attention.positions import closed_up, numbered, padding_before
from lightkv_gnn.cache.compressed import CompressedMixin
from lightkv_gnn.cache.layers import cancel
from lightkv_gnn.cache.layerwise import Siblings
from lightkv_gnn.cache.states import StateLayer
from lightkv_gnn.config import LightKVConfig
from lightkv_gnn.seams import ModelCall, cache_in, names_of
from lightkv_gnn.session.call import Call
from lightkv_gnn.session.checks import (
    check_checkpointing,
    check_flash_windows,
    check_masses,
    check_same_backend,
    check_states,
    recorded_layers,
)
from lightkv_gnn.session.compiling import OutsideGraphs
from lightkv_gnn.session.encoders import Uncopied, Watched, record_of
from lightkv_gnn.session.prefill import Prefill
from lightkv_gnn.session.prompts import (
    Prompt,
    prompt_mask,
    unlabelled,
    warn_of_answers,
    warn_of_silence,
)
from lightkv_gnn.session.request import PrefillRequest, begins_anew, inspect_call, padding_of
from lightkv_gnn.stage.compressor import TokenCompressor

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

_prompts: ContextVar[tuple[tuple[Hooks, Prompt], ...]] = ContextVar("prompts", default=())


class Removable(Protocol):
    """Something that was put on a model."""

    def remove(self) -> None:
        """Takes it away."""


class Hooks:
    """The hooks of one attached model.

    A prefill with pictures is a :class:`Call`, which belongs to its thread from the model's start
    to its end.  Any other call needs nothing but the cache layers.

    Args:
        adapter: Of the model's family.
        config: What to do.
        compressor: Does it.
        finished: Is handed every call that ended well, and None for a prefill without pictures
            that did.
    """

    def __init__(
        self,
        adapter: Adapter,
        config: LightKVConfig,
        compressor: TokenCompressor,
        finished: Callable[[Call | None], None],
    ) -> None:
        self._adapter = adapter
        self._config = config
        self._compressor = compressor
        self._finished = finished
        self._running = threading.local()
        self._warned = False
        self._outside = OutsideGraphs()
        self._signature = inspect.signature(adapter.base.forward)
        self._headed = inspect.signature(adapter.model.forward)
        self._names = names_of(adapter.decoder.layers)
        self._implementation = adapter.decoder.config._attn_implementation
        self._form = form_of(self._implementation)
        self._why_no_mass = why_no_mass(self._implementation)
        self._numbered = config.positions == "reindex" and not adapter.positions_close_up

    def install(self, undo: ExitStack) -> None:
        """Registers them, and with ``undo`` how to take them away."""
        base, decoder = self._adapter.base, self._adapter.decoder
        wrap = partial(self._outside.wrap, busy=self._busy)
        before_model = self._outside.wrap(self._open, busy=_many_tokens)
        layering = wrap(self._before_layer)

        undo.callback(self._cancel)

        def keep(installed: Removable) -> None:
            undo.callback(installed.remove)

        if self._adapter.model is not base:
            reading = self._outside.wrap(self._read, busy=_many_tokens)
            forgetting = self._outside.wrap(self._forget, busy=_many_tokens)
            model = self._adapter.model
            keep(model.register_forward_pre_hook(reading, with_kwargs=True))
            keep(model.register_forward_hook(forgetting, with_kwargs=True, always_call=True))
        keep(base.register_forward_pre_hook(before_model, with_kwargs=True))
        closing = self._outside.wrap(self._close, busy=self._tells)
        keep(base.register_forward_hook(closing, with_kwargs=True, always_call=True))
        keep(decoder.register_forward_pre_hook(wrap(self._plan)))
        keep(decoder.register_forward_hook(wrap(self._restore)))
        if not all(map(self._adapter.holds_entries, range(self._adapter.layers))):
            keep(decoder.register_forward_hook(wrap(self._shut), always_call=True))
        for number, layer in enumerate(decoder.layers):
            hook = partial(layering, number)
            keep(layer.register_forward_pre_hook(hook, with_kwargs=True))
        keep(Watched(self._adapter, self._seen))
        recorded = [self._adapter.attention(layer) for layer in recorded_layers(self._config)]
        keep(Uncopied([self._adapter.model, base, decoder, *decoder.layers, *recorded]))

    def _busy(self, *args: Any, **kwargs: Any) -> bool:
        """Whether a prefill with pictures is running."""
        return self._request is not None or self._call is not None

    def _tells(self, *args: Any, **kwargs: Any) -> bool:
        """Whether the end of the call changes what is told."""
        return self._busy() or getattr(self._running, "anew", False)

    @property
    def needs_wrapper(self) -> bool:
        """Whether masks carry something for the attention function's wrapper."""
        return self._form == "block"

    @property
    def recorder(self) -> Callable[..., None]:
        """Records the attention of the layers that stages run after."""
        return self._outside.wrap(self._record, self._busy)

    def _record(self, query: Tensor, key: Tensor, scaling: float, softcap: float | None) -> None:
        if self._call is not None:
            self._call.prefill.record_attention(query, key, scaling, softcap)

    @property
    def _request(self) -> PrefillRequest | None:
        return getattr(self._running, "request", None)

    @property
    def _call(self) -> Call | None:
        return getattr(self._running, "call", None)

    def _read(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a model with a head: notes its call, before accelerate copies the pictures."""
        if not _many_tokens(module, args, kwargs):
            return
        asked = self._running.headed = ModelCall.of(self._headed, args, kwargs)
        if outputs := asked.encoded:
            self._running.records = {kind: record_of(outputs[kind]) for kind in outputs}

    def _forget(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """After a model with a head, after an exception too: its base may not have been called."""
        if _many_tokens(module, args, kwargs):
            noted = vars(self._running)
            noted.pop("headed", None)
            noted.pop("records", None)

    @contextmanager
    def prompt(self, prompt: Prompt) -> Iterator[None]:
        """In this block and thread or task, what is the prompt of calls."""
        before = _prompts.get()
        _prompts.set((*before, (self, prompt)))
        try:
            yield
        finally:
            _prompts.set(before)

    def _prompt(self, request: PrefillRequest, vision: Tensor) -> Tensor | None:
        """Tokens of a call that guide, `[batch, token]` bool; None for all."""
        prompt = next((said for hooks, said in reversed(_prompts.get()) if hooks is self), None)
        if prompt is not None:
            return prompt_mask(prompt, request.real)
        if request.labels is not None:
            mask = unlabelled(request.labels, request.real)
            self._warned = self._warned or warn_of_silence(vision, request.real, mask)
            return mask
        if request.scored and not self._warned:
            self._warned = warn_of_answers(vision, request.real)
        return None

    def _open(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the model: finds out whether the call is a prefill with pictures."""
        self._cancel()
        asked = ModelCall.of(self._signature, args, kwargs)
        noted = vars(self._running)
        records, headed = noted.pop("records", {}), noted.pop("headed", None)
        request = self._running.request = inspect_call(self._adapter, asked, records, headed)
        self._running.anew = request is None and begins_anew(asked)
        self._running.padding = padding_of(asked) if self._numbered else None

    def _cancel(self) -> None:
        """Lets go of a call that never came to its end.

        After an ``Exception`` :meth:`_close` has seen to that, but torch runs no hook after a
        ``KeyboardInterrupt``.
        """
        self._shut()
        call, self._running.call = self._call, None
        if call is not None:
            call.cancel()

    def _seen(self, encoded: Encoded) -> None:
        """After an encoder: the call that is being opened is about these pictures."""
        if self._request is not None:
            self._request.add(encoded)

    def _plan(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Before the decoder, when every picture is encoded: plans the prefill."""
        self._cancel()
        request, self._running.request = self._request, None
        if request is None:
            return
        tokens = request.tokens()
        layout = self._adapter.layout(tokens)
        if len(layout):
            check_checkpointing(self._adapter)
            vision, real, past = tokens.mask, tokens.real, request.past
            padded = padding_before(request.mask, real, past) if self._numbered else None
            parts = self._config, self._compressor, layout, vision, real, past, padded
            prefill = Prefill(*parts, self._prompt(request, vision), request.ids)
            check_states(self._adapter, prefill.planned, past)
            self._running.call = Call(self._adapter, prefill, self._form, self._names)

    def _before_layer(
        self, number: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Arguments | None:
        """Before a decoder layer: runs a stage, and hands the layer what fits fewer tokens."""
        names = self._names[number]
        given = names.of(args, kwargs)
        hidden_states: Tensor = given.pop(names.hidden_states)
        cache = given.get(names.cache)
        if number == 0 and cache is not None:
            if self._why_no_mass is not None:
                check_masses(cache, self._why_no_mass)
            if self._call is None:
                self._check_step(cache, hidden_states.shape[1])
        if cache is not None and number < len(cache.layers):
            self._let_in(cache.layers[number])
        if (call := self._call) is not None:
            check_same_backend(self._adapter, self._implementation)
            hidden_states = call.enter_layer(number, hidden_states, cache, given)
            if call.prefill.source is not None:
                return (hidden_states,), call.layer_arguments(number, hidden_states, cache, given)
        if cache is None or number >= len(cache.layers):
            return None
        layer = cache.layers[number]
        if not isinstance(layer, CompressedMixin):
            return None
        if not layer.compressed:
            layer.allow_update()
            return None
        padding: Tensor | None = getattr(self._running, "padding", None)
        if padding is not None:
            padding = padding.to(hidden_states.device)
        layer.allow_update(None if padding is None else pad(padding.sum(1, keepdim=True), (0, 1)))
        return (hidden_states,), self._continued(number, layer, hidden_states, given, padding)

    def _check_step(self, cache: Any, queries: int) -> None:
        """Before the first layer of a call that merges nothing: was anything merged before?"""
        layers = enumerate(cache.layers)
        merged = [n for n, x in layers if isinstance(x, CompressedMixin) and x.compressed]
        if not merged:
            return
        check_same_backend(self._adapter, self._implementation)
        if self._form == "padding":
            check_flash_windows(self._adapter, merged, cache.get_seq_length() + queries)

    def _let_in(self, layer: Any) -> None:
        """Lets a layer that holds a state go on from it, until the decoder ends."""
        if isinstance(layer, StateLayer) and layer.siblings is not None:
            self._running.opened, layer.siblings.open = layer.siblings, True

    def _shut(self, *args: Any) -> None:
        """After the decoder, after an exception too: states take in no more."""
        opened: Siblings | None = getattr(self._running, "opened", None)
        if opened is not None:
            self._running.opened, opened.open = None, False

    def _continued(
        self,
        number: int,
        layer: CompressedMixin,
        hidden_states: Tensor,
        kwargs: dict[str, Any],
        padding: Tensor | None,
    ) -> dict[str, Any]:
        """Arguments of a layer in which nothing is merged now, but something was before."""
        kwargs, names = dict(kwargs), self._names[number]
        batch, queries = hidden_states.shape[:2]
        mask, device = kwargs.get(names.mask), hidden_states.device
        if mask is None and not layer.ragged:
            if layer.log_mass is not None:
                kwargs[names.mask] = self._mass_alone(layer, hidden_states)
        else:
            columns, hidden = layer.columns(queries, batch, device)
            kwargs[names.mask] = compressed_mask(
                mask,
                None,
                columns,
                ragged=hidden,
                form=self._form,
                log_mass=layer.log_masses(queries, batch, device),
                dtype=hidden_states.dtype,
            )
        if layer.merged is not None:
            kwargs.update(self._closed_up(number, layer, hidden_states, kwargs, padding))
        return kwargs

    def _mass_alone(self, layer: CompressedMixin, hidden_states: Tensor) -> Tensor:
        """The mask of a step that hides nothing; made once for layers of the same masses."""
        batch, queries = hidden_states.shape[:2]
        device, dtype = hidden_states.device, hidden_states.dtype
        key = *layer.span(queries), batch, device, dtype
        known: tuple[Any, ...] = getattr(self._running, "mass_alone", (None, None))
        if known[0] is layer.log_mass and known[1] == key:
            mask: Tensor = known[2]
            return mask
        log_mass = layer.log_masses(queries, batch, device)
        assert log_mass is not None
        mask = with_log_mass(None, log_mass, dtype)
        if not torch.compiler.is_compiling():
            self._running.mass_alone = layer.log_mass, key, mask
        return mask

    def _closed_up(
        self,
        number: int,
        layer: CompressedMixin,
        hidden_states: Tensor,
        kwargs: dict[str, Any],
        padding: Tensor | None,
    ) -> dict[str, Any]:
        """Positions of a layer in which nothing is merged now, but something was before."""
        assert layer.merged is not None
        rotary, merged = self._adapter.rotary(number), layer.merged.to(hidden_states.device)
        names = self._names[number]
        given = kwargs.get(names.tables)
        if not self._numbered:
            positions = kwargs[names.positions].to(merged.device) - merged
            tables = None if given is None else closed_up(rotary, hidden_states, positions)
            return {names.tables: tables, names.positions: positions}
        batch, queries = hidden_states.shape[:2]
        seen = layer.get_seq_length()  # of a static layer a tensor, beside its keys
        seen = seen.to(merged.device) if isinstance(seen, Tensor) else seen
        places = torch.arange(queries, device=merged.device) + seen
        missing = merged[:, :1] if padding is None else merged[:, :1] + padding.cumsum(1)
        places = places.expand(batch, -1)
        tables = numbered(rotary, hidden_states, places, missing, merged[:, 1:], given)
        return {names.tables: tables}

    def _restore(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """After the decoder: gives the hidden states the prompt's full length again."""
        call = self._call
        if call is None or call.prefill.source is None:
            return None
        if isinstance(output, tuple):
            return (call.prefill.restored(output[0]), *output[1:])
        output.last_hidden_state = call.prefill.restored(output.last_hidden_state)
        return output

    def _close(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """After the model, after an exception too (then without an output)."""
        call, self._running.call = self._call, None
        anew, self._running.anew = getattr(self._running, "anew", False), False
        self._running.request = None
        if output is None:
            cancel(ModelCall.of(self._signature, args, kwargs).cache)
        elif call is not None:
            call.end(cache_in(output))
            self._finished(call)
        elif anew:
            self._finished(None)


def _many_tokens(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any = None
) -> bool:
    """Whether a call of the model is more than a step."""
    given = [*args, ModelCall(kwargs).tokens]
    return any(isinstance(x, Tensor) and x.ndim > 1 and x.shape[1] > 1 for x in given)
