"""Which text guides which picture, without an engine."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightkv_gnn import tiny
from lightkv_gnn.vllm.prompts import LONGEST, Prompts, turn_ends

IMAGE, VIDEO, END, OPEN = 90, 91, 2, (5, 6)
PROMPTS = Prompts({"image": IMAGE, "video": VIDEO}, {(END,), OPEN}, 80)
WORDS = st.lists(st.integers(7, 79), max_size=6)


def test_text_ends_with_the_pictures_own_turn() -> None:
    prompt = [1, 10, IMAGE, 11, *OPEN, 12, END, 13, IMAGE, 14, IMAGE, *OPEN]
    found = PROMPTS.guides(prompt, {"image": 3})["image"]
    whole = (1, 10, 11, *OPEN, 12, END, 13, 14)
    assert found == [(1, 10, 11), whole, whole]


@given(WORDS, WORDS, WORDS, st.sampled_from([OPEN, (END,), (END, *OPEN)]))
def test_later_turns_do_not_change_it(
    before: list[int], after: list[int], later: list[int], end: tuple[int, ...]
) -> None:
    first = [*before, IMAGE, *after, *end]
    longer = [*first, *later, END, *later, IMAGE, *later, *OPEN]
    found = PROMPTS.guides(longer, {"image": 2})["image"]
    assert found[:1] == PROMPTS.guides(first, {"image": 1})["image"] == [(*before, *after)]


def test_an_open_turn_ends_with_the_prompt() -> None:
    # Half of what opens an answer opens none.
    assert PROMPTS.guides([IMAGE, 5, 7, 5], {"image": 1}) == {"image": [(5, 7, 5)]}


def test_placeholders_and_what_has_no_embedding_do_not_guide() -> None:
    found = PROMPTS.guides([VIDEO, 10, IMAGE, 80, 79], {"image": 1, "video": 1})
    assert found == {"image": [(10, 79)], "video": [(10, 79)]}


def test_the_last_words_guide() -> None:
    text = [n % 70 + 7 for n in range(LONGEST + 30)]
    (found,) = PROMPTS.guides([*text, IMAGE, 8, 9, END], {"image": 1})["image"]
    assert found == (*text[32:], 8, 9)
    assert len(found) == LONGEST


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ({"image": 2}, "1 placeholders for 2 items of image: expected one for each"),
        ({"image": 1, "audio": 1}, "what stands for one audio .* is no single token"),
    ],
    ids=str,
)
def test_pictures_that_stand_nowhere(counts: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PROMPTS.guides([1, IMAGE, 3], counts)


class Tokenizer:
    """One token for each character."""

    def __init__(self, end: int | None) -> None:
        self.eos_token_id = end

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [ord(one) for one in text]


class Template:
    """A chat template."""

    def __init__(self, opening: str) -> None:
        self.chat_template = self.opening = opening

    def apply_chat_template(self, turns: Any, add_generation_prompt: bool) -> str:
        return turns[0]["content"][0]["text"] + self.opening * add_generation_prompt


def test_turns_end_where_an_answer_opens() -> None:
    processor = tiny.build_processor()
    prompt = processor.tokenizer(tiny.format_prompt("list the objects ."))["input_ids"]
    ends = turn_ends(processor, processor.tokenizer)
    assert ends == {(processor.tokenizer.eos_token_id,), (prompt[-1],)}
    assert turn_ends(Template("ab"), Tokenizer(None)) == {(97, 98)}
    assert turn_ends(Template(""), Tokenizer(3)) == {(3,)}
