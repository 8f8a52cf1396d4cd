"""The state of one prefill: what is planned, what the sequence has become, what was done."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightkv_gnn.attention.positions import Tables
from lightkv_gnn.config import LightKVConfig
from lightkv_gnn.costs.plan import PlannedStage, plan_stages
from lightkv_gnn.costs.schedule import Stage
from lightkv_gnn.session.records import RecordedGuidance, StageRecord, Stopwatch
from lightkv_gnn.stage.compressor import Compressed, TokenCompressor
from lightkv_gnn.stage.guidance import Guidance, GuidanceBlock, prompt_guidance, unrotated
from lightkv_graphs import MergeTrace, TokenLayout
from lightkv_graphs.host import to_device


class Prefill:
    """Compresses one prefill, stage by stage.

    Positions of a sequence are counted within the call; a sample's tokens stay in order and are
    aligned at the right, so that its last token is the last of the row.

    Args:
        config: What to do.
        compressor: Does it.
        layout: The call's vision tokens.
        vision: Where they are, `[batch, token]` bool, on the CPU.
        real: Tokens that are not padding, `[batch, token]` bool, on the CPU.
        past: Logical tokens in the cache before the call.
        padded: Padding of each sample before the call, `[batch, 2]` with zeros, where tokens are
            numbered by the entries before them; None where their own positions close up, or stay.
        prompt: Tokens whose text guides, `[batch, token]` bool, on the CPU; all if not given.
        ids: Token ids, `[batch, token]`, for :attr:`prompt_ids` alone.
    """

    def __init__(
        self,
        config: LightKVConfig,
        compressor: TokenCompressor,
        layout: TokenLayout,
        vision: Tensor,
        real: Tensor,
        past: int,
        padded: Tensor | None = None,
        prompt: Tensor | None = None,
        ids: Tensor | None = None,
    ) -> None:
        self.config = config
        self.padded = padded
        self.compressor = compressor
        self.past = past
        self.batch, self.length = vision.shape
        self.lengths = tuple(real.sum(1).tolist())
        self.full_lengths = self.lengths
        self.vision_counts = tuple((vision & real).sum(1).tolist())
        self.full_vision_counts = self.vision_counts
        self._host_text = real & ~vision if prompt is None else real & ~vision & prompt
        self._ids = ids
        self.text_counts = tuple(self._host_text.sum(1).tolist())
        self.tail = _common_tail(vision, real)
        self._behind = _behind_pictures(vision & real, real)
        self.layout = self.first_layout = layout
        self.planned = plan_stages(config.stages, layout, self.lengths)
        self.host_vision, self.host_real = vision & real, real
        self.source: Tensor | None = None
        self.ragged = False
        self.merged_before: Tensor | None = None
        self.merged: Tensor | None = None
        self.log_mass: Tensor | None = None
        self.tables: Tables = None
        self.first_key: int | None = None
        self._recorded: tuple[Tensor, Tensor, float, float | None] | None = None
        self.records: list[StageRecord] = []
        self.stopwatch = Stopwatch()

    @property
    def shape(self) -> tuple[int, int]:
        """(samples, tokens) of the sequence as it is now, padding included."""
        return self.batch, self.length if self.source is None else self.source.shape[1]

    def start(self, device: torch.device) -> None:
        """Puts the call's bookkeeping on the device of the first layer's hidden states."""
        self.layout = self.first_layout = self.layout.to(device)
        self.is_vision = self.host_vision.to(device, non_blocking=True)
        self.padded = None if self.padded is None else self.padded.to(device, non_blocking=True)
        self.all_real = self.real = self.host_real.to(device, non_blocking=True)
        self.is_text = self._host_text.to(device, non_blocking=True)
        self.token = torch.arange(self.length, device=device).expand(self.batch, -1)
        self.row_of = self.token
        self.vision_rows = _true_rows(self.is_vision, sum(self.vision_counts))

    def to(self, device: torch.device) -> None:
        """Takes the bookkeeping to the device of another layer's hidden states."""
        if device == self.token.device:
            return
        self.layout = self.layout.to(device)
        for name in _FOLLOWING:
            tensor: Tensor | None = getattr(self, name)
            setattr(self, name, None if tensor is None else tensor.to(device, non_blocking=True))

    def record_attention(
        self, query: Tensor, key: Tensor, scaling: float, softcap: float | None
    ) -> None:
        """Takes queries and keys of a layer that a stage runs after.

        They are used after the layer: activation checkpointing runs the layer again in the
        backward pass, where nothing is recorded, and counts what it does.
        """
        self.compressor.ranks.check(query)
        entries = self.is_vision.shape[1]
        first = key.shape[2] - entries if self.first_key is None else self.first_key
        self._recorded = query, key[:, :, first : first + entries], scaling, softcap

    def _recorded_guidance(self) -> RecordedGuidance | None:
        """Guidance from the layer that ran last; None if its attention was not recorded."""
        recorded, self._recorded = self._recorded, None
        if recorded is None or self.config.guidance == "none":
            return None
        query, key, scaling, softcap = recorded
        if not self.config.rotary:
            query, key = (unrotated(states, self.tables) for states in (query, key))
        ranks, shares = self.compressor.ranks, self.compressor.scatter.text_shares
        if callable(self.config.guidance):  # may do with heads what it likes
            query, key = ranks.joined(query), ranks.joined(key)
        vision, vision_mask = _listed(self.is_vision, self.vision_counts)
        text, text_mask = _listed(self.is_text, self.text_counts)
        block = GuidanceBlock(
            query, key, vision, text, vision_mask, text_mask, scaling, softcap, self._span()
        )
        if self.config.guidance == "last_token":
            block = block.of_last_text()

        def shares_of_all(*args: Any) -> Tensor:
            return ranks.summed(shares(*args))

        guidance = prompt_guidance(block, self.config.guidance, shares_of_all)
        return RecordedGuidance(guidance, self.token.gather(1, block.text), block.text_mask)

    def _span(self) -> tuple[int, int] | None:
        """Where every sample's vision tokens are, if that is one place without gaps."""
        count = self.vision_counts[0]
        if self._behind is None or any(other != count for other in self.vision_counts):
            return None
        end = self.is_vision.shape[1] - self._behind
        return end - count, end

    def compress(self, number: int, hidden_states: Tensor) -> Tensor:
        """Runs stage ``number`` on `[batch, token, channel]`; returns fewer tokens."""
        device = hidden_states.device
        with self.stopwatch.running(device), torch.autocast(device.type, enabled=False):
            return self._compress(self.planned[number], hidden_states)

    def _compress(self, planned: PlannedStage, hidden_states: Tensor) -> Tensor:
        batch, tokens, channels = hidden_states.shape
        found = self._recorded_guidance()
        rows = hidden_states.reshape(-1, channels)
        features = rows.index_select(0, self.vision_rows)
        guidance = self._flat_guidance(planned, found)
        done = self.compressor(features, self.layout, planned.plan, guidance)
        self._record(planned.stage, done, guidance, found)
        gone, into = self.vision_rows[done.merges.matching.edge_index]
        stays = self.real.reshape(-1).index_fill(0, gone, False).reshape(batch, tokens)
        width = max(planned.lengths)
        order = stays.to(torch.uint8).argsort(dim=1, stable=True)[:, tokens - width :]
        self._follow(planned, order, gone, into)
        self.layout = done.layout
        if self.config.attention == "mass":
            known = self.real.new_zeros(batch * width, dtype=torch.float32)
            known.index_copy_(0, self.vision_rows, done.layout.mass.float().log())
            self.log_mass = known.view(batch, width)
        first = tokens * torch.arange(batch, device=order.device)[:, None]
        short = rows.index_select(0, (first + order).reshape(-1))
        short.index_copy_(0, self.vision_rows, done.hidden_states)
        return short.view(batch, width, channels)

    def _follow(self, planned: PlannedStage, order: Tensor, gone: Tensor, into: Tensor) -> None:
        """Brings the bookkeeping to the shorter sequence.

        Args:
            planned: The stage's sizes.
            order: Row of the longer sequence that each row of the shorter one holds,
                `[batch, row]`; a sample's own rows are at the right.
            gone: Flat rows merged away, `[edge]`.
            into: Flat rows they merged into, `[edge]`.
        """
        batch, tokens = self.real.shape
        place = torch.arange(order.shape[1], device=order.device)
        row = torch.zeros_like(self.real, dtype=torch.int64)
        row = row.scatter(1, order, place.expand(batch, -1)).reshape(-1)
        row = row.index_copy(0, gone, row[into]).reshape(batch, tokens)
        self.row_of = row.gather(1, self.row_of)
        lengths = to_device(planned.lengths, order.device)[:, None]
        self.real = place >= order.shape[1] - lengths
        self.token = self.token.gather(1, order)
        self.is_vision = self.is_vision.gather(1, order) & self.real
        self.is_text = self.is_text.gather(1, order) & self.real
        self.lengths, self.vision_counts = planned.lengths, planned.vision
        self.vision_rows = _true_rows(self.is_vision, sum(planned.vision))
        self.source = self.token.masked_fill(~self.real, -1)
        self.ragged = min(planned.lengths) < order.shape[1]
        if self.config.positions == "reindex":
            self._count_merged()

    def _flat_guidance(
        self, planned: PlannedStage, guidance: RecordedGuidance | None
    ) -> Tensor | None:
        """Guidance of each vision token of the batch, `[token]`."""
        if self.config.guidance == "none":
            return None
        if guidance is None:
            raise RuntimeError(
                f"the attention of decoder layer {planned.stage.layer} did not pass through "
                'transformers\' attention interface, so there is no guidance; use guidance="none"'
            )
        weight, counts = guidance.guidance.weight, self.vision_counts
        if min(counts) == weight.shape[1]:
            return weight.reshape(-1)
        place = torch.arange(weight.shape[1], device=weight.device)
        real = place < to_device(counts, weight.device)[:, None]
        return weight.reshape(-1).index_select(0, _true_rows(real, sum(counts)))

    def _count_merged(self) -> None:
        """Tokens merged away before each one, for positions that close up."""
        assert self.source is not None
        stays = torch.zeros_like(self.row_of[:, :1]).repeat(1, self.length + 1)
        stays.scatter_(1, self.source.masked_fill(self.source < 0, self.length), 1)
        gone = stays[:, :-1] == 0
        merged = gone & self.all_real
        if self.padded is None:  # positions as they are given do not count padding
            gone = merged
        before = gone.long().cumsum(1)
        self.merged_before = before.gather(1, self.source.clamp(min=0))
        self.merged = before[:, -1:]
        if self.padded is not None:
            self.merged = torch.cat([self.merged, merged.sum(1, keepdim=True)], dim=1)

    def forget(self) -> None:
        """Lets go of what only a running call needs."""
        self.tables = self._recorded = None

    def restored(self, hidden_states: Tensor) -> Tensor:
        """Gives every token of the call the row that stands for it: full length again."""
        rows = self.row_of.to(hidden_states.device)
        index = rows[:, :, None].expand(-1, -1, hidden_states.shape[-1])
        return hidden_states.gather(1, index)

    def _record(
        self,
        stage: Stage,
        done: Compressed,
        guidance: Tensor | None,
        found: RecordedGuidance | None,
    ) -> None:
        """Keeps what is told afterwards, without the autograd graph."""
        if found is not None:
            weight, by_text = found.guidance
            by_text = None if by_text is None else by_text.detach()
            found = found._replace(guidance=Guidance(weight.detach(), by_text))
        guidance = None if guidance is None else guidance.detach()
        merges, counts = done.merges.detach(), self.vision_counts
        self.records.append(StageRecord(stage, merges, done.layout, guidance, found, counts))

    @property
    def prompt_ids(self) -> list[list[int]] | None:
        """Token ids of the text of each sample that guided; None if the call had none."""
        if self._ids is None:
            return None
        rows = zip(self._ids.cpu(), self._host_text, strict=True)
        return [ids[guides].tolist() for ids, guides in rows]

    @property
    def trace(self) -> MergeTrace:
        """Lineage of the call's vision tokens, where the first layer is."""
        device = self.first_layout.image.device
        stages = tuple(record.trace().to(device) for record in self.records)
        return MergeTrace(self.first_layout, stages)


