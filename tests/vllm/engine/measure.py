"""Exact match of the bundled tiny LLaVA by budget, in vLLM and between layers: docs/serving.md.

.venv-vllm/bin/python tests/vllm/engine/measure.py [QUESTIONS OF EACH KIND, 300]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # read when vLLM is imported
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from asking import start
from tiny_models import convert_tiny

import lightkv_gnn as lk
from lightkv_gnn import tiny
from lightkv_gnn.intervals import wilson

GROUPS = ("vqa", "hallucination", "captioning")
PARITY = {"retention": 0.5, "windows": 4, "matcher": "cosine_matching"}
SETTINGS = [
    None,
    *({"retention": share, "windows": n} for n in (2, 1, 4) for share in (0.5, 0.25, 0.125)),
    *({"retention": share, "guidance": "text_to_vision"} for share in (0.5, 0.25, 0.125)),
    PARITY,
]
BETWEEN = (0.5, 0.25, 0.16)
"""Budgets of merging between layers, whose first layer holds an eighth of all by itself."""


def main(count: int) -> None:
    tokenizer = tiny.build_processor().tokenizer
    asked = {group: tiny.sample_questions(group, count, seed=0) for group in GROUPS}
    with TemporaryDirectory() as folder:
        checkpoint = convert_tiny(Path(folder) / "tiny")
        for settings in SETTINGS:
            engine = start(checkpoint, settings)
            print(settings or "all tokens")
            for group, pairs in asked.items():
                prompts = [
                    (tiny.render(scene), tiny.format_prompt(question.prompt_text))
                    for scene, question in pairs
                ]
                found = engine.ask(prompts, tiny.MAX_NEW_TOKENS[group])
                texts = [tokenizer.decode(one.tokens, skip_special_tokens=True) for one in found]
                right = sum(
                    text.strip() == question.answer
                    for text, (_, question) in zip(texts, pairs, strict=True)
                )
                tell(group, right, count)
            engine.close()
    between_layers(count)


def between_layers(count: int) -> None:
    """The same questions of transformers, with the library's defaults."""
    model, processor = tiny.load()
    for retention in BETWEEN:
        config = lk.LightKVConfig.for_model(model, retention)
        print(f"between layers, {retention}: {config.stages}")
        with lk.attach(model, config) as handle:
            for group in GROUPS:
                found = tiny.accuracy(model, processor, group, count, seed=0, batch_size=25)
                tell(group, sum(found.correct), count)
            assert handle.ledger is not None
            print(f"  held: {handle.ledger.totals()['retention']:.3f}", flush=True)


def tell(group: str, right: int, count: int) -> None:
    """Prints a share with its interval."""
    low, high = wilson(right, count)
    print(f"  {group}: {right / count:.1%} [{low:.1%}, {high:.1%}]", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
