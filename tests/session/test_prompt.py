"""Only the prompt guides: an answer in the same call does not, where it is known which is which."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from threading import Thread
from typing import Any

import pytest
import torch
from marks import attentions
from models import CACHE, IMAGE_TOKEN, batch, greedy, left_untouched, near, prompt, tiny_llava
from torch import Tensor

import lightkv_gnn as lk

STAGES = [lk.Stage(0, 2, 0.5), lk.Stage(2, 1, 0.5)]
PROMPTS = (prompt(2, "image", 5), prompt(1, "image", 9, seed=1))
LENGTHS = [23, 26]
ANSWER = 6
CONFIGS = {
    "the default": lk.LightKVConfig(STAGES),
    "vision to text": lk.LightKVConfig(STAGES, guidance="vision_to_text"),
    "last token": lk.LightKVConfig(STAGES, guidance="last_token"),
    "coverage, mass": lk.LightKVConfig(STAGES, matcher="coverage_matching", attention="mass"),
}
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)

Said = Callable[[lk.Handle, dict[str, Any]], AbstractContextManager[None]]


def with_answer(seed: int, padding: str = "left") -> dict[str, Any]:
    """The prompts, each with an answer behind it, and labels."""
    generator = torch.Generator().manual_seed(seed)
    inputs = batch(
        *(
            (ids + torch.randint(3, 119, (ANSWER,), generator=generator).tolist(), images)
            for ids, images in PROMPTS
        ),
        padding=padding,
    )
    mask, labels = inputs["attention_mask"].bool(), inputs["input_ids"].clone()
    place = mask.cumsum(1)
    answer = mask & (place > torch.tensor(LENGTHS)[:, None])
    return {**inputs, "labels": labels.masked_fill(~answer, -100)}


def by_labels(handle: lk.Handle, inputs: dict[str, Any]) -> AbstractContextManager[None]:
    return nullcontext()


def by_lengths(handle: lk.Handle, inputs: dict[str, Any]) -> AbstractContextManager[None]:
    del inputs["labels"]
    return handle.prompt(LENGTHS)


def by_mask(handle: lk.Handle, inputs: dict[str, Any]) -> AbstractContextManager[None]:
    return handle.prompt(inputs.pop("labels") == -100)


def unsaid(handle: lk.Handle, inputs: dict[str, Any]) -> AbstractContextManager[None]:
    del inputs["labels"]
    return nullcontext()


@torch.no_grad()
def scores(model: Any, config: lk.LightKVConfig, said: Said, inputs: dict[str, Any]) -> Tensor:
    """Logits of the tokens from the last of the prompt on, `[sample, token, word]`."""
    answer = inputs["labels"] != -100
    with lk.attach(model, config) as handle, said(handle, inputs):
        logits = model(**inputs).logits
    before = answer.roll(-1, 1) & inputs["attention_mask"].bool()
    return logits[before].unflatten(0, (len(PROMPTS), ANSWER))


@configs
@pytest.mark.parametrize("said", [by_labels, by_lengths, by_mask])
def test_an_answer_does_not_guide(config: lk.LightKVConfig, said: Said) -> None:
    """What comes later in it changes nothing before; without a word of it, it does."""
    model, first, second = tiny_llava(), with_answer(0), with_answer(1)
    near(*(scores(model, config, said, dict(each))[:, 0] for each in (first, second)), 1e-6)
    found = [scores(model, config, unsaid, dict(each))[:, 0] for each in (first, second)]
    assert not torch.allclose(*found, atol=1e-3)


@attentions
@configs
@pytest.mark.parametrize("padding", ["left", "right"])
@torch.no_grad()
def test_scores_are_those_of_generating(
    attention: str, config: lk.LightKVConfig, padding: str
) -> None:
    """Token by token on the prompt's cache."""
    model, inputs = tiny_llava(attention=attention), with_answer(0, padding)
    together = scores(model, config, by_labels, dict(inputs))
    answers = inputs["input_ids"][inputs["labels"] != -100].view(len(PROMPTS), ANSWER)
    for sample, (own, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
        with lk.attach(model, config):
            picture = inputs["pixel_values"][sample : sample + 1]
            out = model(**{**batch(own), "pixel_values": picture})
            cache, found = out[CACHE], [out.logits[0, -1]]
            for token in answer[:-1]:
                out = model(input_ids=token.view(1, 1), **{CACHE: cache})
                found.append(out.logits[0, -1])
        near(together[sample], torch.stack(found), 1e-5)


@torch.no_grad()
def test_what_guides_is_said_for_a_block_and_a_thread() -> None:
    model, inputs = tiny_llava(), with_answer(0)
    labels = inputs.pop("labels")
    config = CONFIGS["the default"]
    with lk.attach(model, config) as handle:
        everything = model(**inputs).logits
        with handle.prompt(LENGTHS):
            inside = model(**inputs).logits
            found: list[Tensor] = []

            def beside() -> None:
                with torch.no_grad():
                    found.append(model(**inputs).logits)

            other = Thread(target=beside)
            other.start()
            other.join()
            with handle.prompt([1, 1]):
                assert not torch.equal(model(**inputs).logits, inside)
            assert torch.equal(model(**inputs).logits, inside)
        assert torch.equal(found[0], everything)
        assert torch.equal(model(**inputs).logits, everything)
        assert not torch.allclose(inside, everything, atol=1e-3)
        without_head = model.model(**inputs)[0]
        assert torch.equal(model(**inputs, labels=labels).logits, inside)
        assert torch.equal(model.model(**inputs)[0], without_head)
        assert torch.equal(model(**inputs).logits, everything)


def test_what_guides_is_said_for_an_asynchronous_task() -> None:
    """On one thread, and in those that it awaits; another task's prompt is not heard."""
    model, inputs = tiny_llava(), with_answer(0)
    inputs.pop("labels")

    @torch.no_grad()
    def scored() -> Tensor:
        logits: Tensor = model(**inputs).logits
        return logits

    with lk.attach(model, CONFIGS["the default"]) as handle:

        async def work(lengths: list[int]) -> list[Tensor]:
            with handle.prompt(lengths):
                await asyncio.sleep(0)
                return [scored(), await asyncio.to_thread(scored)]

        async def both() -> list[list[Tensor]]:
            return await asyncio.gather(work(LENGTHS), work([1, 1]))

        expected = []
        for lengths in (LENGTHS, [1, 1]):
            with handle.prompt(lengths):
                expected.append(scored())
        for found, own in zip(asyncio.run(both()), expected, strict=True):
            assert all(torch.equal(one, own) for one in found)


@torch.no_grad()
def test_a_prompt_of_pictures_alone_guides_nothing() -> None:
    model, inputs = tiny_llava(), batch(prompt("image", 6))
    with lk.attach(model, CONFIGS["the default"]) as handle, handle.prompt([16]):
        found = model(**inputs).logits
    with lk.attach(model, lk.LightKVConfig(STAGES, guidance="none")):
        near(found, model(**inputs).logits, 1e-6)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ([23], r"prompt is \[23\]: expected a whole number for each of the call's 2 samples"),
        ([23, 2.5], r"expected a whole number for each"),
        (["a", "b"], r"prompt is \['a', 'b'\]: expected a whole number for each"),
        ({"a": 1}, r"expected a whole number for each"),
        ([True, True], r"expected a whole number for each"),
        (torch.ones(2, 32), r"prompt is a \[2, 32\] of torch.float32: expected"),
        ([23, 33], r"prompt has 33 tokens for sample 1, which has 32 in this call"),
        ([-1, 3], r"prompt has -1 tokens for sample 0"),
        (torch.ones(2, 3, dtype=torch.bool), r"prompt has shape \[2, 3\]: expected .*\[2, 32\]"),
    ],
)
@torch.no_grad()
def test_what_does_not_fit_is_refused(said: Any, message: str) -> None:
    model, inputs = tiny_llava(), with_answer(0)
    labels = inputs.pop("labels")
    with left_untouched(model, inputs), lk.attach(model, CONFIGS["the default"]) as handle:
        before = model(**inputs).logits
        with handle.prompt(said), pytest.raises(lk.UnsupportedInputError, match=message):
            model(**inputs)
        with pytest.raises(lk.UnsupportedInputError, match=r"labels has shape \[2, 31\]"):
            model(**inputs, labels=labels[:, 1:])
        assert torch.equal(model(**inputs).logits, before)