_FOLLOWING = (
    "is_vision",
    "is_text",
    "real",
    "all_real",
    "padded",
    "token",
    "row_of",
    "vision_rows",
    "source",
    "merged_before",
    "merged",
    "log_mass",
)
"""Attributes of a prefill that are tensors beside the hidden states."""


def _true_rows(mask: Tensor, count: int) -> Tensor:
    """Flat positions of the ``count`` true entries, ascending; the count saves a read-back."""
    return (~mask).reshape(-1).to(torch.uint8).argsort(stable=True)[:count]


def _listed(mask: Tensor, counts: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Positions of each row's true entries, padded at the end, and which are real."""
    width = max(counts)
    index = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
    limit = to_device(counts, mask.device)[:, None]
    return index, torch.arange(width, device=mask.device) < limit


def _behind_pictures(vision: Tensor, real: Tensor) -> int | None:
    """Real tokens behind the pictures, if all samples have as many and nothing between."""
    length = vision.shape[1]
    first, behind = (side.long().argmax(1) for side in (vision, vision.flip(1)))
    count = int(behind[0])
    whole = (vision.sum(1) == length - behind - first) & (behind == count)
    return count if bool(whole.all()) and bool(real[:, length - count :].all()) else None


def _common_tail(vision: Tensor, real: Tensor) -> int:
    """Trailing tokens that are real text in every sample."""
    text = (real & ~vision).all(0).flip(0).long()
    return int(text.cumprod(0).sum())
