"""LLaVA-1.5: one square of patches per picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from vllm.model_executor.models import llava as stock
from vllm.multimodal import MULTIMODAL_REGISTRY

from lightkv_gnn.vllm.libraries import adapters_module
from lightkv_gnn.vllm.merging import merger_of
from lightkv_gnn.vllm.plan import Grid
from lightkv_gnn.vllm.processing import CompressedInfo, CompressedProcessor, taken_texts
from lightkv_gnn.vllm.settings import Settings
from lightkv_gnn.vllm.versions import check_call, check_options

check_call(stock.LlavaForConditionalGeneration.__init__, ("self", "vllm_config", "prefix"))
check_call(stock.LlavaForConditionalGeneration.embed_multimodal, ("self", "kwargs"))
check_call(stock.LlavaProcessingInfo.get_num_image_tokens, ("self", "image_width", "image_height"))
check_call(
    stock.LlavaMultiModalProcessor._get_prompt_updates,
    ("self", "mm_items", "hf_processor_mm_kwargs", "out_mm_kwargs"),
)


def grid_of(config: Any) -> Grid:
    """Rows and columns of every picture's tokens.

    Raises:
        ValueError: The encoder, or what is taken of its tokens, is none that can be merged here.
    """
    vision, strategy = config.vision_config, config.vision_feature_select_strategy
    patches = {"clip_vision_model": "default", "siglip_vision_model": "full"}
    if vision.model_type not in patches:
        raise ValueError(
            f"a LLaVA with the encoder {vision.model_type!r} is not served compressed: expected "
            f"one of {list(patches)}; start it without compression"
        )
    if strategy != patches[vision.model_type]:
        raise ValueError(
            f"vision_feature_select_strategy is {strategy!r}: expected the patches alone, "
            f"{patches[vision.model_type]!r} with this encoder; start it without compression"
        )
    grid: Grid = adapters_module().geometry_of(config).grid
    return grid


class Info(CompressedInfo, stock.LlavaProcessingInfo):
    """Counts placeholders."""

    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
        """Tokens of a picture that the decoder gets."""
        full = super().get_num_image_tokens(image_width=image_width, image_height=image_height)
        planned = self.plan(grid_of(self.get_hf_config()))
        if full != len(planned.layout):
            raise ValueError(
                f"vLLM counts {full} tokens of a picture, and {len(planned.layout)} were planned "
                "for: expected as many; start it without compression"
            )
        return planned.kept


class Processor(CompressedProcessor, stock.LlavaMultiModalProcessor):
    """Plans, checks and hashes."""

    def check_made(self, number: int, made: Mapping[str, Any]) -> None:
        """Every picture is scaled to the encoder's size."""
        side = self.info.get_hf_config().vision_config.image_size
        shape = list(made["pixel_values"].shape)
        if shape[-2:] != [side, side]:
            raise ValueError(
                f"picture {number} was made into {shape[-2]}x{shape[-1]} pixels, and {side}x{side} "
                "were planned for: expected no options of the processor that change its size"
            )


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Info, dummy_inputs=stock.LlavaDummyInputsBuilder
)
class LightKVLlavaForConditionalGeneration(stock.LlavaForConditionalGeneration):
    """vLLM's LLaVA-1.5, with fewer tokens per picture."""

    supports_tower_connector_lora = False

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        check_options(vllm_config)
        config = vllm_config.model_config.hf_config
        grid, settings = grid_of(config), Settings.of_config(config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.lightkv_grid, self.lightkv = grid, merger_of(self, settings)

    def embed_multimodal(self, **kwargs: Any) -> list[Tensor]:
        """The survivors of each picture, `[survivor, channel]`."""
        texts = taken_texts(kwargs)
        pictures = super().embed_multimodal(**kwargs)
        return [
            self.lightkv(features, self.lightkv_grid, text=texts.get(number))
            for number, features in enumerate(pictures)
        ]
