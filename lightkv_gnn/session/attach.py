"""Switching compression on and off: hooks on a stock model, nothing else."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lightkv_gnn.adapters import Adapter, AdapterChoice, adapter_for
from lightkv_gnn.attention import capture
from lightkv_gnn.config import LightKVConfig
from lightkv_gnn.session.call import Call
from lightkv_gnn.session.checks import (
    check_adapter,
    check_backend,
    check_schedule,
    check_seams,
    recorded_layers,
)
from lightkv_gnn.session.compiling import uncompiled
from lightkv_gnn.session.hooks import Hooks
from lightkv_gnn.session.placement import layer_devices, ranks_of
from lightkv_gnn.session.prompts import Prompt
from lightkv_gnn.session.results import Results, Watch
from lightkv_gnn.stage.compressor import TokenCompressor

_watches: ContextVar[tuple[tuple[Handle, Watch], ...]] = ContextVar("watches", default=())
_attached: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Handle]] = weakref.WeakKeyDictionary()
_attaching = threading.Lock()


def attach(
    model: PreTrainedModel,
    config: LightKVConfig,
    *,
    adapter: AdapterChoice = None,
    compressor: TokenCompressor | None = None,
    processor: Any = None,
) -> Handle:
    """Makes a model compress its vision tokens during prefill.

    Use it as a context manager around prefill *and* decoding, or call ``remove()``::

        with attach(model, config) as handle:
            tokens = model.generate(**inputs)
        print(handle.ledger)

    The model's files, classes and weights stay as they are; leaving the context, by an exception
    too, takes every hook away.  After a call that failed the context goes on; a cache of one's own
    that such a call had begun to fill must be emptied, ``cache.reset()``, or replaced.

    Several threads may run an attached model at the same time; the handle tells of the prefill that
    ended last, and :meth:`Handle.watch` of each thread's own.  Do not attach or detach while
    another thread runs the model.  The model may be spread over devices or processes; attach once
    it is where it shall be.

    Args:
        model: A transformers model whose family has an adapter.
        config: What to do.
        adapter: In place of the family's: "auto" to have one find out by itself what it needs, or
            say why it cannot; see :func:`adapter_for`.
        compressor: Runs the stages in place of ``TokenCompressor(config.message, config.matcher,
            config.scatter)``: one of a class of your own, to change or to watch what it does.
        processor: The model's, or its tokenizer: traces then carry the prompts' text.

    Raises:
        TypeError: ``config``, ``model``, ``adapter``, ``compressor`` or ``processor`` is something
            else.
        UnsupportedModelError: No adapter for this family, or not for this variant of it.
        ScheduleError: Layers or windows that the model does not have.
        UnsupportedInputError: An attention backend or a kind of rotary positions that is not
            supported, or heads that tensor parallelism cannot share out evenly.
        RuntimeError: The model is attached already.
        ValueError: ``scatter="triton"`` and a model that is not on a GPU, or an adapter by a name
            that is not known, or of another model.
        ImportError: The configuration asks for torch-scatter or Triton, which is not installed.
    """
    if not isinstance(config, LightKVConfig):
        raise TypeError(f"config is {config!r}: expected a LightKVConfig")
    if compressor is None:
        compressor = TokenCompressor(config.message, config.matcher, config.scatter)
    elif not isinstance(compressor, TokenCompressor):
        raise TypeError(f"compressor is {compressor!r}: expected a TokenCompressor")
    tokenizer = getattr(processor, "tokenizer", processor)
    if tokenizer is not None and not callable(getattr(tokenizer, "decode", None)):
        raise TypeError(f"processor is {processor!r}: expected the model's processor or tokenizer")
    model = uncompiled(model)
    if isinstance(getattr(model, "module", None), PreTrainedModel):
        raise TypeError(
            f"model is a {type(model).__name__} around a model: expected the transformers model "
            "inside it, model.module; the wrapper may be called as before"
        )
    chosen = adapter_for(model, adapter)
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"model is a {type(model).__name__} around a model, whose calls pass by the hooks: "
            "expected the transformers model inside it, such as get_base_model() of a PEFT model"
        )
    with _attaching:
        if chosen.base in _attached:
            raise RuntimeError(
                "this model is attached already: leave that context, remove() its handle, or call "
                "lightkv_gnn.detach(model)"
            )
        check_adapter(chosen)
        check_schedule(chosen, config)
        check_seams(chosen, config)
        check_backend(chosen, config)
        for device in layer_devices(chosen):
            compressor.scatter.check_device(device)
        compressor.ranks = ranks_of(chosen)
        return Handle(chosen, config, compressor, tokenizer)


def detach(model: PreTrainedModel) -> None:
    """Takes every hook away, as the handle's ``remove()`` does; for a handle that was dropped.

    Args:
        model: As it was given to :func:`attach`; nothing is done to one that is not attached.

    Raises:
        TypeError: ``model`` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}: expected what attach() was given")
    for module in uncompiled(model).modules():
        reference = _attached.get(module)
        handle = None if reference is None else reference()
        if handle is not None:
            handle.remove()


