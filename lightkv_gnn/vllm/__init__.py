"""A plugin of vLLM: pictures' tokens are merged before the decoder, for all layers alike.

vLLM finds :func:`register` through the entry point ``vllm.general_plugins``.  Nothing changes until
a model is started with an architecture of :data:`ARCHITECTURES` and with settings, ``--hf-overrides
'{"architectures": ["LightKVLlavaForConditionalGeneration"], "lightkv": {"retention": 0.25}}'``.

``settings`` says how much is kept, ``plan`` counts the placeholders of a picture before any is
computed, and ``merging`` computes the survivors; ``libraries`` imports what they need when they
need it.  ``processing`` and a module per kind of family, ``llava`` and ``qwen``, fit it into vLLM.
``serving`` says how vLLM's server is started.  ``versions`` checks that it is the vLLM that they
know; ``refusing`` is found in their place where it is not.
"""

from __future__ import annotations

import logging

from lightkv_gnn.vllm.settings import Settings
from lightkv_gnn.vllm.versions import UnsupportedEngineError, check_engine

__all__ = ["ARCHITECTURES", "Settings", "UnsupportedEngineError", "check_engine", "register"]

ARCHITECTURES = {
    "LlavaForConditionalGeneration": (
        "LightKVLlavaForConditionalGeneration",
        "lightkv_gnn.vllm.llava",
    ),
    "Qwen2VLForConditionalGeneration": (
        "LightKVQwen2VLForConditionalGeneration",
        "lightkv_gnn.vllm.qwen",
    ),
    "Qwen2_5_VLForConditionalGeneration": (
        "LightKVQwen2_5_VLForConditionalGeneration",
        "lightkv_gnn.vllm.qwen",
    ),
    "Qwen3VLForConditionalGeneration": (
        "LightKVQwen3VLForConditionalGeneration",
        "lightkv_gnn.vllm.qwen",
    ),
}
"""Of each architecture that is served: its name when compressed, and the module that has it."""


def register() -> None:
    """Makes the compressed architectures known to vLLM; called once in each of its processes.

    With a vLLM that it was not made for, the reason is logged, and a model that is started with
    one of the architectures is refused, for that reason; all others run as they would.
    """
    from vllm import ModelRegistry

    home = None
    try:
        check_engine()
    except UnsupportedEngineError as error:
        logging.getLogger("vllm.lightkv_gnn").warning("lightkv-gnn is not available: %s", error)
        home = "lightkv_gnn.vllm.refusing:Refused"
    for name, module in ARCHITECTURES.values():
        ModelRegistry.register_model(name, home or f"{module}:{name}")
