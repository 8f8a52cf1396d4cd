"""Compiles the kernels for a GPU that need not be there, and prints the size of each binary.

Run in a process of its own, without ``TRITON_INTERPRET``.
"""

from __future__ import annotations

import json
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lightkv_gnn.kernels import nearest, shares, sums

HOPPER = GPUTarget("cuda", 90, 32)

TYPES = {
    "x": "*bf16",
    "out": "*bf16",
    "text": "*bf16",
    "vision": "*bf16",
    "mask": "*i1",
    "cosine": "*fp32",
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
"""Of arguments by name; the others are int32."""

LOGITS = {"least": shares.LEAST, "capped": True, "T": shares.TEXT, "V": shares.VISION, "C": 128}

KERNELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "nearest": (
        nearest._nearest,
        {
            "shortest": nearest.SHORTEST,
            "S": nearest.SOURCES,
            "D": nearest.DESTINATIONS,
            "C": nearest.CHANNELS,
        },
    ),
    "weighted_sum": (sums._weighted_sum, {"C": sums.CHANNELS}),
    "totals": (shares._totals, LOGITS),
    "shares": (shares._shares, LOGITS),
}
"""With what is constant in them."""

if __name__ == "__main__":
    sizes = {}
    for name, (kernel, constants) in KERNELS.items():
        signature = {
            n: "constexpr" if n in constants else TYPES.get(n, "i32") for n in kernel.arg_names
        }
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        sizes[name] = len(triton.compile(source, target=HOPPER).asm["cubin"])
    print(json.dumps(sizes))
