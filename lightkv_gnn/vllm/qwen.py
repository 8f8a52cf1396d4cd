"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: grids of any size, and positions by row and column.

Of a picture's survivors, no more is known than their number when a prompt gets its positions.  They
are spread over the picture: the n-th of k survivors has the row and column that a token as far
along the picture had, and text goes on after the picture as it did.  Videos are not served.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor
from vllm.model_executor.models import qwen2_5_vl, qwen2_vl, qwen3_vl
from vllm.multimodal import MULTIMODAL_REGISTRY

from lightkv_gnn.vllm.merging import PictureMerger
from lightkv_gnn.vllm.plan import Grid, plan_picture, spread_positions
from lightkv_gnn.vllm.processing import CompressedInfo, CompressedProcessor
from lightkv_gnn.vllm.settings import Settings
from lightkv_gnn.vllm.versions import check_call, check_options

if TYPE_CHECKING:
    from vllm.model_executor.models.qwen2_vl import Qwen2VLForConditionalGeneration as Stock
else:
    Stock = object

for _model, _processor in (
    (qwen2_vl.Qwen2VLForConditionalGeneration, qwen2_vl.Qwen2VLMultiModalProcessor),
    (qwen2_5_vl.Qwen2_5_VLForConditionalGeneration, qwen2_5_vl.Qwen2_5_VLMultiModalProcessor),
    (qwen3_vl.Qwen3VLForConditionalGeneration, qwen3_vl.Qwen3VLMultiModalProcessor),
):
    check_call(_model.__init__, ("self", "vllm_config", "prefix"))
    check_call(_model.embed_multimodal, ("self", "kwargs"))
    check_call(_model.get_mrope_input_positions, ("self", "input_tokens", "mm_features"))
    check_call(
        _processor._get_prompt_updates,
        ("self", "mm_items", "hf_processor_mm_kwargs", "out_mm_kwargs"),
    )
check_call(
    qwen2_vl.Qwen2VLProcessingInfo.get_mm_max_tokens_per_item, ("self", "seq_len", "mm_counts")
)


def grid_of(config: Any, patches: Tensor) -> Grid:
    """Rows and columns of a picture's tokens, of its frames, rows and columns of patches, `[3]`."""
    _, rows, cols = patches.tolist()
    side = config.vision_config.spatial_merge_size
    return rows // side, cols // side


class QwenInfo(CompressedInfo):
    """Counts placeholders."""

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Pictures, and no videos."""
        return {"image": None, "video": 0}

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        """Tokens that a picture leaves at most: each window rounds up."""
        full = self.get_max_image_tokens()
        kept = full - int(full * self.settings.ratio) + self.settings.windows**2
        return {"image": min(full, kept)}


class QwenProcessor(CompressedProcessor):
    """Plans and hashes; what is planned for is what the processor made."""

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        updates = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)
        made = out_mm_kwargs.get("image", ())
        return [
            replace(update, replacement=partial(self._shortened, update.replacement, made))
            for update in updates
            if update.modality == "image"
        ]

    def _shortened(
        self, full: Callable[[int], list[int]], made: Sequence[Any], number: int
    ) -> list[int]:
        grid = grid_of(self.info.get_hf_config(), made[number]["image_grid_thw"].data)
        return full(number)[: self.info.plan(grid).kept]


class QwenModel(Stock):
    """Mixed into vLLM's models."""

    lightkv_channels: Any = None
    supports_tower_connector_lora = False

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        check_options(vllm_config)
        settings = Settings.of_config(vllm_config.model_config.hf_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.lightkv = PictureMerger(settings)

    def embed_multimodal(self, **kwargs: Any) -> list[Tensor]:
        """The survivors of each picture, `[survivor, channel]`."""
        pictures = super().embed_multimodal(**kwargs) or ()
        grids = [grid_of(self.config, patches) for patches in kwargs.get("image_grid_thw", ())]
        return [
            self.lightkv(features, grid, compared=self.lightkv_channels)
            for features, grid in zip(pictures, grids, strict=True)
        ]

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[Any]
    ) -> tuple[Tensor, int]:
        """Positions of a prompt, `[3, token]`, and how far they are ahead of its length."""
        pictures = []
        for feature in sorted(mm_features, key=lambda one: one.mm_position.offset):
            grid = grid_of(self.config, feature.data["image_grid_thw"].data)
            kept = plan_picture(self.lightkv.settings, grid).kept
            pictures.append((feature.mm_position.offset, kept, grid))
        positions = spread_positions(len(input_tokens), pictures)
        return positions, int(positions.max()) + 1 - len(input_tokens)


class Info2(QwenInfo, qwen2_vl.Qwen2VLProcessingInfo):
    """Of Qwen2-VL."""


class Processor2(QwenProcessor, qwen2_vl.Qwen2VLMultiModalProcessor):
    """Of Qwen2-VL."""


@MULTIMODAL_REGISTRY.register_processor(
    Processor2, info=Info2, dummy_inputs=qwen2_vl.Qwen2VLDummyInputsBuilder
)
class LightKVQwen2VLForConditionalGeneration(QwenModel, qwen2_vl.Qwen2VLForConditionalGeneration):
    """vLLM's Qwen2-VL, with fewer tokens per picture."""


class Info25(QwenInfo, qwen2_5_vl.Qwen2_5_VLProcessingInfo):
    """Of Qwen2.5-VL."""


class Processor25(QwenProcessor, qwen2_5_vl.Qwen2_5_VLMultiModalProcessor):
    """Of Qwen2.5-VL."""


@MULTIMODAL_REGISTRY.register_processor(
    Processor25, info=Info25, dummy_inputs=qwen2_5_vl.Qwen2_5_VLDummyInputsBuilder
)
class LightKVQwen2_5_VLForConditionalGeneration(  # noqa: N801
    QwenModel, qwen2_5_vl.Qwen2_5_VLForConditionalGeneration
):
    """vLLM's Qwen2.5-VL, with fewer tokens per picture."""


class Info3(QwenInfo, qwen3_vl.Qwen3VLProcessingInfo):
    """Of Qwen3-VL."""


class Processor3(QwenProcessor, qwen3_vl.Qwen3VLMultiModalProcessor):
    """Of Qwen3-VL."""


@MULTIMODAL_REGISTRY.register_processor(
    Processor3, info=Info3, dummy_inputs=qwen3_vl.Qwen3VLDummyInputsBuilder
)
class LightKVQwen3VLForConditionalGeneration(QwenModel, qwen3_vl.Qwen3VLForConditionalGeneration):
    """vLLM's Qwen3-VL, with fewer tokens per picture.

    Its pictures have features for several layers side by side; tokens are compared by those of the
    first, and all are merged alike.
    """

    def __init__(self, *, vllm_config: Any, prefix: str = "model") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.lightkv_channels = self.visual_dim
