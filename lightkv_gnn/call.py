"""One call of an attached model that is a prefill with images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightkv_gnn.adapters import Adapter
from lightkv_gnn.backends import mask_form
from lightkv_gnn.cache import Expected, compressed_layer
from lightkv_gnn.checks import check_flash_call, check_flash_window
from lightkv_gnn.ledger import LayerRow, Ledger
from lightkv_gnn.masks import Mask, compressed_mask
from lightkv_gnn.positions import closed_up, positions_of, rotary_rows
from lightkv_gnn.prefill import Prefill


class Call:
    """Runs a prefill's stages between the layers, and keeps the books.

    Args:
        adapter: Of the model's family.
        prefill: The plan and state.
    """

    def __init__(self, adapter: Adapter, prefill: Prefill) -> None:
        self.prefill = prefill
        self._adapter = adapter
        self._form = mask_form(adapter.decoder.config._attn_implementation) or "dense"
        self._stage_before = {
            planned.stage.layer + 1: stage for stage, planned in enumerate(prefill.planned)
        }
        self._memo: dict[tuple[str, int, int], tuple[Any, ...]] = {}
        self._shapes: list[tuple[int, int]] = []
        self._bytes_before: list[int] = []
        self._cache: Any = None
        self._value_size = 0
        self._rows: tuple[LayerRow, ...] = ()

    def reach(
        self, number: int, hidden_states: Tensor, cache: Any, kwargs: dict[str, Any]
    ) -> Tensor:
        """Called before layer ``number``: runs the stage between it and the one before."""
        prefill = self.prefill
        if number == 0:
            if self._form == "padding":
                check_flash_call(kwargs)
            prefill.start(hidden_states.device)
            self._cache, self._value_size = cache, hidden_states.element_size()
        if number in self._stage_before:
            hidden_states = prefill.compress(self._stage_before[number], hidden_states)
        self._shapes.append((hidden_states.shape[0], hidden_states.shape[1]))
        self._bytes_before.append(_kv_bytes(cache, number))
        prefill.tables = kwargs.get("position_embeddings")
        return hidden_states

    def fitted(
        self, number: int, hidden_states: Tensor, cache: Any, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """The layer's arguments, fitted to the tokens that are left."""
        kwargs, prefill = dict(kwargs), self.prefill
        columns, ragged = prefill.source, prefill.ragged
        assert columns is not None
        if self._form == "padding":
            check_flash_window(self._adapter, number, prefill.past + prefill.length)
        if cache is not None:
            layer = compressed_layer(cache, number)
            layer.expect(Expected(columns, prefill.length, prefill.tail, ragged, prefill.merged))
            if prefill.past:
                columns = layer.index_of(0, prefill.batch, columns.device)
                ragged = ragged or layer.ragged
        kwargs["attention_mask"] = self._mask(kwargs.get("attention_mask"), columns, ragged)
        earlier = None if cache is None else cache.layers[number].merged
        tables = self._tables(kwargs, hidden_states, earlier)
        kwargs["position_embeddings"] = prefill.tables = tables
        # Flash attention takes gaps in the ids for borders between packed sequences.
        kwargs["position_ids"] = None
        return kwargs

    def _mask(self, mask: Mask, columns: Tensor, ragged: bool) -> Mask:
        """The mask of a compressed layer; made once for all layers that share it."""
        past, key = self.prefill.past, ("mask", id(mask), id(columns))
        if key not in self._memo:
            made = compressed_mask(
                mask, self.prefill.source, columns, ragged=ragged, past=past, form=self._form
            )
            if past:  # every layer has a past of its own
                return made
            self._memo[key] = mask, columns, made
        return self._memo[key][-1]

    def _tables(
        self, kwargs: dict[str, Any], hidden_states: Tensor, earlier: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Rotary tables of a compressed layer; made once for all layers that share them."""
        given, source = kwargs["position_embeddings"], self.prefill.source
        assert source is not None
        key = ("tables", id(given), id(source))
        if key not in self._memo or earlier is not None:
            merged = self.prefill.merged_before
            if merged is None:
                made = rotary_rows(given, source)
            else:
                merged = merged if earlier is None else merged + earlier
                positions = positions_of(kwargs["position_ids"], source)
                made = closed_up(self._adapter.decoder.rotary_emb, hidden_states, positions, merged)
            self._memo[key] = given, source, made
        tables: tuple[Tensor, Tensor] = self._memo[key][-1]
        return tables

    def end(self) -> None:
        """Reads off the cache what the layers hold, and lets go of everything but the books."""
        prefill = self.prefill
        size = self._adapter.decoder_size(self._value_size)
        full = size.cost(prefill.full_lengths, sum(prefill.full_vision_counts), prefill.length)
        planned, rows = full, []
        for number, before in enumerate(self._bytes_before):
            if number in self._stage_before:
                stage = prefill.planned[self._stage_before[number]]
                planned = size.cost(stage.lengths, sum(stage.vision), max(stage.lengths))
            held = None if self._cache is None else _kv_bytes(self._cache, number) - before
            batch, width = self._shapes[number]
            seen = size.cost([width] * batch, 0, width)
            rows.append(LayerRow(number, planned, full, seen.tokens, seen.flops, held))
        self._rows = tuple(rows)
        self._cache = None
        self._memo.clear()
        prefill.forget()

    @property
    def ledger(self) -> Ledger:
        """The bill; waits for the device's clock."""
        return Ledger(self._rows, self.prefill.stopwatch.seconds())


def _kv_bytes(cache: Any, number: int) -> int:
    if cache is None or number >= len(cache.layers) or cache.layers[number].keys is None:
        return 0
    layer = cache.layers[number]
    states: tuple[torch.Tensor, torch.Tensor] = (layer.keys, layer.values)
    return sum(part.numel() * part.element_size() for part in states)
