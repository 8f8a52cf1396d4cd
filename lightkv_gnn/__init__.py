"""Prompt-guided message passing that makes an LVLM's vision KV cache lighter."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = {
    "graphs": "lightkv_graphs",
    **{name: f"lightkv_gnn.{name}" for name in ("guidance", "messages", "official")},
}
_HOMES = {
    "adapters": ("Adapter", "Encoded", "VisionTokens", "adapter_for", "register_adapter"),
    "compressor": ("Compressed", "TokenCompressor"),
    "config": ("LightKVConfig",),
    "errors": (
        "ImageTokensError",
        "ScheduleError",
        "UnsupportedInputError",
        "UnsupportedModelError",
    ),
    "forecast": ("plan_prefill",),
    "ledger": ("LayerCost", "LayerRow", "Ledger"),
    "messages": ("MergeConv", "destination_only", "guided_mean", "mass_mean", "mean"),
    "pictures": ("seen_tiles",),
    "schedule": ("Stage",),
    "session": ("Handle", "attach"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for: the command line starts in no time."""
    if name in _MODULES:
        value = import_module(_MODULES[name])
    elif name in _HOME_OF:
        value = getattr(import_module(f"lightkv_gnn.{_HOME_OF[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
