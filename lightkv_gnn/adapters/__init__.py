"""Model families that can be compressed: importing this registers them."""

from lightkv_gnn.adapters import llava, llava_next, qwen_vl, square
from lightkv_gnn.adapters.base import Adapter, adapter_for, families, register_adapter
from lightkv_gnn.adapters.encoded import Encoded, VisionTokens

__all__ = [
    "Adapter",
    "Encoded",
    "VisionTokens",
    "adapter_for",
    "families",
    "llava",
    "llava_next",
    "qwen_vl",
    "register_adapter",
    "square",
]
