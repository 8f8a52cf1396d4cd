"""What compression saves on published models: one picture and a short prompt, no weights.

python docs/families.py               a table
python docs/families.py --markdown    the same for a document

Every model is built from its configuration on the meta device, which holds no numbers, and planned
by the library as for a real prefill.
"""

from __future__ import annotations

import sys

import torch
from published import PICTURE, SIZES, Published
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

import lightkv_gnn as lk

TEXT = 64
"""Tokens of text in the prompt."""

BF16 = 2
"""Bytes per value of the cache."""

HEAD = ("model", "layers", "vision tokens", "stages", "retention", "KV MiB", "TFLOP")


def build(published: Published) -> PreTrainedModel:
    """The model, without numbers."""
    config = AutoConfig.for_model(**published.config)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForImageTextToText.from_config(config)
    return model


def prompt(published: Published, text: int = TEXT) -> lk.VisionTokens:
    """The picture, then text."""
    kind, tokens = published.kind, published.tokens
    encoded = lk.Encoded(kind, published.arguments, (tokens,))
    mask = torch.arange(tokens + text)[None] < tokens
    return lk.VisionTokens({kind: mask}, torch.ones_like(mask), {kind: encoded})


def cells(published: Published) -> tuple[str, ...]:
    """A row of the table."""
    model = build(published)
    config = lk.LightKVConfig.for_model(model, retention=0.55)
    plan = lk.plan_prefill(model, config, prompt(published), bytes_per_value=BF16)
    totals = plan.totals()
    return (
        published.name,
        f"{totals['layers']}",
        f"{published.tokens} ({published.seen})",
        ", ".join(f"{one.layer}/{one.windows}/{one.ratio:.0%}" for one in config.stages),
        f"{totals['retention']:.1%}",
        arrow(totals["kv_bytes_full"] / 2**20, totals["kv_bytes"] / 2**20),
        arrow(totals["flops_full"] / 1e12, totals["flops"] / 1e12),
    )


def arrow(before: float, after: float) -> str:
    """What becomes of a cost."""
    digits = 1 if before < 100 else 0
    return f"{before:.{digits}f} → {after:.{digits}f} ({after / before:.0%})"


def main() -> None:
    """Print the table."""
    height, width = PICTURE
    print(f"A picture of {width}×{height} pixels, {TEXT} tokens of text, batch 1, bf16.")
    print("Stages: after layer / windows per side / share of the vision tokens merged away.")
    print("FLOPs are the decoder's, in the prefill; the vision tower is not counted.\n")
    rows = [HEAD, *(cells(published) for published in SIZES)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if "--markdown" in sys.argv:
        rows.insert(1, tuple("-" * width for width in widths))
    for row in rows:
        line = " | ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        print(f"| {line} |" if "--markdown" in sys.argv else line.replace(" | ", "  ").rstrip())


if __name__ == "__main__":
    main()
