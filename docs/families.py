"""What compression saves on published models: one picture and a short prompt, no weights.

python docs/families.py               tables
python docs/families.py --write       writes them into docs/families.md

Every model is built from its configuration on the meta device, which holds no numbers, and planned
by the library as for a real prefill.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from published import PICTURE, SIZES, Published
from published_newer import NEWER
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

import lightkv_gnn as lk

MODELS = (*SIZES, *NEWER)

RETENTIONS = (0.55, 0.3)
"""Of the two tables."""

TEXT = 64
"""Tokens of text in the prompt."""

BF16 = 2
"""Bytes per value of the cache."""

COSTS = ("stages", "retention", "KV MiB", "TFLOP")
HEADS = (("model", "layers", "vision tokens", *COSTS), ("model", *COSTS))

PAGE = Path(__file__).parent / "families.md"

MARK = re.compile(r"(<!-- published: (\d) -->\n).*?(<!-- end -->)", re.DOTALL)


def build(published: Published) -> PreTrainedModel:
    """The model, without numbers."""
    config = AutoConfig.for_model(**published.config)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForImageTextToText.from_config(config)
    return model


def prompt(published: Published, text: int = TEXT) -> lk.VisionTokens:
    """The picture, then text."""
    kind, tokens = published.kind, published.tokens
    encoded = lk.Encoded(kind, published.arguments, published.parts or (tokens,))
    mask = torch.arange(tokens + text)[None] < tokens
    return lk.VisionTokens({kind: mask}, torch.ones_like(mask), {kind: encoded})


def cells(published: Published) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A row of each table."""
    model = build(published)
    costs = [plan(model, published, retention) for retention in RETENTIONS]
    layers = f"{lk.adapter_for(model).layers}"
    shape = (layers, f"{published.tokens} ({published.seen})")
    return (published.name, *shape, *costs[0]), (published.name, *costs[1])


def plan(model: PreTrainedModel, published: Published, retention: float) -> tuple[str, ...]:
    """Schedule and costs."""
    config = lk.LightKVConfig.for_model(model, retention=retention)
    totals = lk.plan_prefill(model, config, prompt(published), bytes_per_value=BF16).totals()
    return (
        ", ".join(f"{one.layer}/{one.windows}/{one.ratio:.0%}" for one in config.stages),
        f"{totals['retention']:.1%}",
        arrow(totals["kv_bytes_full"] / 2**20, totals["kv_bytes"] / 2**20),
        arrow(totals["flops_full"] / 1e12, totals["flops"] / 1e12),
    )


def arrow(before: float, after: float) -> str:
    """What becomes of a cost."""
    digits = 1 if before < 100 else 0
    return f"{before:.{digits}f} → {after:.{digits}f} ({after / before:.0%})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under a head, as a document has them."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = (head, ["-" * width for width in widths], *rows)
    return "".join(
        "| "
        + " | ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True))
        + " |\n"
        for line in lines
    )


def main() -> None:
    """Print the tables, or write them into the page."""
    rows = zip(*map(cells, MODELS), strict=True)
    tables = [table(head, own) for head, own in zip(HEADS, rows, strict=True)]
    if "--write" in sys.argv:
        page = PAGE.read_text(encoding="utf-8")
        after = MARK.sub(lambda mark: f"{mark[1]}\n{tables[int(mark[2])]}\n{mark[3]}", page)
        PAGE.write_text(after, encoding="utf-8")
        return
    height, width = PICTURE
    print(f"A picture of {width}×{height} pixels, {TEXT} tokens of text, batch 1, bf16.")
    print("Stages: after layer / windows per side / share of the vision tokens merged away.")
    print("FLOPs are the decoder's, in the prefill; the vision tower is not counted.")
    for retention, own in zip(RETENTIONS, tables, strict=True):
        print(f"\nA retention of {retention:.0%}.\n\n{own}", end="")


if __name__ == "__main__":
    main()
