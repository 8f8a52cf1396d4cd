"""The flash-attn packages' functions written out, by their documented calling conventions.

Only the kernels are replaced: transformers imports them from modules of the packages' names, and
its own unpadding, packing and windowing runs as it does on a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import modeling_flash_attention_utils as flash_utils

Window = tuple[int, int]

calls: list[str] = []
"""Which functions ran, in order."""


def _attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: bool, window: Window, cap: float
) -> Tensor:
    """One sequence, `[token, head, channel]`; causality is aligned at the bottom right."""
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    scores = torch.einsum("qhc,khc->hqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if cap > 0:
        scores = cap * (scores / cap).tanh()
    offset = k.shape[0] - q.shape[0]
    row = torch.arange(q.shape[0])[:, None] + offset
    column = torch.arange(k.shape[0])[None]
    blind = (column > row) & causal
    blind = blind | ((column < row - window[0]) if window[0] >= 0 else False)
    blind = blind | ((column > row + window[1]) if window[1] >= 0 else False)
    weights = scores.masked_fill(blind, -torch.inf).softmax(-1)
    # A row that sees nothing gives zeros.
    weights = weights.masked_fill(blind.all(-1, keepdim=True), 0.0)
    return torch.einsum("hqk,khc->qhc", weights, v)


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor:
    """`[batch, token, head, channel]`, every row a whole sequence."""
    assert dropout_p == 0.0
    assert alibi_slopes is None
    assert q.ndim == k.ndim == v.ndim == 4
    calls.append("flash_attn_func")
    samples = zip(q, k, v, strict=True)
    made = [_attend(*one, softmax_scale, causal, window_size, softcap) for one in samples]
    return torch.stack(made)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor:
    """`[all tokens, head, channel]`, cut into sequences at ``cu_seqlens``."""
    assert dropout_p == 0.0
    assert alibi_slopes is block_table is None
    assert q.ndim == k.ndim == v.ndim == 3
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert cu_seqlens_q.shape == cu_seqlens_k.shape
    assert int(cu_seqlens_q.diff().max()) <= int(max_seqlen_q)
    assert int(cu_seqlens_k.diff().max()) <= int(max_seqlen_k)
    assert int(cu_seqlens_q[-1]) == q.shape[0]
    assert int(cu_seqlens_k[-1]) == k.shape[0]
    calls.append("flash_attn_varlen_func")
    queries, keys = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
    pieces = zip(q.split(queries), k.split(keys), v.split(keys), strict=True)
    made = [_attend(*one, softmax_scale, causal, window_size, softcap) for one in pieces]
    return torch.cat(made)


def flash_attn_with_kvcache(*args: Any, **kwargs: Any) -> Tensor:
    """Only paged caches come here."""
    raise AssertionError("not for a dynamic cache")


def unpad_input(
    hidden_states: Tensor, attention_mask: Tensor, unused_mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, int, Tensor]:
    """Real tokens in a row, where they were, borders of the samples, and longest of them."""
    assert unused_mask is None
    lengths = attention_mask.sum(-1, dtype=torch.int32)
    where = attention_mask.flatten().nonzero().flatten()
    borders = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    return hidden_states.flatten(0, 1)[where], where, borders, int(lengths.max()), lengths


def pad_input(hidden_states: Tensor, indices: Tensor, batch: int, seqlen: int) -> Tensor:
    """The reverse, with zeros in between."""
    out = hidden_states.new_zeros(batch * seqlen, *hidden_states.shape[1:])
    return out.index_put((indices,), hidden_states).unflatten(0, (batch, seqlen))


VERSIONS = {2: "flash_attn", 3: "flash_attn_interface", 4: "flash_attn.cute"}
"""The module that transformers imports each version's functions from."""


@contextmanager
def flash_on_cpu() -> Iterator[list[str]]:
    """Makes ``attn_implementation="flash_attention_2"`` to ``_4`` work on a CPU, for a while.

    Yields:
        The names of the functions that ran.
    """
    with pytest.MonkeyPatch.context() as patch:
        _install(patch)
        calls.clear()
        yield calls
        calls.clear()


def _install(patch: pytest.MonkeyPatch) -> None:
    functions = (flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache)
    for name in (*VERSIONS.values(), "flash_attn.bert_padding"):
        module = ModuleType(name)
        for function in (*functions, unpad_input, pad_input):
            setattr(module, function.__name__, function)
        patch.setitem(sys.modules, name, module)
    for version in VERSIONS:
        patch.setattr(flash_utils, f"is_flash_attn_{version}_available", lambda: True)
        told = flash_utils.FLASH_ATTENTION_COMPATIBILITY_MATRIX[version]
        patch.setitem(told, "general_availability_check", lambda: True)
        patch.setitem(told, "supported_devices", ((lambda: True, "cpu"),))
    # What transformers has loaded so far; the names differ between its versions.
    loaded = [name for name in vars(flash_utils) if name.startswith("_") and name.endswith("_fn")]
    for name in ("_loaded_implementation", *loaded):
        patch.setattr(flash_utils, name, None)
