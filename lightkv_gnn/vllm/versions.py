"""Which vLLM this was made for, and whether the one at hand is it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

from lightkv_gnn.vllm.settings import Settings

OLDEST, BELOW = (0, 32), (0, 34)
"""Versions that it is meant for, (major, minor); its tests run with 0.32."""
PROCESSOR = {
    "apply": ("inputs", "timing_ctx"),
    "get_dummy_inputs": ("seq_len", "mm_counts", "mm_options"),
    "_get_mm_hashes": ("inputs",),
    "_get_cache_missing_processor_kwargs": ("inputs", "mm_is_cached"),
    "_apply_hf_processor_main": ("mm_items", "hf_kwargs"),
    "_get_mm_fields_config": ("hf_inputs", "hf_processor_mm_kwargs"),
    "_get_mm_prompt_updates": ("mm_items", "hf_processor_mm_kwargs", "out_mm_kwargs"),
}
"""Methods of vLLM's processor that are overridden, and what they take."""


class UnsupportedEngineError(ImportError):
    """The installed vLLM is not one that compression was made for."""


def check_engine() -> None:
    """Raises UnsupportedEngineError unless vLLM has the version and the seams that are relied on.

    None of vLLM's models are imported; each family checks its own, when vLLM imports it.
    """
    import vllm
    from vllm import ModelRegistry
    from vllm.multimodal.processing import BaseMultiModalProcessor

    check_version(vllm.__version__)
    check_call(ModelRegistry.register_model, ("model_arch", "model_cls"))
    for name, parameters in PROCESSOR.items():
        check_call(getattr(BaseMultiModalProcessor, name), ("self", *parameters))


def check_version(version: str) -> None:
    """Raises UnsupportedEngineError for a version outside of :data:`OLDEST` to :data:`BELOW`."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or not OLDEST <= (int(found[1]), int(found[2])) < BELOW:
        raise UnsupportedEngineError(
            f"vLLM is {version}: expected >={_dotted(OLDEST)},<{_dotted(BELOW)}, of which "
            "lightkv_gnn.vllm overrides methods; install such a vLLM, or a lightkv-gnn that knows "
            "yours"
        )


def check_call(function: Callable[..., Any], parameters: Sequence[str]) -> None:
    """Raises UnsupportedEngineError unless a method of vLLM has these parameters, by name."""
    found = tuple(inspect.signature(function).parameters)
    if found != tuple(parameters):
        name = f"{function.__module__}.{function.__qualname__}"
        raise UnsupportedEngineError(
            f"vLLM's {name} takes {list(found)}: expected {list(parameters)}, as in "
            f"{_dotted(OLDEST)}; install a vLLM >={_dotted(OLDEST)},<{_dotted(BELOW)}"
        )


def check_options(vllm_config: Any) -> None:
    """Raises ValueError for options of vLLM that go past what a compressed model overrides."""
    if vllm_config.compilation_config.cudagraph_mm_encoder:
        raise ValueError(
            "cudagraph_mm_encoder replays the encoder and leaves out what merges its tokens: "
            "expected it to be off"
        )
    if vllm_config.model_config.get_multimodal_config().is_multimodal_pruning_enabled():
        raise ValueError(
            "video_pruning_rate is set: expected it to be off, where tokens are merged"
        )
    settings = Settings.of_config(vllm_config.model_config.hf_config)
    if settings.guided and vllm_config.model_config.get_multimodal_config().mm_encoder_only:
        raise ValueError(
            f"guidance is {settings.guidance!r}, and mm_encoder_only leaves out the layer that it "
            "comes from: expected guidance 'none', or the whole model"
        )
    if callable(settings.guidance) and vllm_config.cache_config.enable_prefix_caching:
        raise ValueError(
            f"guidance is {settings.guidance!r}, which has no name to be told from others by in "
            "the prefix cache: expected a function of a module, such as 'my_module:my_guidance', "
            "or enable_prefix_caching=False"
        )


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
