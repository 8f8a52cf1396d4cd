"""What a compressed family's processor does besides vLLM's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import DictEmbeddingItems, EmbeddingItems

from lightkv_gnn.vllm.plan import PicturePlan, plan_picture
from lightkv_gnn.vllm.prompts import LONGEST, Prompts, Text, turn_ends
from lightkv_gnn.vllm.settings import Settings

if TYPE_CHECKING:
    from vllm.multimodal.processing import BaseMultiModalProcessor, BaseProcessingInfo
    from vllm.multimodal.processing.inputs import ProcessorInputs
else:
    BaseMultiModalProcessor = BaseProcessingInfo = object

GUIDES = "lightkv_guides"
"""Option of a request that texts go along as, from its prompt to its pictures."""
TEXT = "lightkv_text_"
"""Field of a picture, with the modality behind it: the tokens that guide it."""


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
    picture, of the settings, and of the text that guides the picture, if any does.  That text goes
    along with the options of the request, and comes out as one more field of the picture.
    """

    @cached_property
    def prompts(self) -> Prompts:
        """How the model's prompts are read."""
        tokenizer = self.info.get_tokenizer()
        ends = turn_ends(self.info.get_hf_processor(), tokenizer)
        tokens = {kind: self._placeholder(kind, tokenizer) for kind in self.info.allowed_mm_limits}
        known = {kind: token for kind, token in tokens.items() if token is not None}
        return Prompts(known, ends, self.info.ctx.model_config.get_vocab_size())

    def _placeholder(self, kind: str, tokenizer: Any) -> int | None:
        """The token that stands for one item in a prompt; None if there is no such token."""
        named: int | None = getattr(self.info.get_hf_config(), f"{kind}_token_id", None)
        text = self.dummy_inputs.get_dummy_text({kind: 1})
        written = tokenizer.encode(text, add_special_tokens=False)
        if named in written:
            return named
        return written[0] if len(written) == 1 else None

    def apply(self, inputs: ProcessorInputs, timing_ctx: Any) -> Any:
        """Finds the text that guides each picture, and processes them."""
        kwargs, _ = _parted(inputs.hf_processor_mm_kwargs)  # none that came with the request
        if self.info.settings.guided:
            counts = inputs.mm_data_items.get_all_counts()
            kwargs[GUIDES] = self.prompts.guides(inputs.prompt, counts)
        return super().apply(replace(inputs, hf_processor_mm_kwargs=kwargs), timing_ctx)

    def get_dummy_inputs(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any
    ) -> ProcessorInputs:
        """With as much text as guides at most, so that memory is measured with it."""
        inputs = super().get_dummy_inputs(seq_len, mm_counts, mm_options)
        if self.info.settings.guided:
            inputs.prompt = [*inputs.prompt, *[0] * LONGEST]
        return inputs

    def _get_mm_hashes(self, inputs: ProcessorInputs) -> dict[str, list[str]]:
        plain, guides = _parted(inputs.hf_processor_mm_kwargs)
        found = super()._get_mm_hashes(replace(inputs, hf_processor_mm_kwargs=plain))
        sign = self.info.settings.sign
        return {
            modality: list(map(sign, hashes, guides.get(modality, [None] * len(hashes))))
            for modality, hashes in found.items()
        }

    def _get_cache_missing_processor_kwargs(
        self, inputs: ProcessorInputs, mm_is_cached: Mapping[str, list[bool]]
    ) -> Mapping[str, object]:
        plain, guides = _parted(inputs.hf_processor_mm_kwargs)
        plain_inputs = replace(inputs, hf_processor_mm_kwargs=plain)
        kwargs = super()._get_cache_missing_processor_kwargs(plain_inputs, mm_is_cached)
        missing = {
            modality: [
                text for text, hit in zip(texts, mm_is_cached[modality], strict=True) if not hit
            ]
            for modality, texts in guides.items()
        }
        return {**kwargs, GUIDES: missing} if guides else kwargs

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        plain, guides = _parted(hf_kwargs)
        made = super()._apply_hf_processor_main(mm_items, plain)
        for modality, texts in guides.items():
            if texts:
                made[TEXT + modality] = [
                    torch.tensor(text, dtype=torch.int64, device="cpu") for text in texts
                ]
        return made

    def _get_mm_fields_config(
        self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, Any]:
        plain, guides = _parted(hf_processor_mm_kwargs)
        fields = dict(super()._get_mm_fields_config(hf_inputs, plain))
        for modality in guides:
            fields[TEXT + modality] = MultiModalFieldConfig.batched(modality)
        return fields

    def _get_mm_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Any:
        plain, _ = _parted(hf_processor_mm_kwargs)
        return super()._get_mm_prompt_updates(mm_items, plain, out_mm_kwargs)

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


def taken_texts(kwargs: dict[str, Any]) -> dict[int, Tensor]:
    """The texts that guide the items of a model's call, taken out of its arguments.

    Args:
        kwargs: Arguments of ``embed_multimodal``; of each modality, one text for each item.

    Returns:
        By the number of the item; none if no prompt guides.
    """
    names = [name for name in kwargs if name.startswith(TEXT)]
    return dict(enumerate(text for name in names for text in kwargs.pop(name)))


def _parted(kwargs: Mapping[str, object]) -> tuple[dict[str, object], dict[str, list[Text]]]:
    """A request's options, and the texts that go along with them."""
    plain = dict(kwargs)
    guides: Any = plain.pop(GUIDES, {})
    return plain, guides
