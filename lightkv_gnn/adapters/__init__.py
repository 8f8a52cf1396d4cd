"""Model families that can be compressed: importing this registers them.

``base`` says what an adapter must know, and has the registry; ``encoded`` is what a model encoded;
``counting`` tells a layer's weights.
Families: ``llava`` (a square, or Pixtral's grid), ``llava_next`` (tiles as one grid), ``qwen_vl``
(the picture's own grid), ``sized`` (the same, from sizes), ``square`` (every tile the same square),
``patches`` (the same, encoded one by one), ``views`` (the whole, and crops of another size) and
``queries`` (tokens without a place).  ``unserved`` says why others have none.
"""

from lightkv_gnn.adapters import llava, llava_next, patches, queries, qwen_vl, sized, square, views
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
    "patches",
    "queries",
    "qwen_vl",
    "register_adapter",
    "sized",
    "square",
    "views",
]
