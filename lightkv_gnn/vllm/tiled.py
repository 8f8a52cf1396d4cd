"""Families whose tiles are known once the processor has made them: what they have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor
from vllm.multimodal.inputs import MultiModalKwargsItem
from vllm.multimodal.processing import PromptReplacement, PromptUpdateDetails

from lightkv_gnn.vllm.geometry import Geometry
from lightkv_gnn.vllm.merging import merger_of
from lightkv_gnn.vllm.plan import plan_picture, thinned
from lightkv_gnn.vllm.processing import CompressedInfo, CompressedProcessor, taken_texts
from lightkv_gnn.vllm.settings import Settings
from lightkv_gnn.vllm.versions import check_call, check_options

if TYPE_CHECKING:
    from vllm.model_executor.models.interns1 import InternS1ForConditionalGeneration as Stock
else:
    Stock = object

check_call(MultiModalKwargsItem.get_data, ("self",))
check_call(PromptReplacement.resolve, ("self", "item_idx"))
check_call(PromptUpdateDetails, ("full", "is_embed"))


def check_family(model: Any, processor: Any) -> None:
    """Raises UnsupportedEngineError unless a family has the methods that are overridden here."""
    check_call(model.__init__, ("self", "vllm_config", "prefix"))
    check_call(model.embed_multimodal, ("self", "kwargs"))
    updates = ("self", "mm_items", "hf_processor_mm_kwargs", "out_mm_kwargs")
    check_call(processor._get_prompt_updates, updates)


class TiledInfo(CompressedInfo):
    """Mixed into a family's information on its processor."""

    geometry_of: ClassVar[type[Geometry]]

    @cached_property
    def geometry(self) -> Geometry:
        """Of the model."""
        return self.geometry_of(self.get_hf_config())


class TiledProcessor(CompressedProcessor):
    """Mixed into a family's processor: it plans for what the processor made, tile by tile."""

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        updates = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)
        return [
            replace(update, replacement=partial(self._thinned, update, out_mm_kwargs))
            for update in updates
        ]

    def check_made(self, number: int, made: Mapping[str, Any]) -> None:
        """Tiles are scaled to the encoder's size, where it has one."""
        edge = self.info.geometry.edge
        for name, pixels in made.items():
            shape = list(pixels.shape[-2:]) if name.startswith("pixel_values") else [edge, edge]
            if edge and shape != [edge, edge]:
                raise ValueError(
                    f"picture {number} was made into tiles of {shape[0]}x{shape[1]} pixels, and "
                    f"the encoder takes {edge}x{edge}: expected no options of the processor that "
                    "change their size"
                )

    def _thinned(
        self, whole: PromptReplacement, out_mm_kwargs: Any, number: int
    ) -> PromptUpdateDetails:
        """What stands for a picture, without the placeholders of what is merged away."""
        made = out_mm_kwargs[whole.modality][number].get_data()
        planned = self.info.plan(*self.info.geometry.tiles(whole.modality, made))
        full = whole.resolve(number).content
        places = None if full.is_embed is None else full.is_embed(full.full)
        return replace(full, full=thinned(planned, full.full, places))


class TiledModel(Stock):
    """Mixed into a family's model."""

    geometry_of: ClassVar[type[Geometry]]
    lightkv_channels: int | None = None
    supports_tower_connector_lora = False

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        check_options(vllm_config)
        config = vllm_config.model_config.hf_config
        settings = Settings.of_config(config)
        geometry = self.geometry_of(config)
        if geometry.adapter.grid is not None:
            plan_picture(settings, geometry.adapter.grid)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.lightkv, self.lightkv_geometry = merger_of(self, settings), geometry

    def embed_multimodal(self, **kwargs: Any) -> list[Tensor]:
        """The survivors of each picture, or video, `[survivor, channel]`."""
        texts = taken_texts(kwargs)
        whole = super().embed_multimodal(**kwargs) or ()
        pairs = zip(whole, self.lightkv_geometry.each(kwargs), strict=True)
        return [
            self.lightkv(
                features.flatten(0, -2),
                *tiles,
                compared=self.lightkv_channels,
                text=texts.get(number),
            )
            for number, (features, tiles) in enumerate(pairs)
        ]
