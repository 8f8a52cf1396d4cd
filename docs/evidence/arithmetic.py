"""The paper's arithmetic, redone: what schedules hold, cache and compute on published sizes.

python docs/evidence/arithmetic.py [FILE]

Writes docs/evidence/arithmetic.md, or the same into another file.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from published_costs import (  # noqa: E402
    BY_NAME,
    LAYERS,
    LLAVAS,
    QWEN,
    RELEASED,
    TEXT,
    Totals,
    decoder_weights,
    lk,
    longest_text,
    plan,
    saved,
    saved_with_tower,
    usual,
    vision_kv,
)

from lightkv_gnn.costs.schedule import halving, layer_average  # noqa: E402

PAGE = HERE / "arithmetic.md"

TEMPLATE = HERE / "arithmetic.template.md"
"""The page without its numbers."""

TEXTS = (16, 64, 256, 1024, 4096)


def at(layers: Sequence[int]) -> tuple[lk.Stage, ...]:
    """Halving stages after these layers."""
    return halving(layers, None)


def sizes() -> str:
    """The usual schedule on every size."""
    rows = []
    for name, size in BY_NAME.items():
        stages = usual(name)
        totals = plan(name, stages)
        rows.append(
            (
                name,
                f"{LAYERS[name]}",
                f"{size.tokens}",
                layers_of(stages),
                shrinks(vision_kv(name), totals["retention"], 2**20),
                shrinks(totals["kv_bytes_full"], totals["kv_ratio"], 2**20),
                shrinks(totals["flops_full"], totals["flops_ratio"], 1e12),
                f"{saved(totals):.1%}",
            )
        )
    head = ("model", "layers", "vision tokens", "stages after layers", "vision KV, MiB = retention")
    return table((*head, "whole KV, MiB", "prefill, TFLOP", "FLOPs saved"), rows)


def indexing() -> str:
    """Whether the numbered layer itself is compressed."""
    rows = []
    for name, numbers in (
        (LLAVAS[0], (12, 18, 24)),
        (LLAVAS[1], (12, 18, 24)),
        (QWEN, (12, 17, 22)),
    ):
        cells = [f"{LAYERS[name]}", ", ".join(map(str, numbers))]
        for stages in (at(numbers), at([number - 1 for number in numbers])):
            cells += [
                f"{layer_average(stages, LAYERS[name]):.1%}",
                f"{saved(plan(name, stages)):.1%}",
            ]
        rows.append([name, *cells])
    head = ("model", "layers", "numbers", "retention, stage after the layer", "FLOPs saved")
    return table((*head, "retention, stage before it", "FLOPs saved"), rows)


def lengths() -> str:
    """What is saved by length of the text."""
    rows = []
    for name in (*LLAVAS, QWEN):
        for words, stages in (("55 %", usual(name)), ("released", at(RELEASED[name]))):
            shares = [saved(plan(name, stages, text)) for text in TEXTS]
            tower = "–"
            if name in LLAVAS:
                tower = f"{saved_with_tower(name, plan(name, stages)):.1%}"
            cells = (f"{share:.1%}" for share in shares)
            retention = f"{plan(name, stages)['retention']:.1%}"
            schedule = f"{words}: {layers_of(stages)}"
            longest = longest_text(name, stages)
            rows.append((name, schedule, retention, *cells, f"{longest or 'never'}", tower))
    head = ("model", "stages after layers", "retention", *(f"{text:,} text" for text in TEXTS))
    return table((*head, "40 % up to (text tokens)", f"{TEXT} text, tower counted"), rows)


def memory() -> str:
    """What Fig. 1 breaks down, as far as it is arithmetic."""
    rows = []
    for name in LLAVAS:
        weights = decoder_weights(name)
        totals = plan(name, usual(name))
        for batch in (1, 8, 32):
            full, now = (batch * totals[key] for key in ("kv_bytes_full", "kv_bytes"))
            cells = (f"{value / 2**30:.2f}" for value in (weights, full, now))
            rows.append((name, f"{batch}", *cells, f"{(full - now) / (weights + full):.1%}"))
    head = ("model", "batch", "decoder weights, GiB", "KV, GiB", "compressed", "saved of both")
    return table(head, rows)


def retentions() -> str:
    """The horizontal axis of Fig. 4."""
    rows = []
    for retention in (0.9, 0.8, 0.7, 0.6, 0.55, 0.5, 0.4, 0.3, 0.2):
        stages = usual(QWEN, retention)
        rows.append((f"{retention:.0%}", layers_of(stages), *costs(plan(QWEN, stages))))
    return table(("asked for", "stages after layers", *COSTS), rows)


def depths() -> str:
    """The choices of Fig. 6."""
    chosen = [(first, first + 6, first + 12) for first in range(0, 27, 3)]
    name = "LLaVA-NeXT 13B"
    rows = [(layers_of(at(each)), *costs(plan(name, at(each)))) for each in chosen]
    return table(("stages after layers", *COSTS), rows)


COSTS = ("retention", "vision KV saved", "whole KV saved", "FLOPs saved")


def costs(totals: Totals) -> tuple[str, ...]:
    """What :data:`COSTS` names."""
    shares = (1 - totals["retention"], saved(totals, "kv"), saved(totals))
    return (f"{totals['retention']:.1%}", *(f"{share:.1%}" for share in shares))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def shrinks(full: float, ratio: float, unit: float) -> str:
    """Before, after and their ratio."""
    digits = 1 if full < 100 * unit else 0
    return f"{full / unit:.{digits}f} → {full * ratio / unit:.{digits}f} ({ratio:.1%})"


def layers_of(stages: Iterable[lk.Stage]) -> str:
    """Of the stages."""
    return ", ".join(str(stage.layer) for stage in stages) or "none"


def span(values: Iterable[float]) -> str:
    """Least to most."""
    values = list(values)
    return f"{min(values):.1%} to {max(values):.1%}"


def page() -> str:
    """The page with its numbers."""
    totals = {name: plan(name, usual(name)) for name in BY_NAME}
    long, short = (
        [name for name, size in BY_NAME.items() if (size.tokens > 300) == large]
        for large in (True, False)
    )
    texts = [longest_text(name, usual(name)) or 0 for name in LLAVAS]
    longest = [f"{text}" for half in (texts[:2], texts[2:]) for text in sorted(half)]
    numbers = {
        "text": TEXT,
        "vision_saved": span(1 - each["retention"] for each in totals.values()),
        "flops_saved_long": span(saved(totals[name]) for name in long),
        "flops_saved_short": span(saved(totals[name]) for name in short),
        "halving": f"{1 / layer_average(at((11, 17, 23)), 32):.2f}",
        "released_halving": f"{1 / layer_average(at(RELEASED[LLAVAS[0]]), 32):.2f}",
        "longest_15": " to ".join(longest[:2]),
        "longest_next": " to ".join(longest[2:]),
        "tower_saved": span(saved_with_tower(name, totals[name]) for name in LLAVAS),
        **{each.__name__: each() for each in TABLES},
    }
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(numbers)


TABLES = (sizes, indexing, lengths, memory, retentions, depths)


if __name__ == "__main__":
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    file.write_text(page(), encoding="utf-8")
    print(f"wrote {file.name}")
