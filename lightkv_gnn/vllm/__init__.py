"""A plugin of vLLM: pictures' tokens are merged before the decoder, for all layers alike.

vLLM finds :func:`register` through the entry point ``vllm.general_plugins``.  Nothing changes until
a model is started with an architecture of :data:`ARCHITECTURES` and with settings, ``--hf-overrides
'{"architectures": ["LightKVLlavaForConditionalGeneration"], "lightkv": {"retention": 0.25}}'``.

``settings`` says how much is kept, ``geometry`` which tiles a picture has, ``plan`` counts its
placeholders before any is computed, and ``merging`` computes the survivors; ``libraries`` imports
what they need when they need it.  ``processing``, ``tiled`` and a module per kind of family,
``llava``, ``llava_next``, ``qwen`` and ``internvl``, fit it into vLLM.  Where the prompt guides,
``guidance`` says by what, ``prompts`` finds its text, and ``scout`` is the layer that hears it.
``serving`` says how vLLM's server is started.  ``versions`` checks that it is the vLLM that they
know, ``refusing`` is found in their place where it is not, and ``unused`` refuses settings that no
compressed architecture would read.
"""

from __future__ import annotations

import logging
from functools import partial

from lightkv_gnn.vllm.settings import Settings
from lightkv_gnn.vllm.unused import refuse_unused
from lightkv_gnn.vllm.versions import UnsupportedEngineError, check_engine

__all__ = ["ARCHITECTURES", "Settings", "UnsupportedEngineError", "check_engine", "register"]

_MODULES = {
    "LlavaForConditionalGeneration": "llava",
    "LlavaNextForConditionalGeneration": "llava_next",
    "LlavaOnevisionForConditionalGeneration": "llava_next",
    "Qwen2VLForConditionalGeneration": "qwen",
    "Qwen2_5_VLForConditionalGeneration": "qwen",
    "Qwen3VLForConditionalGeneration": "qwen",
    "InternVLForConditionalGeneration": "internvl",
    "InternVLChatModel": "internvl",
}

ARCHITECTURES = {
    name: (f"LightKV{name}", f"lightkv_gnn.vllm.{module}") for name, module in _MODULES.items()
}
"""Of each architecture that is served: its name when compressed, and the module that has it."""


def register() -> None:
    """Makes the compressed architectures known to vLLM; called once in each of its processes.

    With a vLLM that it was not made for, the reason is logged, and a model that is started with
    one of the architectures is refused, for that reason; all others run as they would, without
    settings.
    """
    from vllm import ModelRegistry

    home = None
    served = {name: compressed for name, (compressed, _) in ARCHITECTURES.items()}
    for step in (check_engine, partial(refuse_unused, served)):
        try:
            step()
        except UnsupportedEngineError as error:
            logging.getLogger("vllm.lightkv_gnn").warning("lightkv-gnn is not available: %s", error)
            home = "lightkv_gnn.vllm.refusing:Refused"
    for name, module in ARCHITECTURES.values():
        ModelRegistry.register_model(name, home or f"{module}:{name}")
