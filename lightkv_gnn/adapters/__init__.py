"""Model families that can be compressed; one file each."""

from lightkv_gnn.adapters import llava
from lightkv_gnn.adapters.base import Adapter, adapter_for, register_adapter

__all__ = ["Adapter", "adapter_for", "llava", "register_adapter"]
