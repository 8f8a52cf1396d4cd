"""How likely answers are that are given: the prompt is read once, and each goes on from there."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightkv_gnn.seams import CACHE, cache_in


class Score(NamedTuple):
    """Of one answer.

    Attributes:
        log_likelihood: Natural logarithm of its probability after the prompt, summed over tokens.
        greedy: Whether the model would say it of itself, decoding greedily.
    """

    log_likelihood: float
    greedy: bool


@torch.no_grad()
def score(model: Any, inputs: Any, answers: Sequence[Sequence[int]], **options: Any) -> list[Score]:
    """Scores of answers to one prompt, which alone guides what is merged.

    Args:
        model: Attached or not.
        inputs: The prompt as the model takes it, one row without padding.
        answers: Token ids of each; an answer without tokens is certain.
        **options: Further ones for ``generate``, which reads the prompt.
    """
    read = model.generate(
        **inputs,
        **{"do_sample": False, "num_beams": 1, **options},
        max_new_tokens=1,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return [_score(model, cache_in(read), read.logits[0], answer) for answer in answers]


def _score(model: Any, cache: Any, first: Tensor, answer: Sequence[int]) -> Score:
    """Of one answer; ``first`` are the logits after the prompt, `[1, word]`."""
    if not answer:
        return Score(0.0, True)
    tokens, logits = torch.tensor(answer, device=first.device), first
    if len(answer) > 1:  # the prompt's cache stays as it is, for the next answer
        named = next(name for name in CACHE if name in inspect.signature(model.forward).parameters)
        given = {"input_ids": tokens[None, :-1], named: copy.deepcopy(cache)}
        later = model(**given, use_cache=True).logits[0].to(first.device)
        logits = torch.cat([first, later])
    likelihoods = logits.float().log_softmax(-1).gather(1, tokens[:, None])
    return Score(float(likelihoods.sum()), bool((logits.argmax(-1) == tokens).all()))


def answer_ids(tokenizer: Any, prompt: str, answer: str) -> list[int]:
    """The tokens of an answer behind a prompt, with a blank between them where there is none.

    Where an answer's begin changes how the prompt's end is cut into tokens, it is those that follow
    what both have in common.
    """
    blank = "" if prompt[-1:].isspace() else " "
    texts = (prompt, prompt + blank + answer.strip())
    alone, both = (tokenizer(text, add_special_tokens=False).input_ids for text in texts)
    same = 0
    while same < min(len(alone), len(both)) and alone[same] == both[same]:
        same += 1
    return list(both[same:])
