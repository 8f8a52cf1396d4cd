"""What a task's generation options mean to ``generate``, and when the first token came."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria

GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


@dataclass(frozen=True)
class Decoding:
    """How a task wants to be answered.

    Attributes:
        options: For ``generate``.
        until: Texts that end an answer and are no part of it.
        ignored: Options of the task that ``generate`` does not have.
    """

    options: dict[str, Any]
    until: tuple[str, ...]
    ignored: tuple[str, ...]

    @classmethod
    def of(cls, task: Mapping[str, Any], max_new_tokens: int) -> Decoding:
        """Reads a task's ``generation_kwargs``.

        Args:
            task: The options.  As elsewhere in lmms-eval, a temperature of 0 means no sampling,
                and one above 0, where ``do_sample`` is not said, sampling.
            max_new_tokens: Where the task does not say.

        Raises:
            TypeError: ``until`` is neither a text nor several.
        """
        options = dict(task)
        until = options.pop("until", None) or []
        until = [until] if isinstance(until, str) else list(until)
        if not all(isinstance(text, str) for text in until):
            raise TypeError(f"until is {task['until']!r}: expected a text, or several")
        known = vars(GenerationConfig())
        ignored = tuple(sorted(name for name in options if name not in known))
        options = {name: value for name, value in options.items() if name in known}
        warm = bool(options.get("temperature"))
        if options.get("do_sample", warm) and options.get("temperature", 1) != 0:
            options["do_sample"] = True
        else:
            options |= GREEDY
        options = {"max_new_tokens": max_new_tokens, "num_beams": 1} | options
        return cls(options, tuple(text for text in until if text), ignored)

    def cut(self, answer: str) -> str:
        """The answer up to the first text that ends it, without blanks around it."""
        for text in self.until:
            answer = answer.split(text, maxsplit=1)[0]
        return answer.strip()


class Stop(StoppingCriteria):
    """Ends an answer that has one of some texts in it.

    transformers has ``stop_strings`` for that, which takes no tokenizer of whole words.

    Args:
        until: The texts.
        tokenizer: Decodes.
        prompt: Tokens of each row before the answer, padding included.
    """

    def __init__(self, until: Sequence[str], tokenizer: Any, prompt: int) -> None:
        self._until, self._tokenizer, self._prompt = until, tokenizer, prompt
        # A token is a byte at least; one more keeps the blank that the first one may begin with.
        self._tail = 1 + max((len(text.encode()) for text in until), default=0)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Whether each row has ended, `[batch]` bool."""
        begin = max(self._prompt, input_ids.shape[1] - self._tail)
        tails = self._tokenizer.batch_decode(input_ids[:, begin:], skip_special_tokens=True)
        ended = [any(text in tail for text in self._until) for tail in tails]
        return torch.tensor(ended, device=input_ids.device)


class FirstToken(StoppingCriteria):
    """Notes when a call of ``generate`` has its first token, and stops nothing.

    Attributes:
        seconds: From where it was made to that token; None until then.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: float | None = None
        self._device = device
        self._started = self._now()

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """False for each row, `[batch]`."""
        if self.seconds is None:
            self.seconds = self._now() - self._started
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
