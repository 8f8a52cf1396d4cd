"""Prompt-guided message passing that makes an LVLM's vision KV cache lighter."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import lightkv_graphs as graphs
    from lightkv_gnn.adapters import (
        Adapter,
        Encoded,
        GenericAdapter,
        VisionTokens,
        adapter_for,
        register_adapter,
    )
    from lightkv_gnn.config import LightKVConfig
    from lightkv_gnn.costs.ledger import LayerCost, LayerRow, Ledger
    from lightkv_gnn.costs.schedule import Stage
    from lightkv_gnn.errors import (
        ImageTokensError,
        ScheduleError,
        UnsupportedInputError,
        UnsupportedModelError,
    )
    from lightkv_gnn.planning.prefill import plan_prefill
    from lightkv_gnn.session.attach import Handle, attach, detach
    from lightkv_gnn.session.pictures import seen_tiles
    from lightkv_gnn.session.results import Results, Watch
    from lightkv_gnn.stage import guidance, messages, official
    from lightkv_gnn.stage.compressor import Compressed, TokenCompressor
    from lightkv_gnn.stage.messages import MergeConv, destination_only, guided_mean, mass_mean, mean
    from lightkv_graphs import MergeTrace

try:
    __version__ = version("lightkv-gnn")
except PackageNotFoundError:  # a bare checkout on the path
    __version__ = "0+unknown"

__all__ = [
    "Adapter",
    "Compressed",
    "Encoded",
    "GenericAdapter",
    "Handle",
    "ImageTokensError",
    "LayerCost",
    "LayerRow",
    "Ledger",
    "LightKVConfig",
    "MergeConv",
    "MergeTrace",
    "Results",
    "ScheduleError",
    "Stage",
    "TokenCompressor",
    "UnsupportedInputError",
    "UnsupportedModelError",
    "VisionTokens",
    "Watch",
    "adapter_for",
    "attach",
    "destination_only",
    "detach",
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
    **{name: f"lightkv_gnn.stage.{name}" for name in ("guidance", "messages", "official")},
}
_HOMES = {
    "adapters": (
        "Adapter",
        "Encoded",
        "GenericAdapter",
        "VisionTokens",
        "adapter_for",
        "register_adapter",
    ),
    "config": ("LightKVConfig",),
    "costs.ledger": ("LayerCost", "LayerRow", "Ledger"),
    "costs.schedule": ("Stage",),
    "errors": (
        "ImageTokensError",
        "ScheduleError",
        "UnsupportedInputError",
        "UnsupportedModelError",
    ),
    "planning.prefill": ("plan_prefill",),
    "session.attach": ("Handle", "attach", "detach"),
    "session.results": ("Results", "Watch"),
    "session.pictures": ("seen_tiles",),
    "stage.compressor": ("Compressed", "TokenCompressor"),
    "stage.messages": ("MergeConv", "destination_only", "guided_mean", "mass_mean", "mean"),
}
_HOME_OF = {
    "MergeTrace": "lightkv_graphs",
    **{name: f"lightkv_gnn.{module}" for module, names in _HOMES.items() for name in names},
}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for: the command line starts in no time."""
    if name in _MODULES:
        value = import_module(_MODULES[name])
    elif name in _HOME_OF:
        value = getattr(import_module(_HOME_OF[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
