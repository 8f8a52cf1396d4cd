"""LLaVA-NeXT and LLaVA-OneVision: the whole picture, then its tiles put together in true geometry.

Newlines, which end the rows, have no place in the picture and are never merged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from vllm.model_executor.models import llava_next, llava_onevision
from vllm.multimodal import MULTIMODAL_REGISTRY

from lightkv_gnn.vllm.geometry import NextGeometry
from lightkv_gnn.vllm.llava import grid_of
from lightkv_gnn.vllm.tiled import TiledInfo, TiledModel, TiledProcessor, check_family
from lightkv_gnn.vllm.versions import check_call

check_family(llava_next.LlavaNextForConditionalGeneration, llava_next.LlavaNextMultiModalProcessor)
check_family(
    llava_onevision.LlavaOnevisionForConditionalGeneration,
    llava_onevision.LlavaOnevisionMultiModalProcessor,
)
for _info in (
    llava_next.LlavaNextProcessingInfo,
    llava_onevision.LlavaOnevisionProcessingInfo,
):
    check_call(_info.get_mm_max_tokens_per_item, ("self", "seq_len", "mm_counts"))
check_call(
    llava_onevision.LlavaOnevisionProcessingInfo.get_num_frames_with_most_features,
    ("self", "seq_len", "mm_counts"),
)

SHRUNK = "anyres_max_9"
"""How vLLM shrinks large grids, whatever the configuration says."""


class NextInfo(TiledInfo):
    """Reckons with every way to cut a picture."""

    geometry_of = NextGeometry

    @property
    def most(self) -> int:
        """Tokens that a picture leaves at most."""
        return cast(NextGeometry, self.geometry).most(self.settings)


class Info(NextInfo, llava_next.LlavaNextProcessingInfo):
    """Of LLaVA-NeXT."""

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        """Tokens that a picture leaves at most."""
        return {"image": self.most}


class Processor(TiledProcessor, llava_next.LlavaNextMultiModalProcessor):
    """Of LLaVA-NeXT."""


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Info, dummy_inputs=llava_next.LlavaDummyInputsBuilder
)
class LightKVLlavaNextForConditionalGeneration(
    TiledModel, llava_next.LlavaNextForConditionalGeneration
):
    """vLLM's LLaVA-NeXT, with fewer tokens per picture."""

    geometry_of = NextGeometry

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        grid_of(vllm_config.model_config.hf_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)


class OnevisionInfo(NextInfo, llava_onevision.LlavaOnevisionProcessingInfo):
    """Of LLaVA-OneVision."""

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        """Tokens that a picture leaves at most, and the longest film that is reckoned with."""
        frames = self.get_num_frames_with_most_features(seq_len, mm_counts)
        film = self.geometry.tiles("video", {"pixel_values_videos": range(frames)})
        return {"image": self.most, "video": self.plan(*film).kept}


class OnevisionProcessor(TiledProcessor, llava_onevision.LlavaOnevisionMultiModalProcessor):
    """Of LLaVA-OneVision."""


@MULTIMODAL_REGISTRY.register_processor(
    OnevisionProcessor,
    info=OnevisionInfo,
    dummy_inputs=llava_onevision.LlavaOnevisionDummyInputsBuilder,
)
class LightKVLlavaOnevisionForConditionalGeneration(
    TiledModel, llava_onevision.LlavaOnevisionForConditionalGeneration
):
    """vLLM's LLaVA-OneVision, with fewer tokens per picture, and per frame of a video."""

    geometry_of = NextGeometry

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        config = vllm_config.model_config.hf_config
        grid_of(config)
        if config.vision_aspect_ratio != SHRUNK:
            raise ValueError(
                f"vision_aspect_ratio is {config.vision_aspect_ratio!r}: expected {SHRUNK!r}, as "
                "vLLM shrinks large pictures; start it without compression"
            )
        super().__init__(vllm_config=vllm_config, prefix=prefix)
