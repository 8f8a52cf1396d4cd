"""The class that lmms-eval makes for ``--model lightkv``."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.protocol import ChatMessages
from loguru import logger
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lightkv_gnn.asking.loading import load
from lightkv_gnn.asking.scores import answer_ids, score
from lightkv_gnn.baselines.inspection import Inspection, Seen
from lightkv_gnn.costs.schedule import in_words
from lightkv_gnn.errors import UnsupportedInputError
from lightkv_gnn.harness.account import Account, metrics, together
from lightkv_gnn.harness.arguments import Arguments
from lightkv_gnn.harness.compression import Books, at_work
from lightkv_gnn.harness.decoding import GREEDY, Decoding, FirstToken, Stop
from lightkv_gnn.harness.likelihoods import NOTHING, Likelihood, Question, questions, told
from lightkv_gnn.harness.prompts import Chat, as_inputs, as_text, pictures_of

LOOKED_AT = 16
"""Questions of each block of requests whose vision tokens are looked at."""


class LightKV(lmms):
    """A model of transformers with LightKV, or with a method to compare, at work.

    It answers one question at a time with text, which is all that the eight benchmarks of the paper
    ask for, and tells likelihoods of given answers.  Several rounds are refused.

    Args:
        **options: ``--model_args``; see :class:`~lightkv_gnn.harness.arguments.Arguments`.

    Raises:
        ValueError: Unknown or unreadable arguments.
        ScheduleError: The schedule, or the method, cannot be had on this model.
    """

    is_simple = False

    def __init__(self, **options: Any) -> None:
        super().__init__()
        options.pop("max_batch_size", None)  # of --batch_size auto
        self.arguments = Arguments.of(options)
        self.accelerator = Accelerator()
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes
        self.model, self.processor = load(
            self.arguments.pretrained,
            device_of(self.arguments.device, self.accelerator),
            self.arguments.dtype,
            self.arguments.attention,
        )
        tokenizer = self.processor.tokenizer
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        with at_work(self.model, self.arguments) as books:  # what cannot be had, fails here
            if self.arguments.baseline is None:
                logger.info(f"lightkv merges away {in_words(books.handle.config.stages)}")
        self._accounts: dict[str, Account] = defaultdict(Account)
        self._seconds, self._tokens = 0.0, 0
        self._warned: set[tuple[str, str]] = set()
        self._inspected: tuple[Books, Inspection] | None = None

    @property
    def device(self) -> torch.device:
        """Where lmms-eval gathers the processes' counts."""
        return self.accelerator.device

    @property
    def batch_size(self) -> int:
        """Questions asked at once."""
        return self.arguments.batch_size

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers, in the order of the requests.

        Each request's arguments are the context, a function from the document to messages, the
        options of generation, the document's number, the task and the split.  Requests that only
        make ranks alike get an empty answer, which lmms-eval drops.
        """
        answers = [GenerationResult("") for _ in requests]
        real = [n for n, one in enumerate(requests) if not one.metadata.get("__padding_only__")]
        progress = tqdm(total=len(real), disable=self.rank != 0, desc="Model Responding")
        with at_work(self.model, self.arguments) as books:
            for numbers in batches(requests, real, self.batch_size):
                for batch in self._batches(requests, numbers):
                    for number, answer in zip(batch.numbers, self._ask(books, batch), strict=True):
                        answers[number] = answer
                    progress.update(len(batch.numbers))
        progress.close()
        if self.arguments.agreement:
            self._compare(requests, real, answers)
        return answers

    def _compare(
        self, requests: Sequence[Instance], real: list[int], answers: Sequence[GenerationResult]
    ) -> None:
        """Asks questions with pictures again, without compression; their time is in no account."""
        for numbers in batches(requests, real, self.batch_size):
            for batch in self._batches(requests, numbers):
                if not any(batch.pictures):
                    continue
                decoding = Decoding.of(batch.options, self.arguments.max_new_tokens)
                new = self._generate(batch, decoding).new
                texts = self.processor.batch_decode(new, skip_special_tokens=True)
                given = [answers[number].text for number in batch.numbers]
                full = [decoding.cut(text) for text in texts]
                self._accounts[batch.task] += Account.of_agreement(given, full)

    def _batches(self, requests: Sequence[Instance], numbers: Sequence[int]) -> list[Batch]:
        """Some requests as conversations, those without pictures apart from the others."""
        _, _, options, _, task, _ = requests[numbers[0]].args
        found = {with_pictures: Batch(task, options) for with_pictures in (True, False)}
        for number in numbers:
            _, to_messages, _, document, task, split = requests[number].args
            messages = ChatMessages(messages=to_messages(self.task_dict[task][split][document]))
            chat = messages.to_hf_messages()
            pictures = pictures_of(chat)
            batch = found[bool(pictures)]
            batch.numbers.append(number)
            batch.chats.append(chat)
            batch.pictures.append(pictures)
        return [batch for batch in found.values() if batch.numbers]

    def _ask(self, books: Books, batch: Batch) -> list[GenerationResult]:
        decoding = Decoding.of(batch.options, self.arguments.max_new_tokens)
        self._warn(batch.task, decoding)
        tokenizer = self.processor.tokenizer
        with self._inspection(books).of_prefill() as seen:
            generated = self._generate(batch, decoding)
        self._seconds += generated.seconds
        lengths = (generated.new != tokenizer.pad_token_id).sum(1).tolist()
        self._tokens += sum(lengths)
        self._accounts[batch.task] += cost_of(books, batch, generated.first, seen)
        texts = self.processor.batch_decode(generated.new, skip_special_tokens=True)
        return [
            GenerationResult(decoding.cut(text), TokenCounts(before, length))
            for text, before, length in zip(texts, generated.given, lengths, strict=True)
        ]

    def _generate(self, batch: Batch, decoding: Decoding) -> Generated:
        tokenizer = self.processor.tokenizer
        inputs = as_inputs(self.model, self.processor, batch.chats, batch.pictures)
        begin = inputs["input_ids"].shape[1]
        stop, first = Stop(decoding.until, tokenizer, begin), FirstToken(self.model.device)
        started = time.perf_counter()
        with torch.no_grad():
            tokens = self.model.generate(
                **inputs,
                **decoding.options,
                pad_token_id=tokenizer.pad_token_id,
                stopping_criteria=[first, stop],
            )
        new = tokens[:, begin:].cpu()
        seconds = time.perf_counter() - started
        return Generated(new, inputs["attention_mask"].sum(1).tolist(), first.seconds, seconds)

    def _inspection(self, books: Books) -> Inspection:
        """Looks at the first questions of each block of requests."""
        if self._inspected is None or self._inspected[0] is not books:
            adapter = None if self.arguments.baseline else self.arguments.adapter
            self._inspected = books, Inspection(self.model, books.handle, LOOKED_AT, adapter)
        return self._inspected[1]

    def _warn(self, task: str, decoding: Decoding) -> None:
        """Tells once which options of a task have no effect."""
        for name in decoding.ignored:
            if (task, name) not in self._warned:
                self._warned.add((task, name))
                logger.warning(f"{task}: generate has no option {name}, which is ignored")

    def clean(self) -> None:
        """Reports what the questions of all processes cost, and gives the model's memory back.

        lmms-eval calls it once in every process, after the last request.
        """
        everyone = gather_object([(dict(self._accounts), self._seconds, self._tokens)])
        if self.rank == 0 and any(accounts for accounts, _, _ in everyone):
            accounts = together(accounts for accounts, _, _ in everyone)
            seconds = max(seconds for _, seconds, _ in everyone)
            tokens = sum(tokens for _, _, tokens in everyone)
            log_metrics(seconds, tokens, tokens / seconds, metrics(accounts))
        super().clean()

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Logarithms of answers' likelihoods, and whether each is what the model would say.

        Of tasks of multiple choice it is minus the logarithm, as lmms-eval takes the least.  Each
        question is read once, alone, and guides alone; its answers go on from its cache.

        Raises:
            UnsupportedInputError: A request wants an answer's likelihood without a question.
        """
        found = [told(NOTHING) for _ in requests]
        real = [n for n, one in enumerate(requests) if not one.metadata.get("__padding_only__")]
        progress = tqdm(total=len(real), disable=self.rank != 0, desc="Model Responding")
        with at_work(self.model, self.arguments) as books:
            for question in questions(requests, real, self.task_dict):
                for number, likelihood in self._likelihoods(books, question):
                    found[number] = told(likelihood)
                    progress.update()
        progress.close()
        return found

    def _likelihoods(self, books: Books, question: Question) -> Iterator[tuple[int, Likelihood]]:
        tokenizer, pictures = self.processor.tokenizer, pictures_of(question.chat)
        inputs = as_inputs(self.model, self.processor, [question.chat], [pictures])
        prompt = as_text(self.processor, question.chat)
        answers = [answer_ids(tokenizer, prompt, wanted.answer) for wanted in question.wanted]
        first = FirstToken(self.model.device)
        started = time.perf_counter()
        options = {"pad_token_id": tokenizer.pad_token_id, "stopping_criteria": [first]}
        scores = score(self.model, inputs, answers, **GREEDY, **options)
        self._seconds += time.perf_counter() - started
        self._tokens += sum(map(len, answers))
        batch = Batch(question.task, {}, [0], [question.chat], [pictures])
        self._accounts[question.task] += cost_of(books, batch, first.seconds)
        for wanted, found in zip(question.wanted, scores, strict=True):
            yield wanted.number, wanted.of(found)

    def generate_until_multi_round(self, requests: list[Instance]) -> NoReturn:
        """Refused: a compressed cache fits the question it was made for.

        Raises:
            UnsupportedInputError: Always.
        """
        raise UnsupportedInputError(
            "the model lightkv answers one question at a time: choose tasks of output_type "
            "generate_until"
        )


