"""Many questions behind one picture in a single training sequence.

Each question sees the picture and itself but none of its neighbours, and its positions restart
where the picture ends. Every packed question is therefore exactly the single question that the
model meets when it generates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["PackedBatch", "PackedRow", "pack", "pack_row"]


@dataclass(frozen=True)
class PackedRow:
    """One picture's token ids, with the branch (0 is the shared start) of each."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    branches: tuple[int, ...]
    groups: tuple[int, ...]


@dataclass(frozen=True)
class PackedBatch:
    """Tensors of several rows, padded at the end.

    Attributes:
        input_ids: ``[batch, token]`` int64.
        position_ids: ``[batch, token]`` int64.
        attention_mask: ``[batch, 1, query, key]`` additive float32.
        groups: ``[batch, token]`` int64, the question group of an answer token and -1 elsewhere.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor
    groups: torch.Tensor

    def to(self, device: str | torch.device) -> PackedBatch:
        """Move every tensor to a device."""
        return PackedBatch(
            self.input_ids.to(device),
            self.position_ids.to(device),
            self.attention_mask.to(device),
            self.groups.to(device),
        )


def pack_row(
    shared: Sequence[int], branches: Sequence[tuple[Sequence[int], Sequence[int], int]]
) -> PackedRow:
    """Lay one picture's questions out in a row.

    Args:
        shared: ids that every question follows, picture tokens included.
        branches: for each question the ids before its answer, the answer's ids, and its group.

    Returns:
        The row.
    """
    ids, positions = list(shared), list(range(len(shared)))
    numbers, groups = [0] * len(ids), [-1] * len(ids)
    for number, (question, answer, group) in enumerate(branches, start=1):
        length = len(question) + len(answer)
        ids += [*question, *answer]
        positions += range(len(shared), len(shared) + length)
        numbers += [number] * length
        groups += [-1] * len(question) + [group] * len(answer)
    return PackedRow(tuple(ids), tuple(positions), tuple(numbers), tuple(groups))


def pack(rows: Sequence[PackedRow], pad_id: int) -> PackedBatch:
    """Stack rows of different lengths into one batch."""
    if not rows:
        raise ValueError("expected at least one row to pack, got none; sample some pictures first")
    length = max(len(row.ids) for row in rows)

    def fill(name: str, padding: int) -> torch.Tensor:
        values = [list(getattr(row, name)) for row in rows]
        return torch.tensor([value + [padding] * (length - len(value)) for value in values])

    branches = fill("branches", -1)
    query, key = branches[:, :, None], branches[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    visible = causal & ((query == key) | (key == 0))
    blocked = torch.finfo(torch.float32).min
    mask = torch.zeros(visible.shape).masked_fill_(~visible, blocked)
    return PackedBatch(fill("ids", pad_id), fill("positions", 0), mask[:, None], fill("groups", -1))
