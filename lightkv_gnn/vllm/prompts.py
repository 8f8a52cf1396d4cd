"""Which text guides a picture: that before the end of the turn in which the picture stands.

Later turns do not change it, so that a picture of an earlier turn is found in all caches.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LONGEST = 1024
"""Most text tokens that guide a picture, those next to the end of its turn."""

Text = tuple[int, ...]
"""Tokens."""


@dataclass(frozen=True)
class Prompts:
    """How the prompts of a model are read.

    Attributes:
        placeholders: Of each modality, the token that stands for one item.
        ends: Sequences of tokens that a turn ends before.
        vocabulary: Tokens that the model has embeddings of.
    """

    placeholders: Mapping[str, int]
    ends: Collection[Text]
    vocabulary: int

    def guides(self, prompt: Sequence[int], counts: Mapping[str, int]) -> dict[str, list[Text]]:
        """The text that guides each item of a prompt.

        Args:
            prompt: Its tokens, with one placeholder for each item.
            counts: Items of each modality.

        Returns:
            Of each modality, the text of each item: at most :data:`LONGEST` tokens, ascending.

        Raises:
            ValueError: A modality has no placeholder, or the prompt has too few.
        """
        found = {}
        for modality, count in counts.items():
            if modality not in self.placeholders:
                raise ValueError(
                    f"what stands for one {modality} in a prompt of this model is no single token, "
                    "and the turn of it is not known: expected guidance 'none'"
                )
            token = self.placeholders[modality]
            places = [place for place, own in enumerate(prompt) if own == token]
            if len(places) < count:
                raise ValueError(
                    f"the prompt has {len(places)} placeholders for {count} items of {modality}: "
                    "expected one for each; apply the chat template before asking"
                )
            found[modality] = [self._guide(prompt, place) for place in places[:count]]
        return found

    def _guide(self, prompt: Sequence[int], place: int) -> Text:
        end = _first(prompt, self.ends, place)
        silent = set(self.placeholders.values())
        text = [own for own in prompt[:end] if own not in silent and own < self.vocabulary]
        return tuple(text[-LONGEST:])


def _first(prompt: Sequence[int], ends: Iterable[Text], begin: int) -> int:
    """Where the first of some sequences begins; the prompt's length if none does."""
    known = [list(end) for end in ends if end]
    for place in range(begin, len(prompt)):
        for end in known:
            if prompt[place] == end[0] and list(prompt[place : place + len(end)]) == end:
                return place
    return len(prompt)


def turn_ends(processor: Any, tokenizer: Any) -> set[Text]:
    """What a turn of a user ends before: the token that ends texts, or what opens an answer.

    What opens an answer is what the chat template adds to a question when asked to; a model
    without a chat template has nothing of the kind.

    Args:
        processor: transformers', with a chat template or none.
        tokenizer: Of the same model.
    """
    ends: set[Text] = set()
    if tokenizer.eos_token_id is not None:
        ends.add((tokenizer.eos_token_id,))
    if getattr(processor, "chat_template", None):
        turn = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
        question, opened = (
            tokenizer.encode(
                processor.apply_chat_template(turn, add_generation_prompt=more),
                add_special_tokens=False,
            )
            for more in (False, True)
        )
        same = 0
        while same < min(len(question), len(opened)) and question[same] == opened[same]:
            same += 1
        ends.add(tuple(opened[same:]))
    return ends - {()}
