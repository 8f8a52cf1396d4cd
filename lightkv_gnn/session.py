"""Switching compression on and off: hooks on a stock model, nothing else."""

from __future__ import annotations

import inspect
import threading
import warnings
import weakref
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import HeteroData
from transformers import PreTrainedModel

from lightkv_gnn import capture
from lightkv_gnn.adapters import Adapter, adapter_for
from lightkv_gnn.cache import CompressedMixin, Expected, check_cache, compressed_layer
from lightkv_gnn.compressor import TokenCompressor
from lightkv_gnn.config import LightKVConfig
from lightkv_gnn.errors import ScheduleError, UnsupportedInputError
from lightkv_gnn.ledger import DecoderSize, LayerRow, Ledger
from lightkv_gnn.masks import compressed_mask, real_tokens
from lightkv_gnn.positions import closed_up, positions_of, rotary_rows
from lightkv_gnn.prefill import Prefill
from lightkv_graphs import MergeTrace, part_of

BACKENDS = ("eager", "sdpa")
"""Attention implementations whose masks compression can translate."""

_attached: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def attach(model: PreTrainedModel, config: LightKVConfig) -> Handle:
    """Makes a model compress its vision tokens during prefill.

    Use it as a context manager around prefill *and* decoding, or call ``remove()``::

        with attach(model, config) as handle:
            tokens = model.generate(**inputs)
        print(handle.ledger)

    The model's files, classes and weights stay as they are; leaving the context, by an exception
    too, takes every hook away.  Do not attach or detach while another thread runs the model.

    Args:
        model: A transformers model whose family has an adapter.
        config: What to do.

    Raises:
        UnsupportedModelError: No adapter for this family, or not for this variant of it.
        ScheduleError: Layers or windows that the model does not have.
        UnsupportedInputError: An attention backend or a kind of rotary positions that is not
            supported.
        RuntimeError: The model is attached already.
        ImportError: The configuration asks for torch-scatter, which is not installed.
    """
    if not isinstance(config, LightKVConfig):
        raise TypeError(f"config is {config!r}: expected a LightKVConfig")
    adapter = adapter_for(model)
    if adapter.base in _attached:
        raise RuntimeError("this model is attached already: leave that context, or remove() it")
    _check_schedule(adapter, config)
    _check_backend(adapter, config)
    return Handle(adapter, config, TokenCompressor(config.message, config.matcher, config.scatter))


