"""One decoder layer and what it remembers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from families.loop_rotary import Position, Rotary

Sees = Callable[[int, int], bool]
"""``sees(i, j)``: whether token i of the sequence attends to token j, in original positions."""

Pair = tuple[Tensor, Tensor]


@dataclass
class Layer:
    """A decoder layer: ``block`` lends its weights.

    Args:
        block: The model's own layer.
        config: Configuration of the decoder.
        window: How many tokens, itself included, a token sees back; None for all of them.
        rotary: Turns queries and keys.
    """

    block: nn.Module
    config: Any
    window: int | None
    rotary: Rotary
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    """Position of each entry in the original sequence."""
    counts: list[int] = field(default_factory=list)
    """How often each entry counts."""

    @property
    def length(self) -> int:
        """Entries that the model's cache holds: what a window's next token may still ask for."""
        if self.window is None:
            return len(self.keys)
        return min(len(self.keys), self.window - 1)

    def __call__(
        self,
        hidden: Tensor,
        places: list[int],
        positions: Sequence[Position],
        sees: Sees,
        counts: list[int],
    ) -> tuple[Tensor, Pair, Pair]:
        """Appends tokens.

        Args:
            hidden: Their hidden states, `[token, channel]`.
            places: Their places in the original sequence.
            positions: What turns their queries and keys.
            sees: Which place sees which.
            counts: How often each of them counts as a key.

        Returns:
            Hidden states, and queries and keys before and after the rotation.
        """
        query, key, value = self._project(self.block.input_layernorm(hidden))
        rotated = self.rotary(query, positions), self.rotary(key, positions)
        self.places += places
        self.counts += counts
        self.keys += rotated[1].unbind(1)
        self.values += value.unbind(1)
        blind = [[not sees(i, j) for j in self.places] for i in places]
        attended = self._attend(rotated[0], torch.tensor(blind))
        return self._finish(hidden, attended), (query, key), rotated

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, `[head, token, channel]`."""
        own = self.block.self_attn
        query, key, value = (
            project(x).reshape(len(x), -1, channels_of(self.config)).transpose(0, 1)
            for project in (own.q_proj, own.k_proj, own.v_proj)
        )
        if hasattr(own, "q_norm"):
            query, key = own.q_norm(query), own.k_norm(key)
        return query, key, value

    def _attend(self, query: Tensor, blind: Tensor) -> Tensor:
        keys, values = torch.stack(self.keys, 1), torch.stack(self.values, 1)
        out, often = [], torch.tensor(self.counts, dtype=query.dtype)
        for head, queries in enumerate(query):
            shared = head * len(keys) // len(query)
            logits = queries @ keys[shared].T * scaling_of(self.config)
            logits = capped(logits, attention_cap_of(self.config))
            weights = logits.masked_fill(blind, -math.inf).softmax(1) * often
            out.append(weights / weights.sum(1, keepdim=True) @ values[shared])
        return self.block.self_attn.o_proj(torch.cat(out, dim=1))

    def _finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        block = self.block
        if hasattr(block, "pre_feedforward_layernorm"):  # norms before and after each part
            hidden = hidden + block.post_attention_layernorm(attended)
            x = block.mlp(block.pre_feedforward_layernorm(hidden))
            return hidden + block.post_feedforward_layernorm(x)
        hidden = hidden + attended
        return hidden + block.mlp(block.post_attention_layernorm(hidden))


def channels_of(config: Any) -> int:
    """Channels of a head."""
    own = getattr(config, "head_dim", None)
    return own or config.hidden_size // config.num_attention_heads


def scaling_of(config: Any) -> float:
    """What attention multiplies its logits by."""
    return 1 / math.sqrt(getattr(config, "query_pre_attn_scalar", channels_of(config)))


def attention_cap_of(config: Any) -> float | None:
    return getattr(config, "attn_logit_softcapping", None)


def final_cap_of(config: Any) -> float | None:
    return getattr(config, "final_logit_softcapping", None)


def capped(logits: Tensor, cap: float | None) -> Tensor:
    """Logits that only approach a bound, as in Gemma 2."""
    return logits if cap is None else cap * torch.tanh(logits / cap)
