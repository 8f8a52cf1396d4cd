"""The same questions, asked of vLLM and of transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from vllm import LLM, SamplingParams

BLOCK = 32
"""Tokens of a block; attention on a CPU takes no fewer."""

Pictures = Image.Image | Sequence[Image.Image] | Mapping[str, Any]
"""Pictures, or data of several kinds by name."""

Asked = tuple[Pictures, str | list[int]]


@dataclass(frozen=True)
class Answer:
    """What an engine answered.

    Attributes:
        tokens: Of the answer.
        scores: Logarithms of their probabilities.
        prompt: Tokens of the prompt, placeholders included.
        cached: How many of them were in the cache.
    """

    tokens: tuple[int, ...]
    scores: tuple[float, ...]
    prompt: int
    cached: int


def close(found: Answer, expected: Answer) -> None:
    """The same answer, with the same probabilities, to a prompt of the same length."""
    assert (found.tokens, found.prompt) == (expected.tokens, expected.prompt), (found, expected)
    torch.testing.assert_close(
        torch.tensor(found.scores), torch.tensor(expected.scores), atol=2e-4, rtol=0
    )


def by_kind(pictures: Pictures) -> Mapping[str, Any]:
    """As vLLM takes them."""
    return pictures if isinstance(pictures, Mapping) else {"image": pictures}


@dataclass(frozen=True)
class Engine:
    """An engine in this process."""

    llm: LLM

    @property
    def core(self) -> Any:
        return self.llm.llm_engine.engine_core.engine_core

    def ask(
        self, asked: Sequence[Asked], most: int = 40, ends: bool = True, **kwargs: Any
    ) -> list[Answer]:
        """Greedy answers, of all at once; without ends, all as long as they may be."""
        prompts = [
            {
                "prompt" if isinstance(prompt, str) else "prompt_token_ids": prompt,
                "multi_modal_data": by_kind(pictures),
                **kwargs,
            }
            for pictures, prompt in asked
        ]
        greedy = SamplingParams(temperature=0, max_tokens=most, logprobs=0, ignore_eos=not ends)
        outputs = self.llm.generate(prompts, greedy, use_tqdm=False)
        return [
            Answer(
                tuple(output.outputs[0].token_ids),
                tuple(
                    of[token].logprob
                    for token, of in zip(
                        output.outputs[0].token_ids, output.outputs[0].logprobs, strict=True
                    )
                ),
                len(output.prompt_token_ids),
                output.num_cached_tokens or 0,
            )
            for output in outputs
        ]

    def embed(self, picture: Pictures, prompt: str) -> torch.Tensor:
        """What the decoder gets of a picture, `[token, channel]`, made by vLLM's own processor."""
        (found,) = self.embed_each(picture, prompt)
        return found

    def embed_each(self, pictures: Pictures, prompt: str | list[int]) -> list[torch.Tensor]:
        """What the decoder gets of each picture of a prompt; no cache is asked."""
        processor = self.llm.llm_engine.renderer.get_mm_processor()
        made = processor(prompt, processor.info.parse_mm_data(dict(by_kind(pictures))))
        inputs = made["mm_kwargs"].get_data()

        def of(model: Any) -> list[torch.Tensor]:
            with torch.inference_mode():
                return [found.clone() for found in model.embed_multimodal(**inputs)]

        (found,) = self.llm.apply_model(of)
        return [one.clone() for one in found]

    def blocks(self, asked: Asked) -> int:
        """Blocks that a request holds once its prompt is read."""
        self.forget()
        pictures, prompt = asked
        inner = self.llm.llm_engine
        request = inner.add_request(
            "counted",
            {"prompt": prompt, "multi_modal_data": by_kind(pictures)},
            SamplingParams(temperature=0, max_tokens=2, ignore_eos=True),
        )
        inner.step()
        manager = self.core.scheduler.kv_cache_manager
        (running,) = self.core.scheduler.running
        while running.num_output_tokens == 0:
            inner.step()
        held = sum(len(group) for group in manager.get_block_ids(running.request_id))
        inner.abort_request([request or "counted"])
        while inner.has_unfinished_requests():
            inner.step()
        return held

    def forget(self) -> None:
        """Empties all caches."""
        assert self.llm.reset_prefix_cache()
        self.llm.reset_mm_cache()
        self.llm.llm_engine.reset_encoder_cache()

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()


def start(
    checkpoint: Path,
    lightkv: Mapping[str, Any] | None = None,
    architecture: str = "LightKVLlavaForConditionalGeneration",
    **options: Any,
) -> Engine:
    """An engine of a checkpoint; without settings, vLLM as it is."""
    overrides: dict[str, Any] = {}
    if lightkv is not None:
        overrides = {"architectures": [architecture], "lightkv": dict(lightkv)}
    usual = {
        "dtype": "float32",
        "max_model_len": 768,
        "enforce_eager": True,
        "block_size": BLOCK,
        "num_gpu_blocks_override": 128,
        "disable_log_stats": True,
        "hf_overrides": overrides,
    }
    return Engine(LLM(model=str(checkpoint), **{**usual, **options}))


def greedy(model: Any, length: int, most: int, **given: Any) -> Answer:
    """transformers' greedy answer to what is given, a prompt of so many tokens."""
    with torch.no_grad():
        answer = model.generate(
            **given,
            do_sample=False,
            max_new_tokens=most,
            return_dict_in_generate=True,
            output_logits=True,
        )
    tokens = answer.sequences[0, -len(answer.logits) :].tolist()
    scores = [
        logits[0].log_softmax(-1)[token].item()
        for logits, token in zip(answer.logits, tokens, strict=True)
    ]
    return Answer(tuple(tokens), tuple(scores), length, 0)


@dataclass(frozen=True)
class Reference:
    """transformers, on the embeddings of pictures that an engine has made."""

    model: Any
    processor: Any

    def ask(self, asked: Asked, engine: Engine, most: int = 40) -> Answer:
        """A greedy answer."""
        pictures, prompt = asked
        pictures = [pictures] if isinstance(pictures, Image.Image) else list(pictures)
        inputs = self.processor(images=pictures, text=prompt, return_tensors="pt")
        merged = engine.embed_each(pictures, prompt)
        full = self.model.config.image_seq_length
        with torch.no_grad():
            ids, embeddings = self._placed(inputs["input_ids"][0], full, merged)
        mask = torch.ones_like(ids)[None]
        return greedy(self.model, len(ids), most, inputs_embeds=embeddings, attention_mask=mask)

    def _placed(
        self, ids: torch.Tensor, full: int, merged: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The prompt with one placeholder per survivor, and its embeddings."""
        image = self.model.config.image_token_id
        is_image = ids == image
        number = is_image.cumsum(0) - 1
        left = torch.tensor([len(one) for one in merged])[(number // full).clamp(min=0)]
        ids = ids[~is_image | (number % full < left)]
        embeddings = self.model.get_input_embeddings()(ids)[None]
        where = (ids == image)[None, :, None].expand_as(embeddings)
        return ids, embeddings.masked_scatter(where, torch.cat(list(merged)))
