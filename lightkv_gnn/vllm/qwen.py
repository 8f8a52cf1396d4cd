"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: grids of any size, and positions by row and column.

Of a picture's survivors, no more is known than their number when a prompt gets its positions.  They
are spread over the picture: the n-th of k survivors has the row and column that a token as far
along the picture had, and text goes on after the picture as it did.  Frames of a video are pictures
of their own, each at its own time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor
from vllm.model_executor.models import qwen2_5_vl, qwen2_vl, qwen3_vl
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import PlaceholderRange

from lightkv_gnn.vllm.geometry import GridGeometry
from lightkv_gnn.vllm.plan import Placed, plan_picture, spread_positions
from lightkv_gnn.vllm.tiled import TiledInfo, TiledModel, TiledProcessor, check_family
from lightkv_gnn.vllm.versions import check_call

if TYPE_CHECKING:
    from vllm.model_executor.models.qwen2_vl import Qwen2VLForConditionalGeneration as Stock
else:
    Stock = object

for _model, _processor in (
    (qwen2_vl.Qwen2VLForConditionalGeneration, qwen2_vl.Qwen2VLMultiModalProcessor),
    (qwen2_5_vl.Qwen2_5_VLForConditionalGeneration, qwen2_5_vl.Qwen2_5_VLMultiModalProcessor),
    (qwen3_vl.Qwen3VLForConditionalGeneration, qwen3_vl.Qwen3VLMultiModalProcessor),
):
    check_family(_model, _processor)
    check_call(_model.get_mrope_input_positions, ("self", "input_tokens", "mm_features"))
for _model in (
    qwen2_vl.Qwen2VLForConditionalGeneration,
    qwen2_5_vl.Qwen2_5_VLForConditionalGeneration,
):
    check_call(_model.iter_mm_grid_thw, ("self", "mm_features"))
for _info in (qwen2_vl.Qwen2VLProcessingInfo, qwen3_vl.Qwen3VLProcessingInfo):
    check_call(_info.get_mm_max_tokens_per_item, ("self", "seq_len", "mm_counts"))
    check_call(
        _info.get_num_frames_with_most_features,
        ("self", "seq_len", "mm_counts", "max_frames_per_video"),
    )
check_call(PlaceholderRange.extract_embeds_range, ("self",))


class QwenInfo(TiledInfo):
    """Counts placeholders."""

    geometry_of = GridGeometry

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        """Tokens that a picture or a video leaves at most: each window of a frame rounds up."""
        whole = super().get_mm_max_tokens_per_item(seq_len, mm_counts)
        frames = {
            "image": 1,
            "video": self.get_num_frames_with_most_features(seq_len, mm_counts),
        }
        own, settings = {}, self.settings
        for kind, full in whole.items():
            rounded = frames[kind] * settings.windows**2
            own[kind] = min(full, full - int(full * settings.ratio) + rounded)
        return own


class QwenModel(TiledModel, Stock):
    """Mixed into vLLM's models."""

    geometry_of = GridGeometry

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[Any]
    ) -> tuple[Tensor, int]:
        """Positions of a prompt, `[3, token]`, and how far they are ahead of its length."""
        positions = spread_positions(len(input_tokens), list(self.lightkv_placed(mm_features)))
        return positions, int(positions.max()) + 1 - len(input_tokens)

    def lightkv_placed(self, mm_features: list[Any]) -> Iterator[Placed]:
        """Where pictures and videos lie; frames follow each other."""
        for begin, frames, rows, cols, pace in self.iter_mm_grid_thw(mm_features):
            kept = plan_picture(self.lightkv.settings, *[(rows, cols)] * frames).tiles
            times = tuple(int(frame * pace) for frame in range(frames))
            yield Placed(begin, (rows, cols), kept, times)


class Info2(QwenInfo, qwen2_vl.Qwen2VLProcessingInfo):
    """Of Qwen2-VL."""


class Processor2(TiledProcessor, qwen2_vl.Qwen2VLMultiModalProcessor):
    """Of Qwen2-VL."""


@MULTIMODAL_REGISTRY.register_processor(
    Processor2, info=Info2, dummy_inputs=qwen2_vl.Qwen2VLDummyInputsBuilder
)
class LightKVQwen2VLForConditionalGeneration(QwenModel, qwen2_vl.Qwen2VLForConditionalGeneration):
    """vLLM's Qwen2-VL, with fewer tokens per picture."""


class Info25(QwenInfo, qwen2_5_vl.Qwen2_5_VLProcessingInfo):
    """Of Qwen2.5-VL."""


class Processor25(TiledProcessor, qwen2_5_vl.Qwen2_5_VLMultiModalProcessor):
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


class Processor3(TiledProcessor, qwen3_vl.Qwen3VLMultiModalProcessor):
    """Of Qwen3-VL."""


@MULTIMODAL_REGISTRY.register_processor(
    Processor3, info=Info3, dummy_inputs=qwen3_vl.Qwen3VLDummyInputsBuilder
)
class LightKVQwen3VLForConditionalGeneration(QwenModel, qwen3_vl.Qwen3VLForConditionalGeneration):
    """vLLM's Qwen3-VL, with fewer tokens per picture.

    Its pictures have features for several layers side by side; tokens are compared by those of the
    first, and all are merged alike.  Between the frames of a video stands the time, as text.
    """

    def __init__(self, *, vllm_config: Any, prefix: str = "model") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.lightkv_channels = self.visual_dim

    def lightkv_placed(self, mm_features: list[Any]) -> Iterator[Placed]:
        """Where pictures, and frames of videos, lie."""
        for feature in sorted(mm_features, key=lambda one: one.mm_position.offset):
            tiles = self.lightkv_geometry.tiles(feature.modality, feature.data.get_data())
            spans = feature.mm_position.extract_embeds_range()
            for tile, (begin, last) in zip(tiles, spans, strict=True):
                yield Placed(begin, (tile.rows, tile.cols), (last + 1 - begin,))
