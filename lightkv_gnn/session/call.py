"""One call of an attached model that is a prefill with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightkv_gnn.adapters import Adapter
from lightkv_gnn.attention.backends import MaskForm
from lightkv_gnn.attention.masks import Mask, compressed_mask
from lightkv_gnn.attention.positions import Tables, closed_up, numbered, rotary_rows, token_rows
from lightkv_gnn.cache.compressed import CompressedMixin, Expected
from lightkv_gnn.cache.layers import cancel, compressed_layer
from lightkv_gnn.cache.sizes import entries_written, first_new_key, room, stored_bytes
from lightkv_gnn.costs.ledger import DecoderSize, LayerRow, Ledger, Lost
from lightkv_gnn.costs.plan import plan_costs
from lightkv_gnn.seams import LayerNames
from lightkv_gnn.session.arguments import check_hidden_states, check_length, token_arguments
from lightkv_gnn.session.checks import check_flash_call, check_flash_windows, check_held
from lightkv_gnn.session.prefill import Prefill


class Keys(NamedTuple):
    """The keys of a compressed layer's attention.

    Attributes:
        columns: Where they are in the mask that the layer was given, `[batch, key]`, -1 for
            padding.
        ragged: Whether there is padding.
        log_mass: To be added to their logits, `[batch, key]`, or None.
    """

    columns: Tensor
    ragged: bool
    log_mass: Tensor | None


class Call:
    """Runs a prefill's stages between the layers, and keeps the books.

    Args:
        adapter: Of the model's family.
        prefill: The plan and state.
        form: Of the masks that the model's attention takes.
        names: What each layer calls its arguments.
    """

    def __init__(
        self, adapter: Adapter, prefill: Prefill, form: MaskForm, names: Sequence[LayerNames]
    ) -> None:
        self.prefill = prefill
        self._adapter, self._form, self._names = adapter, form, names
        self._stage_before = {
            planned.stage.layer + 1: stage for stage, planned in enumerate(prefill.planned)
        }
        self._memo: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        self._shapes: list[tuple[int, int]] = []
        self._bytes_before: list[int] = []
        self._entries_before: list[int | None] = []
        self._room: list[int | None] = []
        self._of_tokens: list[dict[str, int]] = []
        self._cache: Any = None
        self._value_size = 0
        self._held: list[int | None] = []

    def enter_layer(
        self, number: int, hidden_states: Tensor, cache: Any, kwargs: dict[str, Any]
    ) -> Tensor:
        """Called before layer ``number``: runs the stage between it and the one before."""
        prefill, names = self.prefill, self._names[number]
        check_hidden_states(number, hidden_states, prefill.shape)
        axes = self._adapter.token_axes
        self._of_tokens.append(token_arguments(number, kwargs, names, axes, prefill.length))
        if number == 0:
            check_length(self._adapter, prefill.past + prefill.length)
            if self._form == "padding":
                check_flash_call(kwargs.get(names.mask), kwargs.get(names.positions), cache)
                layers = self._adapter.layers
                later = range(min(self._stage_before, default=layers), layers)
                check_flash_windows(self._adapter, later, prefill.past + prefill.length)
            prefill.start(hidden_states.device)
            self._cache, self._value_size = cache, hidden_states.element_size()
        prefill.to(hidden_states.device)
        if number in self._stage_before:
            hidden_states = prefill.compress(self._stage_before[number], hidden_states)
        self._shapes.append((hidden_states.shape[0], hidden_states.shape[1]))
        self._bytes_before.append(stored_bytes(cache, number, prefill.past))
        self._entries_before.append(entries_written(cache, number))
        self._room.append(room(cache, number, prefill.past))
        prefill.first_key = first_new_key(cache, number, prefill.past, hidden_states.shape[1])
        prefill.tables = kwargs.get(names.tables)
        return hidden_states

    def layer_arguments(
        self, number: int, hidden_states: Tensor, cache: Any, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """The layer's arguments, fitted to the tokens that are left."""
        kwargs, prefill, names = dict(kwargs), self.prefill, self._names[number]
        assert prefill.source is not None
        for name, axis in self._of_tokens[number].items():
            kwargs[name] = self._fitted(name, kwargs[name], axis)
        if not self._adapter.holds_entries(number):
            # Its mask tells what is padding; nothing else in it counts tokens.
            kwargs[names.mask] = prefill.real.long() if prefill.ragged else None
            return kwargs
        keys = Keys(prefill.source, prefill.ragged, prefill.log_mass)
        if cache is not None:
            keys = self._keys(compressed_layer(cache, number), prefill.source)
        earlier = None if cache is None else cache.layers[number].merged
        tables = self._tables(number, kwargs, hidden_states, earlier)
        positions = self._positions(number, kwargs, earlier)
        mask = self._mask(kwargs.get(names.mask), keys, hidden_states.dtype)
        if self._form == "padding":
            # Without a mask, flash attention takes gaps in the ids for borders of sequences.
            if not names.reads_positions:
                positions = None
            elif mask is None:
                mask = keys.columns >= 0
        kwargs[names.mask], kwargs[names.positions] = mask, positions
        kwargs[names.tables] = prefill.tables = tables
        return kwargs

    def _fitted(self, name: str, given: Tensor, axis: int) -> Tensor:
        """What a layer is given for each token; kept for the next layer, which may share it."""
        source, key = self.prefill.source, ("rows", name)
        assert source is not None
        known = self._memo.get(key)
        if known is None or known[0] is not given or known[1] is not source:
            known = self._memo[key] = given, source, token_rows(name, given, source, axis)
        rows: Tensor = known[-1]
        return rows

    def _positions(
        self, number: int, kwargs: dict[str, Any], earlier: Tensor | None
    ) -> Tensor | None:
        """Position ids of a compressed layer; None where its tables number entries instead."""
        name = self._names[number].positions
        given, before = kwargs.get(name), self.prefill.merged_before
        if given is None or self.prefill.padded is not None:
            return None
        rows = self._fitted(name, given, -1)
        if before is None:
            return rows
        return rows - (before if earlier is None else before + earlier)

    def _keys(self, layer: CompressedMixin, source: Tensor) -> Keys:
        """Announces a layer's entries; returns what its keys will be.

        Made once for all layers of a kind that share them.
        """
        prefill = self.prefill
        past, length, tail, ragged = prefill.past, prefill.length, prefill.tail, prefill.ragged
        merged = prefill.merged
        if merged is not None and prefill.padded is not None and layer.merged is None:
            merged = merged + prefill.padded
        layer.announce(Expected(source, past, length, tail, ragged, merged, prefill.log_mass))
        key = ("keys", id(source), type(layer), layer.get_max_length())
        if past or key not in self._memo:  # every layer has a past of its own
            asked = source.shape[1], prefill.batch, source.device
            keys = Keys(*layer.columns(*asked), layer.log_masses(*asked))
            self._memo[key] = source, keys
        made: Keys = self._memo[key][-1]
        return made

    def _mask(self, mask: Mask, keys: Keys, dtype: torch.dtype) -> Mask:
        """The mask of a compressed layer; made once for all layers that share it."""
        past, key = self.prefill.past, ("mask", id(mask), id(keys.columns))
        if key not in self._memo:
            made = compressed_mask(
                mask,
                self.prefill.source,
                keys.columns,
                ragged=keys.ragged,
                past=past,
                form=self._form,
                log_mass=keys.log_mass,
                dtype=dtype,
            )
            if past:  # every layer has a past of its own
                return made
            self._memo[key] = mask, keys, made
        return self._memo[key][-1]

    def _tables(
        self, number: int, kwargs: dict[str, Any], hidden_states: Tensor, earlier: Tensor | None
    ) -> Tables:
        """Rotary tables of a compressed layer; made once for all layers that share them."""
        given, source = kwargs.get(self._names[number].tables), self.prefill.source
        assert source is not None
        if given is None:
            return None
        key = ("tables", id(given), id(source))
        if key not in self._memo or earlier is not None:
            merged = self.prefill.merged_before
            if merged is None:
                made = rotary_rows(given, source)
            else:
                made = self._new_tables(number, kwargs, hidden_states, merged, earlier)
            self._memo[key] = given, source, made
        tables: Tables = self._memo[key][-1]
        return tables

    def _new_tables(
        self,
        number: int,
        kwargs: dict[str, Any],
        hidden_states: Tensor,
        before: Tensor,
        earlier: Tensor | None,
    ) -> Tables:
        """Tables of positions that close up, or that count entries."""
        prefill, rotary = self.prefill, self._adapter.rotary(number)
        names = self._names[number]
        source, merged = prefill.source, prefill.merged
        assert source is not None
        assert merged is not None
        if prefill.padded is None:
            positions = self._positions(number, kwargs, earlier)
            assert positions is not None
            return closed_up(rotary, hidden_states, positions)
        earlier = prefill.padded if earlier is None else earlier.to(source.device)
        given = rotary_rows(kwargs[names.tables], source)
        places, before = source + prefill.past, before + earlier[:, :1]
        return numbered(rotary, hidden_states, places, before, (merged + earlier)[:, 1:], given)

    def end(self, cache: Any) -> None:
        """Reads off the cache what the layers hold, and lets go of everything but the books.

        Args:
            cache: What the model returned, or None.

        Raises:
            RuntimeError: A layer does not hold what the plan said.
        """
        prefill = self.prefill
        check_held(self._cache, cache, self._entries_before, self._shapes, self._stage_before)
        seen = prefill.past + prefill.length
        for number, before in enumerate(self._bytes_before):
            held = None
            if self._cache is not None:
                held = stored_bytes(self._cache, number, seen) - before
                held *= prefill.compressor.ranks.size
            self._held.append(held)
        self._cache = None
        self._memo.clear()
        prefill.forget()

    def cancel(self) -> None:
        """Takes back what was announced to the cache, by a call that did not end."""
        cancel(self._cache)

    @cached_property
    def _sizes(self) -> list[DecoderSize]:
        layers = range(self._adapter.layers)
        return [self._adapter.decoder_size(self._value_size, layer) for layer in layers]

    @cached_property
    def _rows(self) -> tuple[LayerRow, ...]:
        """The bill of each layer, made when it is asked for."""
        prefill, rows = self.prefill, []
        vision, width = sum(prefill.full_vision_counts), prefill.length
        lengths = prefill.full_lengths
        costs = plan_costs(self._sizes, prefill.planned, lengths, vision, width, self._room)
        for number, (planned, full) in enumerate(costs):
            batch, width = self._shapes[number]
            given = self._sizes[number].cost([width] * batch, planned.vision_tokens, width)
            held = self._held[number]
            rows.append(LayerRow(number, planned, full, given.tokens, given.flops, held))
        return tuple(rows)

    @property
    def ledger(self) -> Ledger:
        """The bill; waits for the device's clock."""
        prefill = self.prefill
        seconds, attention = prefill.stopwatch.seconds(), prefill.config.attention
        if not prefill.records:
            return Ledger(self._rows, seconds)
        only = " (the only one with flash attention)" if self._form == "padding" else ""
        lost = tuple(
            Lost(record.stage.layer, *certificate.shares(), heard=record.guidance is not None)
            for record in prefill.records
            if (certificate := record.merges.matching.certificate) is not None
        )
        return Ledger(self._rows, seconds, prefill.compressor.fused, attention + only, lost)

    @property
    def ledgers(self) -> tuple[Ledger, ...]:
        """The bill of each sample, as if it were a batch of its own: planned, without padding."""
        prefill, bills = self.prefill, []
        sizes = zip(prefill.full_lengths, prefill.full_vision_counts, strict=True)
        for sample, (length, vision) in enumerate(sizes):
            planned = [step.of_sample(sample) for step in prefill.planned]
            costs = plan_costs(self._sizes, planned, [length], vision, length, self._room)
            rows = [LayerRow(layer, *both, None, None, None) for layer, both in enumerate(costs)]
            bills.append(Ledger(tuple(rows), 0.0))
        return tuple(bills)