@dataclass(frozen=True)
class Batch:
    """Questions that are asked at once.

    Attributes:
        task: That they are from.
        options: Of generation.
        numbers: Of their requests.
        chats: The questions.
        pictures: Of each.
    """

    task: str
    options: Mapping[str, Any]
    numbers: list[int] = field(default_factory=list)
    chats: list[Chat] = field(default_factory=list)
    pictures: list[list[Image.Image]] = field(default_factory=list)


class Generated(NamedTuple):
    """What a batch was answered.

    Attributes:
        new: Tokens of the answers, `[batch, token]`.
        given: Tokens of each prompt.
        first: Seconds to the first token; None if there was none.
        seconds: To the last one.
    """

    new: Tensor
    given: list[int]
    first: float | None
    seconds: float


def cost_of(books: Books, batch: Batch, seconds: float | None, seen: Seen | None = None) -> Account:
    """What a batch has just cost, with the time to its first token, if it has any."""
    if seconds is None or not any(batch.pictures):
        return Account()
    method = books.method_seconds()
    measured = seconds - books.measuring()
    return Account.of(len(batch.numbers), books.cost(), measured, method, seen)


def device_of(asked: str | None, accelerator: Accelerator) -> str:
    """Where a process's model goes: where it was asked to, else to a GPU of its own.

    Raises:
        ValueError: One device is asked for, and there are several processes.
    """
    if asked is None:
        return str(accelerator.device)
    if accelerator.num_processes > 1 and ":" in asked:
        raise ValueError(
            f"--device {asked} with {accelerator.num_processes} processes: leave it out, and each "
            "process takes a GPU of its own"
        )
    return asked


def batches(requests: Sequence[Instance], numbers: Sequence[int], size: int) -> Iterator[list[int]]:
    """Numbers of requests to be asked at once: of one task, and with the same options.

    Longer questions come first, so that what does not fit fails at once and padding is short.
    """
    alike: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number in numbers:
        _, _, options, _, task, _ = requests[number].args
        alike[task, repr(sorted(options.items()))].append(number)
    for group in alike.values():
        group.sort(key=lambda number: -len(requests[number].args[0]))
        yield from (group[start : start + size] for start in range(0, len(group), size))
