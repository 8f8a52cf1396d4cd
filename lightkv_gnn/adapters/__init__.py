"""Model families that can be compressed: importing this registers them.

``base`` says what an adapter must know, and has the registry; ``encoded`` is what a model encoded;
``counting`` tells a layer's weights.
``choice`` tells which adapter a model gets, ``refusals`` what is said where there is none, and
``notices`` what is taken for granted.
Families: ``llava`` (a square, or Pixtral's grid), ``llava_next`` (tiles as one grid), ``qwen_vl``
(the picture's own grid), ``grids`` and ``packed`` (the same, with differences), ``sized`` (from
sizes), ``square`` (every tile the same square),
``patches`` (the same, encoded one by one), ``views`` (the whole, and crops of another size) and
``queries`` (tokens without a place); ``served`` has words for all.  ``unserved`` says why others
have none, and ``generic`` is what looks for everything itself.
"""

from lightkv_gnn.adapters import (
    grids,
    llava,
    llava_next,
    packed,
    patches,
    queries,
    qwen_vl,
    sized,
    square,
    views,
)
from lightkv_gnn.adapters.base import Adapter, families, register_adapter
from lightkv_gnn.adapters.choice import AUTO, AdapterChoice, adapter_for, check_name, geometry_of
from lightkv_gnn.adapters.encoded import Encoded, VisionTokens
from lightkv_gnn.adapters.generic import GenericAdapter
from lightkv_gnn.adapters.refusals import no_adapter

__all__ = [
    "AUTO",
    "Adapter",
    "AdapterChoice",
    "Encoded",
    "GenericAdapter",
    "VisionTokens",
    "adapter_for",
    "check_name",
    "families",
    "geometry_of",
    "grids",
    "llava",
    "llava_next",
    "no_adapter",
    "packed",
    "patches",
    "queries",
    "qwen_vl",
    "register_adapter",
    "sized",
    "square",
    "views",
]
