"""Attached models against the layers written out: one unpadded sample, prefill and decoding."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
import torch
from families.loop import FamilyLoop
from models import CACHE, batch, cache_lengths, check_ledger, loop_logits, near, prompt, tiny_llava
from torch import Tensor

import lightkv_gnn as lk
from lightkv_gnn.stage.guidance import GuidanceBlock

STEPS = 16

SCHEDULES = {
    "[1]": ((1, 2, 0.5),),
    "[1, 3]": ((1, 2, 0.5), (3, 1, 0.5)),
    "[0, 2, 4]": ((0, 2, 0.25), (2, 2, 0.5), (4, 1, 0.5)),
}

PROMPTS = {
    "one image": (4, "image", 6),
    "two images apart": (3, "image", 4, "image", 5),
    "two images adjacent": (2, "image", "image", 6),
}

SEED = 3
"""Of the prompts; see :func:`written_out`."""

Written = tuple[Tensor, list[int], list[int], Tensor]


@cache
def model_of(text: str, attention: str) -> torch.nn.Module:
    """Shared: test_clean_exit.py has that attaching leaves no traces."""
    return tiny_llava(text, attention)


def inputs_of(parts: Sequence[int | str], **options: int) -> dict[str, Tensor]:
    return batch(prompt(*parts, **options), side=options.get("side", 4))


def written_out(loop: FamilyLoop, inputs: dict[str, Tensor], steps: int = 4) -> Written:
    """Logits of the prompt, cache lengths, tokens, and the logits those were taken from."""
    logits = loop_logits(loop, inputs)
    lengths = loop.lengths
    # Otherwise rounding decides who is merged: choose another seed.
    assert loop.margin > 1e-4
    return logits, lengths, *loop.greedy(logits[-1], steps)


@cache
def written_case(text: str, positions: str, schedule: str, parts: str) -> Written:
    """The loop does not depend on the attention implementation."""
    model = model_of(text, "eager")
    loop = FamilyLoop(model, "llava", SCHEDULES[schedule], positions=positions)
    return written_out(loop, inputs_of(PROMPTS[parts], seed=SEED), STEPS)


@torch.no_grad()
def compare(
    model: torch.nn.Module, config: lk.LightKVConfig, inputs: dict[str, Tensor], expected: Written
) -> None:
    logits, lengths, tokens, step_logits = expected
    with lk.attach(model, config) as handle:
        out = model(**inputs)
        near(out.logits[0], logits)
        assert cache_lengths(out[CACHE]) == lengths
        assert [row.planned.tokens for row in handle.ledger.rows] == lengths
        check_ledger(handle.ledger, out[CACHE])
        steps = [out.logits[0, -1]]
        for token in tokens[:-1]:
            assert int(steps[-1].argmax()) == token
            out = model(input_ids=torch.tensor([[token]]), **{CACHE: out[CACHE]})
            steps.append(out.logits[0, -1])
    near(torch.stack(steps), step_logits)
    assert int(steps[-1].argmax()) == tokens[-1]
    assert cache_lengths(out[CACHE]) == [n + len(tokens) - 1 for n in lengths]


@pytest.mark.parametrize("parts", PROMPTS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("positions", ["preserve", "reindex"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("text", ["llama", "mistral", "qwen2"])
def test_equals_the_loop(
    text: str, attention: str, positions: str, schedule: str, parts: str
) -> None:
    expected = written_case(text, positions, schedule, parts)
    inputs = inputs_of(PROMPTS[parts], seed=SEED)
    stages = [lk.Stage(*stage) for stage in SCHEDULES[schedule]]
    config = lk.LightKVConfig(stages, positions=positions)
    compare(model_of(text, attention), config, inputs, expected)


@pytest.mark.parametrize(("attention", "positions"), [("eager", "reindex"), ("sdpa", "preserve")])
@pytest.mark.parametrize("text", ["llama", "mistral", "qwen2"])
def test_generate_equals_the_loop(text: str, attention: str, positions: str) -> None:
    _, _, tokens, logits = written_case(text, positions, "[0, 2, 4]", "two images apart")
    inputs = inputs_of(PROMPTS["two images apart"], seed=SEED)
    stages = [lk.Stage(*stage) for stage in SCHEDULES["[0, 2, 4]"]]
    model = model_of(text, attention)
    with lk.attach(model, lk.LightKVConfig(stages, positions=positions)) as handle:
        out = model.generate(
            **inputs,
            max_new_tokens=STEPS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        assert all(row.observed_kv_bytes == row.planned.kv_bytes for row in handle.ledger.rows)
    assert out.sequences[0, -STEPS:].tolist() == tokens
    near(torch.cat(out.logits), logits)


def key_size(block: GuidanceBlock) -> Tensor:
    """Zero for some tokens: a weight of nothing must not break the mean."""
    return block.vision_key[..., 0].clamp(min=0).sum(1)


def own_key_size(
    query: list[list[list[float]]],
    key: list[list[list[float]]],
    vision: list[int],
    text: list[int],
) -> list[float]:
    return [sum(max(0.0, head[token][0]) for head in key) for token in vision]


def pull(x_i: Tensor, x_j: Tensor, weight: Tensor) -> Tensor:
    """Messages that do not add up to a mean."""
    return weight[:, None] * (x_j + (x_j - x_i).tanh())


GUIDANCE = {
    **{
        name: (name, True, name)
        for name in ("vision_to_text", "text_to_vision", "last_token", "none")
    },
    "vision_to_text, not rotated": ("vision_to_text", False, "vision_to_text"),
    "text_to_vision, not rotated": ("text_to_vision", False, "text_to_vision"),
    "callable": (key_size, True, own_key_size),
}

MESSAGES = {
    **{
        message.name: (message, message.name)
        for message in (lk.guided_mean, lk.mean, lk.mass_mean, lk.destination_only)
    },
    "callable": (pull, pull),
    "MessagePassing": (lk.MergeConv(pull), pull),
}


# Messages other than these two do not depend on guidance, or only say the same in other words.
PAIRS = [(kind, message) for kind in GUIDANCE for message in ("guided_mean", "callable")]
PAIRS += [
    ("vision_to_text", message)
    for message in MESSAGES
    if message not in ("guided_mean", "callable")
]


@pytest.mark.parametrize(("guidance", "message"), PAIRS)
def test_guidance_and_messages_equal_the_loop(guidance: str, message: str) -> None:
    kind, rotary, own_kind = GUIDANCE[guidance]
    phi, own_phi = MESSAGES[message]
    schedule = SCHEDULES["[0, 2, 4]"]
    inputs = inputs_of(PROMPTS["two images apart"])
    model = model_of("llama", "sdpa")
    options = {"guidance": own_kind, "rotary": rotary, "message": own_phi}
    loop = FamilyLoop(model, "llava", schedule, **options)
    config = lk.LightKVConfig(
        [lk.Stage(*stage) for stage in schedule], guidance=kind, rotary=rotary, message=phi
    )
    compare(model, config, inputs, written_out(loop, inputs))


@torch.no_grad()
def test_guidance_kinds_differ() -> None:
    """What the table above compares are different things."""
    inputs = inputs_of(PROMPTS["one image"])
    model, answers = model_of("llama", "sdpa"), []
    for kind, rotary, _ in GUIDANCE.values():
        config = lk.LightKVConfig([lk.Stage(0, 2, 0.5)], guidance=kind, rotary=rotary)
        with lk.attach(model, config):
            answers.append(model(**inputs).logits[0, -1])
    for number, answer in enumerate(answers):
        for other in answers[:number]:
            assert float((answer - other).abs().max()) > 1e-3


@pytest.mark.parametrize(
    "parts",
    [(2, "image", 3), ("image", 3), (3, "image"), ("image",), ("image", "image")],
    ids=["inside", "first", "last", "alone", "two alone"],
)
@pytest.mark.parametrize("side", [3, 5])
def test_other_grids_and_places_equal_the_loop(side: int, parts: tuple[int | str, ...]) -> None:
    """Odd sides give ragged windows; an image at the end leaves the last row to a merged token."""
    schedule = ((0, 2, 0.5), (3, 1, 0.3))
    model = tiny_llava(side=side, seed=1)
    inputs = inputs_of(parts, side=side)
    loop = FamilyLoop(model, "llava", schedule)
    config = lk.LightKVConfig([lk.Stage(*stage) for stage in schedule])
    compare(model, config, inputs, written_out(loop, inputs))


def test_class_tokens_are_never_merged() -> None:
    schedule = SCHEDULES["[1, 3]"]
    model = tiny_llava(vision_feature_select_strategy="full")
    inputs = inputs_of(PROMPTS["two images apart"], extra=1)
    loop = FamilyLoop(model, "llava", schedule)
    config = lk.LightKVConfig([lk.Stage(*stage) for stage in schedule])
    expected = written_out(loop, inputs)
    compare(model, config, inputs, expected)
    assert expected[1] == [46, 46, 30, 30, 22, 22]
