"""Prompt-guided message passing that makes an LVLM's vision KV cache lighter."""

from importlib.metadata import PackageNotFoundError, version

import lightkv_graphs as graphs
from lightkv_gnn import guidance, messages, official
from lightkv_gnn.adapters import Adapter, Encoded, VisionTokens, adapter_for, register_adapter
from lightkv_gnn.compressor import Compressed, TokenCompressor
from lightkv_gnn.config import LightKVConfig
from lightkv_gnn.errors import (
    ImageTokensError,
    ScheduleError,
    UnsupportedInputError,
    UnsupportedModelError,
)
from lightkv_gnn.forecast import plan_prefill
from lightkv_gnn.ledger import LayerCost, LayerRow, Ledger
from lightkv_gnn.messages import MergeConv, destination_only, guided_mean, mass_mean, mean
from lightkv_gnn.pictures import seen_tiles
from lightkv_gnn.schedule import Stage
from lightkv_gnn.session import Handle, attach

try:
    __version__ = version("lightkv-gnn")
except PackageNotFoundError:  # a bare checkout on the path
    __version__ = "0+unknown"

__all__ = [
    "Adapter",
    "Compressed",
    "Encoded",
    "Handle",
    "ImageTokensError",
    "LayerCost",
    "LayerRow",
    "Ledger",
    "LightKVConfig",
    "MergeConv",
    "ScheduleError",
    "Stage",
    "TokenCompressor",
    "UnsupportedInputError",
    "UnsupportedModelError",
    "VisionTokens",
    "adapter_for",
    "attach",
    "destination_only",
    "graphs",
    "guidance",
    "guided_mean",
    "mass_mean",
    "mean",
    "messages",
    "official",
    "plan_prefill",
    "register_adapter",
    "seen_tiles",
]
