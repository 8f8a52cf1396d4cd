"""The words the tiny model knows, its tokenizer and its prompts."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lightkv_gnn.tiny.questions import PLURALS
from lightkv_gnn.tiny.scenes import COLOURS, SHAPES

__all__ = [
    "CHAT_TEMPLATE",
    "PROMPT",
    "PROMPT_QUESTION_FIRST",
    "build_tokenizer",
    "format_prompt",
    "vocabulary",
]

PROMPT = "USER: <image>\n{question} ASSISTANT:"
PROMPT_QUESTION_FIRST = "USER: {question}\n<image> ASSISTANT:"

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
_ROLES = ("USER:", "ASSISTANT:")
_WORDS = (
    *("what", "shape", "is", "the", "object", "?", "left", "of", "above", "so", "none"),
    *("how", "many", "are", "there", "a", "an", "list", "objects", ".", ",", "yes", "no"),
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ ' ASSISTANT: ' }}{% else %}{{ 'USER: ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '</s>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)


def format_prompt(question: str, image_first: bool = True) -> str:
    """Wrap a question in the LLaVA-1.5 prompt, with the picture before or after it."""
    template = PROMPT if image_first else PROMPT_QUESTION_FIRST
    return template.format(question=question)


def vocabulary() -> dict[str, int]:
    """Map every word to its id; the order is part of the trained weights."""
    numbers = [str(number) for number in range(len(COLOURS) + 1)]
    words = [*_SPECIAL, *_ROLES, *_WORDS, *COLOURS, *SHAPES, *PLURALS.values(), *numbers]
    return {word: index for index, word in enumerate(dict.fromkeys(words))}


def build_tokenizer(words: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Build the word-level tokenizer, with ``words`` after those of :func:`vocabulary`.

    The roles are added tokens matched before normalisation, so that lower-casing the question
    leaves them alone.
    """
    known = vocabulary()
    ids = known | {word: len(known) + index for index, word in enumerate(words)}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", ids["<s>"])]
    )
    core.add_special_tokens([AddedToken(word, special=True) for word in _SPECIAL])
    core.add_tokens([AddedToken(word, normalized=False) for word in _ROLES])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