@torch.no_grad()
def test_long_texts_are_asked_about_once() -> None:
    """Where scores are asked for, and nothing was said; generating asks for one token's."""
    model, inputs = tiny_llava(), batch(prompt("image", 257))
    with lk.attach(model, CONFIGS["the default"]) as handle:
        model(**inputs, logits_to_keep=1)
        greedy(model, inputs, 2)
        model.model(**inputs)
        with handle.prompt([16]):
            model(**inputs)
        model(**batch(prompt(300, "image", 256)))
        with pytest.warns(UserWarning, match="257 tokens of text follow .* handle.prompt"):
            model(**inputs)
        model(**inputs)


@torch.no_grad()
def test_labels_that_leave_no_prompt_are_told_of_once() -> None:
    model, inputs = tiny_llava(), batch(*PROMPTS)
    ids = inputs["input_ids"]
    labels = ids.masked_fill(ids == IMAGE_TOKEN, -100)
    labels[0] = -100
    with lk.attach(model, CONFIGS["the default"]):
        with pytest.warns(UserWarning, match=r"all text of sample 1 has labels, .* expected -100"):
            model(**inputs, labels=labels)
        model(**inputs, labels=labels)


@torch.no_grad()
def test_labels_are_read_by_position_too() -> None:
    model, inputs = tiny_llava(), with_answer(0)
    labels = inputs.pop("labels")
    names = list(signature(type(model).forward).parameters)[1:]
    given = [{**inputs, "labels": labels}.get(name) for name in names[: names.index("labels") + 1]]
    with lk.attach(model, CONFIGS["the default"]):
        assert torch.equal(model(*given).logits, model(**inputs, labels=labels).logits)


@torch.no_grad()
def test_labels_of_a_call_that_failed_are_forgotten() -> None:
    """Before its base was called: a hook that comes later, an argument given twice."""
    model, inputs = tiny_llava(), with_answer(0)
    labels = inputs.pop("labels")
    with lk.attach(model, CONFIGS["the default"]):
        expected = model.model(**inputs)[0]

        def fail(*_: object) -> None:
            raise ZeroDivisionError

        hook = model.register_forward_pre_hook(fail)
        with pytest.raises(ZeroDivisionError):
            model(**inputs, labels=labels)
        hook.remove()
        assert torch.equal(model.model(**inputs)[0], expected)
        with pytest.raises(TypeError):
            model(inputs["input_ids"], **inputs, labels=labels)
        assert torch.equal(model.model(**inputs)[0], expected)


def test_no_prompt_is_no_prompt() -> None:
    config, message = CONFIGS["the default"], "prompt is None: expected tokens"
    with lk.attach(tiny_llava(), config) as handle, pytest.raises(TypeError, match=message):
        handle.prompt(None)  # type: ignore[arg-type]
