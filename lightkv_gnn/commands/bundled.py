"""What the bundled model can answer, said to who brings a picture or a question to it."""

from __future__ import annotations

import re
from collections.abc import Container

from lightkv_gnn import tiny

QUESTIONS = (
    "what shape is the red object ?",
    "is there a red circle ?",
    "list the objects .",
)
"""Of each kind that it was trained on and answers well, one."""

_WORD = re.compile(r"\w+|[^\w\s]+")


def unknown_words(prompt: str, known: Container[str]) -> list[str]:
    """The words of a prompt that are not ``known``, in lower case, each once, in order."""
    words = dict.fromkeys(_WORD.findall(prompt.lower()))
    return [word for word in words if word not in known]


def limits(prompts: list[str], known: Container[str]) -> str:
    """What it has learnt, what it has not, and which words of ``prompts`` it cannot read."""
    lines = [
        f"the bundled model knows {len(tiny.SHAPES)} shapes ({', '.join(tiny.SHAPES)})",
        f"in {len(tiny.COLOURS)} colours ({', '.join(tiny.COLOURS)}), drawn flat on plain grounds.",
        f"It answers: {' '.join(QUESTIONS)}",
        "It only guesses how many there are (mostly 1), and what is left of or above what (mostly",
        "yes).  It has never seen a photograph, and names shapes that are not there: of one, the",
        "answers below show what compression changes, and nothing else.  Take --model my-model/",
        "for that.",
    ]
    unknown = unknown_words(" ".join(prompts), known)
    if unknown:
        lines.append(f"It does not know, and reads as one unknown word: {' '.join(unknown)}")
    return "\n".join(lines)
