"""Compiles the kernels for a GPU that need not be there, and prints the bytes of each binary and
of its shared memory.

Run in a process of its own, without ``TRITON_INTERPRET``.
"""

from __future__ import annotations

import json
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lightkv_gnn.stage.kernels import greedy, nearest, shares, sums
from lightkv_graphs.greedy import LEAST

TYPES = {
    "mask": "*i1",
    "cosine": "*fp32",
    "distance": "*fp32",
    "heard": "*fp32",
    "urgent": "*fp32",
    "anchored": "*fp32",
    "rank": "*fp32",
    "weight": "*fp32",
    "totals": "*fp32",
    "shares": "*fp32",
    "sources": "*i64",
    "destinations": "*i64",
    "nearest": "*i64",
    "source": "*i64",
    "start": "*i64",
    "text_strides": ("i64",) * 3,
    "vision_strides": ("i64",) * 3,
    "scaling": "fp32",
    "softcap": "fp32",
}
"""Of arguments by name, but for features; the others are int32."""


def kernels_of(dtype: torch.dtype) -> dict[str, tuple[Any, dict[str, Any], dict[str, int]]]:
    """Kernel, what is constant in it, and options, by name.

    Logits are of heads of 256 channels, choices of windows of 1,024 tokens.
    """
    tile = shares.tile_of(256, dtype)
    options = {"num_stages": tile.pop("num_stages")}
    logits = {"least": shares.LEAST, "capped": dtype == torch.bfloat16, **tile}
    slots = {"S": nearest.SOURCES, "D": nearest.DESTINATIONS, "C": nearest.CHANNELS}
    tile = greedy.tile_of(1024)
    warps = {"num_warps": tile.pop("num_warps")}
    window = {"least": LEAST, **tile}
    return {
        "nearest": (nearest._nearest, {"shortest": nearest.SHORTEST, **slots}, {}),
        "weighted_sum": (sums._weighted_sum, {"C": sums.CHANNELS}, {}),
        "coverage": (greedy._greedy, {"centre": False, "anchored": None, **window}, warps),
        "centres": (greedy._greedy, {"centre": True, **window}, warps),
        "totals": (shares._totals, logits, options),
        "shares": (shares._shares, logits, options),
    }


def compiled(dtype: torch.dtype, name: str, version: int) -> tuple[int, int]:
    """Bytes of the binary, and of the shared memory of a program."""
    kernel, constants, options = kernels_of(dtype)[name]
    own = {"bf16": torch.bfloat16, "fp32": torch.float32}
    short = next(short for short, known in own.items() if known == dtype)
    signature: dict[str, Any] = {n: TYPES.get(n, "i32") for n in kernel.arg_names}
    signature |= {n: f"*{short}" for n in ("x", "out", "text", "vision") if n in signature}
    signature |= dict.fromkeys(constants, "constexpr")
    # As launches do: pointers are aligned, which loads in several stages need.
    aligned = {
        (n,): [["tt.divisibility", 16]]
        for n, (kind) in enumerate(signature.values())
        if isinstance(kind, str) and kind.startswith("*")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    done = triton.compile(source, target=GPUTarget("cuda", version, 32), options=options)
    return len(done.asm["cubin"]), done.metadata.shared


if __name__ == "__main__":
    sizes = {
        f"{name} {dtype} sm_{version}": compiled(dtype, name, version)
        for name in kernels_of(torch.float32)
        for dtype, version in ((torch.bfloat16, 90), (torch.float32, 86))
    }
    print(json.dumps(sizes))
