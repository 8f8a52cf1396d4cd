"""A tiny LLaVA trained on drawn pictures, small enough to ship with the package.

``model`` builds and loads it, with its ``words``.  Pictures are ``scenes`` of ``shapes``; there are
``questions`` about them, which ``evaluate`` scores.  Training, from a ``recipe``: ``training`` goes
through the ``curriculum``, with ``packing`` of many questions into a row, and ``losses``.
``photo`` goes on with it, before photographs.
"""

from __future__ import annotations

from lightkv_gnn.tiny.evaluate import (
    MAX_NEW_TOKENS,
    Evaluation,
    accuracy,
    object_f1,
    sample_questions,
)
from lightkv_gnn.tiny.model import WEIGHTS, build_model, build_processor, load
from lightkv_gnn.tiny.questions import GROUPS, Question, ask
from lightkv_gnn.tiny.scenes import (
    COLOURS,
    SHAPES,
    Background,
    Scene,
    SceneObject,
    render,
    sample_scene,
)
from lightkv_gnn.tiny.words import PROMPT, PROMPT_QUESTION_FIRST, format_prompt

__all__ = [
    "COLOURS",
    "GROUPS",
    "MAX_NEW_TOKENS",
    "PROMPT",
    "PROMPT_QUESTION_FIRST",
    "SHAPES",
    "WEIGHTS",
    "Background",
    "Evaluation",
    "Question",
    "Scene",
    "SceneObject",
    "accuracy",
    "ask",
    "build_model",
    "build_processor",
    "format_prompt",
    "load",
    "object_f1",
    "render",
    "sample_questions",
    "sample_scene",
]
