"""InternVL: tiles of a picture and a thumbnail, or frames, all of them the same square."""

from __future__ import annotations

from typing import Any

from vllm.model_executor.models import interns1, internvl
from vllm.multimodal import MULTIMODAL_REGISTRY

from lightkv_gnn.vllm.geometry import ChatGeometry, SquareGeometry
from lightkv_gnn.vllm.tiled import TiledInfo, TiledModel, TiledProcessor, check_family

check_family(interns1.InternS1ForConditionalGeneration, interns1.InternS1MultiModalProcessor)
check_family(internvl.InternVLChatModel, internvl.InternVLMultiModalProcessor)


class InternModel(TiledModel):
    """Mixed into vLLM's models."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        rows, cols = self.lightkv_geometry.adapter.grid
        if rows * cols != self.num_image_token:
            raise ValueError(
                f"a tile has {self.num_image_token} tokens, and image_seq_length counts another "
                f"number, or no square: expected {rows}x{cols}"
            )


class Info(TiledInfo, interns1.InternS1ProcessingInfo):
    """In the format of transformers."""

    geometry_of = SquareGeometry


class Processor(TiledProcessor, interns1.InternS1MultiModalProcessor):
    """In the format of transformers."""


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Info, dummy_inputs=interns1.InternS1DummyInputsBuilder
)
class LightKVInternVLForConditionalGeneration(
    InternModel, interns1.InternS1ForConditionalGeneration
):
    """vLLM's InternVL in the format of transformers, with fewer tokens per tile."""

    geometry_of = SquareGeometry


class ChatInfo(TiledInfo, internvl.InternVLProcessingInfo):
    """In OpenGVLab's own format."""

    geometry_of = ChatGeometry


class ChatProcessor(TiledProcessor, internvl.InternVLMultiModalProcessor):
    """In OpenGVLab's own format."""


@MULTIMODAL_REGISTRY.register_processor(
    ChatProcessor, info=ChatInfo, dummy_inputs=internvl.InternVLDummyInputsBuilder
)
class LightKVInternVLChatModel(InternModel, internvl.InternVLChatModel):
    """vLLM's InternVL in OpenGVLab's own format, with fewer tokens per tile."""

    geometry_of = ChatGeometry
