"""What a compressed family's processor does besides vLLM's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vllm.multimodal.parse import DictEmbeddingItems, EmbeddingItems

from lightkv_gnn.vllm.plan import PicturePlan, plan_picture
from lightkv_gnn.vllm.settings import Settings

if TYPE_CHECKING:
    from vllm.multimodal.processing import BaseMultiModalProcessor, BaseProcessingInfo
else:
    BaseMultiModalProcessor = BaseProcessingInfo = object


class CompressedInfo(BaseProcessingInfo):
    """Mixed into a family's information on its processor."""

    @cached_property
    def settings(self) -> Settings:
        """Those that the model was started with."""
        return Settings.of_config(self.get_hf_config())

    def plan(self, *tiles: Any) -> PicturePlan:
        """The plan of a picture of these tiles."""
        return plan_picture(self.settings, *tiles)


class CompressedProcessor(BaseMultiModalProcessor):
    """Mixed into a family's processor.

    What the encoder's cache and the blocks of keys and values are found by is a hash of the
    picture, and of the settings.
    """

    def _get_mm_hashes(self, inputs: Any) -> dict[str, list[str]]:
        settings = self.info.settings
        found = super()._get_mm_hashes(inputs)
        return {
            modality: [settings.sign(own) for own in hashes] for modality, hashes in found.items()
        }

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        """As many placeholders as planned, if the processor made what was planned for."""
        for items in mm_items.values():
            if isinstance(items, DictEmbeddingItems | EmbeddingItems):
                raise ValueError(
                    "image embeddings came in place of a picture, and where their tokens lie is "
                    "not known: expected a picture, or a server without compression"
                )
        for made in out_mm_kwargs.values():
            for number, item in enumerate(made):
                self.check_made(number, item.get_data())
        updates: Sequence[Any] = super()._get_prompt_updates(
            mm_items, hf_processor_mm_kwargs, out_mm_kwargs
        )
        return updates

    def check_made(self, number: int, made: Mapping[str, Any]) -> None:
        """Raises ValueError if a picture was made into something else than was planned for.

        Where the plan is made of the processor's output, nothing can differ.

        Args:
            number: Of the picture in the request.
            made: The processor's output for it.
        """
        return