class Handle(Results):
    """Compression of one model, switched on; made by :func:`attach`.

    What it tells is about the last prefill, of whatever thread; it tells nothing if that had no
    pictures.  Steps and later turns without pictures change nothing, as their cache still holds
    what was merged before.  :meth:`watch` tells of the calls of one block and thread.
    """

    def __init__(
        self,
        adapter: Adapter,
        config: LightKVConfig,
        compressor: TokenCompressor,
        tokenizer: Any = None,
    ) -> None:
        self.config = config
        self._adapter = adapter
        self._compressor = compressor
        super().__init__("no prefill with pictures has run in this context", tokenizer)
        self._hooks = Hooks(adapter, config, compressor, self._remember)
        self._installed: ExitStack | None = self._install()

    def _install(self) -> ExitStack:
        """Puts everything in place, or on an error nothing; the result takes it away again."""
        config, adapter = self.config, self._adapter
        recorded = [adapter.attention(layer) for layer in recorded_layers(config)]
        with ExitStack() as undo:
            hooks = self._hooks
            hooks.install(undo)
            if recorded or hooks.needs_wrapper:
                backend = adapter.decoder.config._attn_implementation
                capture.install(backend)
                # At the latest when an attached model is garbage: the registry outlives it.
                undo.callback(weakref.finalize(self, capture.uninstall, backend))
            for attention in recorded:
                capture.start(attention, hooks.recorder)
                undo.callback(capture.stop, attention)
            _attached[adapter.base] = weakref.ref(self)
            undo.callback(_attached.pop, adapter.base, None)
            return undo.pop_all()

    def _remember(self, call: Call | None) -> None:
        self._tell_of(call)
        for handle, watch in _watches.get():
            if handle is self:
                watch._tell_of(call)

    @contextmanager
    def watch(self) -> Iterator[Watch]:
        """Tells of the calls made in this block and thread, whatever others do meanwhile.

        ::

            with handle.watch() as call:
                tokens = model.generate(**inputs)
            print(call.ledger)

        An asynchronous task counts as a thread, with those that ``asyncio.to_thread`` begins.
        """
        watch, before = Watch(self._tokenizer), _watches.get()
        _watches.set((*before, (self, watch)))
        try:
            yield watch
        finally:
            _watches.set(before)

    def prompt(self, prompt: Prompt) -> AbstractContextManager[None]:
        """Says what of a call is the prompt: in this block and thread its text alone guides.

        Scores of an answer, in one call with its prompt, are then those of generating it.  Not
        needed where ``labels`` are given: what is not learnt, -100, is the prompt.  An asynchronous
        task counts as a thread, with those that ``asyncio.to_thread`` begins.

        Args:
            prompt: Tokens of each sample's prompt, with the placeholders of its pictures and
                without padding; or a mask, `[batch, token]` bool.

        Returns:
            A context.  A call in it raises UnsupportedInputError for a prompt that does not fit;
            beams are samples of their own.

        Raises:
            TypeError: It is None.
        """
        if prompt is None:
            raise TypeError("prompt is None: expected tokens of each sample's prompt, or a mask")
        return self._hooks.prompt(prompt)

    def __repr__(self) -> str:
        state = "removed" if self._installed is None else "attached"
        told = "nothing to tell yet" if self._call is None else repr(self.trace)
        return f"Handle({type(self._adapter.model).__name__}, {state}; {told})"

    def remove(self) -> None:
        """Takes every hook away; the model is as it was before.  More calls do nothing."""
        if self._installed is not None:
            self._installed.close()
        self._installed = None

    def __enter__(self) -> Handle:
        if self._installed is None:
            raise RuntimeError("this handle was removed: call attach(model, config) again")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()
