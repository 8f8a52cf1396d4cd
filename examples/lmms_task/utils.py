"""What the task ``lightkv_tiny`` asks of lmms-eval."""

from pathlib import Path
from typing import Any

FOLDER = str(Path(__file__).parent / "data")
"""Pictures of the split "test" and ``metadata.jsonl``, as the loader "imagefolder" of Hugging Face
datasets has them; ``make.py`` wrote them."""


def pictures(document: dict[str, Any]) -> list[Any]:
    return [document["image"].convert("RGB")]


def score(document: dict[str, Any], answers: list[str]) -> dict[str, float]:
    """Whether the answer is right, in total and among questions of its kind."""
    right = float(answers[0].strip() == document["answer"])
    return {"exact_match": right, document["group"]: right}