class Handle:
    """Compression of one model, switched on; made by :func:`attach`.

    What it tells is about the last prefill with images in it.
    """

    def __init__(
        self, adapter: Adapter, config: LightKVConfig, compressor: TokenCompressor
    ) -> None:
        self.config = config
        self._adapter = adapter
        self._compressor = compressor
        self._running = threading.local()
        self._done: Prefill | None = None
        self._ledger: Ledger | None = None
        self._after = {stage.layer for stage in config.stages if stage.ratio > 0}
        self._backend = adapter.decoder.config._attn_implementation
        self._hooks = self._install()

    def _install(self) -> list[torch.utils.hooks.RemovableHandle]:
        base, decoder = self._adapter.base, self._adapter.decoder
        hooks = [
            base.register_forward_pre_hook(self._open, with_kwargs=True),
            base.register_forward_hook(self._close, always_call=True),
            decoder.register_forward_hook(self._restore),
        ]
        for number, layer in enumerate(decoder.layers):
            hooks.append(
                layer.register_forward_pre_hook(
                    _numbered(self._before_layer, number), with_kwargs=True
                )
            )
        if self.config.guidance != "none" and self._after:
            capture.install(self._backend)
            for layer_number in self._after:
                capture.listen(self._adapter.attention(layer_number), self._listen)
        _attached.add(base)
        return hooks

    def remove(self) -> None:
        """Takes every hook away; the model is as it was before.  More calls do nothing."""
        if not self._hooks:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self.config.guidance != "none" and self._after:
            for layer_number in self._after:
                capture.stop_listening(self._adapter.attention(layer_number))
            capture.uninstall(self._backend)
        _attached.discard(self._adapter.base)

    def __enter__(self) -> Handle:
        if not self._hooks:
            raise RuntimeError("this handle was removed: call attach(model, config) again")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    @property
    def trace(self) -> MergeTrace:
        """Lineage of the vision tokens."""
        return self._last().trace

    @property
    def ledger(self) -> Ledger:
        """The bill."""
        self._last()
        assert self._ledger is not None
        return self._ledger

    def graph(
        self, stage: int, *, image: int | None = None, window: int | None = None
    ) -> HeteroData:
        """The graph that a stage passed its messages over, with the prompt's guidance.

        Args:
            stage: Number of the stage, from 0, among those that merged anything.
            image: Only this image's part.
            window: Only this window's part.

        Raises:
            IndexError: No such stage.
        """
        records = self._last().records
        if not -len(records) <= stage < len(records):
            raise IndexError(f"stage {stage}: the last prefill had {len(records)} stages")
        graph = records[stage].with_text()
        if image is None and window is None:
            return graph
        return part_of(graph, image=image, window=window)

    def _last(self) -> Prefill:
        if self._done is None:
            raise RuntimeError("nothing to tell: no prefill with images has run in this context")
        return self._done

    @property
    def _prefill(self) -> Prefill | None:
        return getattr(self._running, "prefill", None)

    def _open(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the model: plans the prefill, if the call is one with images."""
        self._running.prefill = None
        given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
        given = {**given, **given.get("kwargs", {})}
        vision = self._vision_mask(given)
        if vision is None or vision.shape[1] == 1:
            return
        vision = vision.cpu()
        cache = given.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        real = real_tokens(given.get("attention_mask"), *vision.shape, past)
        vision &= real
        if not bool(vision.any()):
            return
        if cache is not None:
            for number in range(self._adapter.layers):
                check_cache(cache, number)
        layout = self._adapter.layout(vision.sum(1).tolist())
        self._running.prefill = Prefill(self.config, self._compressor, layout, vision, real, past)
        self._running.seen = {}

    def _vision_mask(self, given: dict[str, Any]) -> Tensor | None:
        """Where vision tokens lie, `[batch, token]`; None where there can be none."""
        if given.get("input_ids") is not None:
            return self._adapter.vision_mask(given["input_ids"])
        embeds = given.get("inputs_embeds")
        if embeds is None or embeds.shape[1] == 1:
            return None
        if given.get("pixel_values") is None and given.get("mm_encoder_outputs") is None:
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
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before a decoder layer: runs a stage, and hands the layer what fits fewer tokens."""
        hidden_states: Tensor = args[0] if args else kwargs["hidden_states"]
        cache = kwargs.get("past_key_values")
        prefill = self._prefill
        if prefill is not None:
            if number == 0:
                prefill.start(hidden_states.device)
            for planned, stage in enumerate(prefill.planned):
                if stage.stage.layer == number - 1:
                    hidden_states = prefill.compress(planned, hidden_states)
            self._observe(number, hidden_states, cache)
            prefill.tables = kwargs.get("position_embeddings")
        if prefill is None or prefill.source is None:
            return self._continue(number, hidden_states, cache, args, kwargs)
        kwargs = dict(kwargs)
        columns, ragged = prefill.source, prefill.ragged
        if cache is not None:
            layer = compressed_layer(cache, number)
            layer.expect(Expected(columns, prefill.length, prefill.tail, ragged, prefill.merged))
            if prefill.past:
                columns = layer.index_of(0, prefill.batch, columns.device)
                ragged = ragged or layer.ragged
        kwargs["attention_mask"] = self._mask(prefill, kwargs, columns, ragged)
        kwargs["position_embeddings"] = prefill.tables = self._tables(
            prefill, kwargs, hidden_states, cache, number
        )
        kwargs["position_ids"] = None
        return _with_hidden(args, kwargs, hidden_states)

    def _continue(
        self,
        number: int,
        hidden_states: Tensor,
        cache: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """A call, or layers of one, in which nothing was merged, on a cache where something was."""
        if cache is None or number >= len(cache.layers):
            return None
        layer = cache.layers[number]
        if not isinstance(layer, CompressedMixin) or not layer.compressed:
            return None
        layer.open = True
        kwargs = dict(kwargs)
        batch, queries = hidden_states.shape[:2]
        mask = kwargs.get("attention_mask")
        if mask is not None or layer.ragged:
            columns = layer.index_of(layer.entries() + queries, batch, hidden_states.device)
            kwargs["attention_mask"] = compressed_mask(mask, None, columns, ragged=layer.ragged)
        if layer.merged is not None:
            kwargs["position_embeddings"] = closed_up(
                self._adapter.decoder.rotary_emb,
                hidden_states,
                kwargs["position_ids"],
                layer.merged.to(hidden_states.device),
            )
        return args, kwargs

    def _mask(
        self, prefill: Prefill, kwargs: dict[str, Any], columns: Tensor, ragged: bool
    ) -> Tensor | None:
        """The mask of a compressed layer; made once for all layers that share it."""
        mask = kwargs.get("attention_mask")
        memo = self._running.seen
        key = ("mask", id(mask), id(columns))
        if key not in memo:
            made = compressed_mask(mask, prefill.source, columns, ragged=ragged, past=prefill.past)
            memo[key] = mask, columns, made
        return memo[key][-1]

    def _tables(
        self,
        prefill: Prefill,
        kwargs: dict[str, Any],
        hidden_states: Tensor,
        cache: Any,
        number: int,
    ) -> tuple[Tensor, Tensor]:
        """Rotary tables of a compressed layer; made once for all layers that share them."""
        given, source = kwargs["position_embeddings"], prefill.source
        assert source is not None
        memo = self._running.seen
        key = ("tables", id(given), id(source))
        if key not in memo or prefill.past:
            if prefill.merged_before is None:
                made = rotary_rows(given, source)
            else:
                merged = prefill.merged_before
                earlier = None if cache is None else cache.layers[number].merged
                merged = merged if earlier is None else merged + earlier
                positions = positions_of(kwargs["position_ids"], source)
                made = closed_up(self._adapter.decoder.rotary_emb, hidden_states, positions, merged)
            memo[key] = given, source, made
        return memo[key][-1]

    def _listen(self, query: Tensor, key: Tensor, scaling: float) -> None:
        if self._prefill is not None:
            self._prefill.listen(query, key, scaling)

    def _restore(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """After the decoder: gives the hidden states the prompt's full length again."""
        prefill = self._prefill
        if prefill is None or prefill.source is None:
            return None
        if isinstance(output, tuple):
            return (prefill.restored(output[0]), *output[1:])
        output.last_hidden_state = prefill.restored(output.last_hidden_state)
        return output

    def _observe(self, number: int, hidden_states: Tensor, cache: Any) -> None:
        tokens = hidden_states.shape[0] * hidden_states.shape[1]
        self._running.seen["layer", number] = tokens, _kv_bytes(cache, number)

    def _close(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """After the model, after an exception too: ends the prefill and writes the bill."""
        prefill, self._running.prefill = self._prefill, None
        if prefill is None:
            return
        seen, self._running.seen = self._running.seen, {}
        if output is None:
            return
        cache = output[1] if isinstance(output, tuple) else output.get("past_key_values")
        self._ledger = self._bill(prefill, seen, cache)
        self._done = prefill

    def _bill(self, prefill: Prefill, seen: dict[Any, Any], cache: Any) -> Ledger:
        decoder = self._adapter.decoder
        size = decoder_size(self._adapter, next(decoder.parameters()).dtype)
        full = size.cost(prefill.full_lengths, sum(prefill.full_vision_counts), prefill.length)
        planned, rows = full, []
        after = {stage.stage.layer: stage for stage in prefill.planned}
        for number in range(self._adapter.layers):
            if number - 1 in after:
                stage = after[number - 1]
                planned = size.cost(stage.lengths, sum(stage.vision), max(stage.lengths))
            tokens, before = seen["layer", number]
            held = _kv_bytes(cache, number)
            observed = None if held is None else held - (before or 0)
            rows.append(LayerRow(number, planned, full, tokens, observed))
        return Ledger(tuple(rows), prefill.seconds())


def decoder_size(adapter: Adapter, dtype: torch.dtype) -> DecoderSize:
    """What the costs of a model's decoder layers depend on."""
    config = adapter.decoder.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return DecoderSize(
        parameters=sum(p.numel() for p in adapter.decoder.layers[0].parameters()),
        attention_channels=config.num_attention_heads * head,
        kv_channels=config.num_key_value_heads * head,
        bytes_per_value=dtype.itemsize,
    )


def _kv_bytes(cache: Any, number: int) -> int | None:
    if cache is None:
        return None
    if number >= len(cache.layers) or cache.layers[number].keys is None:
        return 0
    layer = cache.layers[number]
    return sum(states.numel() * states.element_size() for states in (layer.keys, layer.values))


def _numbered(hook: Any, number: int) -> Any:
    def numbered(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return hook(number, module, args, kwargs)

    return numbered


def _with_hidden(
    args: tuple[Any, ...], kwargs: dict[str, Any], hidden_states: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (hidden_states, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": hidden_states}


def _check_schedule(adapter: Adapter, config: LightKVConfig) -> None:
    layers, grid = adapter.layers, adapter.grid
    for stage in config.stages:
        if stage.layer > layers - 2:
            raise ScheduleError(
                f"{stage} runs after layer {stage.layer}, but the decoder has layers "
                f"0..{layers - 1} and a stage needs one after it: use a layer from 0 to {layers - 2}"
            )
        if grid is not None and stage.windows > min(grid):
            raise ScheduleError(
                f"{stage} cuts a grid of {grid[0]}x{grid[1]} tokens into {stage.windows} windows per "
                f"side, which leaves windows empty: use at most {min(grid)}"
            )


def _check_backend(adapter: Adapter, config: LightKVConfig) -> None:
    decoder = adapter.decoder.config
    if decoder._attn_implementation not in BACKENDS:
        raise UnsupportedInputError(
            f"attention implementation {decoder._attn_implementation!r} is not supported: load the "
            f"model with attn_implementation one of {BACKENDS}"
        )
    rope = (getattr(decoder, "rope_parameters", None) or {}).get("rope_type", "default")
    if config.positions == "reindex" and rope in ("dynamic", "longrope"):
        raise UnsupportedInputError(
            f'positions="reindex" does not work with {rope!r} rotary positions, whose tables depend '
            'on the longest one: use positions="preserve"'
        )
