"""Rows as a page: tables and figures of every suite and group, without conclusions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from importlib.util import find_spec
from itertools import compress
from pathlib import Path
from typing import Any

from lightkv_gnn.baselines.downsample import DOWNSAMPLE
from lightkv_gnn.evaluation import figures, pareto
from lightkv_gnn.evaluation.formats import (
    as_bytes,
    as_code,
    as_count,
    as_list,
    as_p_value,
    as_points,
    as_share,
    as_text,
)
from lightkv_gnn.evaluation.hard import with_hard
from lightkv_gnn.evaluation.pooling import BASELINE, Group, Pooled, best_at_budget, pool
from lightkv_gnn.evaluation.rows import Row

PAGE = "README.md"

MARK = "<!-- written by lightkv-gnn report -->"
"""First line of a page, so that nobody's own page is overwritten."""

HEAD = (
    "method",
    "retention asked",
    "retention observed",
    "KV bytes (ratio)",
    "prefill FLOPs (ratio)",
    "accuracy, %",
    "hard, %",
    "agreement, %",
    "difference, points",
    "p",
    "s / question",
    "prefill, ms",
    "method, ms",
    "effective rank",
    "attention entropy",
    "divergence merged",
    "relative error",
)

NOTES = """\
**Columns.** *Retention*: vision tokens held, averaged over the layers, as *asked* for (the budget)
and as *observed*. *KV bytes*: keys and values after the prefill, text included; *ratio*: of those
without compression. *Accuracy*: mean score with its 95 % interval. *Hard*: of the questions that
the picture scaled down to the same budget gets wrong (`downsample`; in brackets how many; without
compression, of those of each budget); a method that is better only elsewhere is better on easy
questions. *Agreement*: answers that are those without compression, right or wrong. *Difference*:
to no compression on the same questions, with its 95 % interval and two-sided p value. *Prefill*
and *method*: wall time a question, of the method itself as a part of the prefill's. *Effective
rank* (Roy and Vetterli 2007) of the vision tokens that are left, and entropy of the last token's
*attention* to them in nats, without what mass adds, in the layer after the last stage.
*Divergence merged* (mean of 1 −
cos between tokens that left and their survivors) and *relative error* (of the vision tokens'
hidden states) are given stage by stage, first to last. **Bold**: better than every other method at
that budget (p < 0.05 against each, paired; `none`, the oracles, and methods that save no prefill
FLOPs do not count); where nothing is bold, no method is.

**One seed.** Wilson's interval where every score is 0 or 1, else the percentile bootstrap's;
differences with the bootstrap's interval, and McNemar's exact test or the bootstrap's.
**Several seeds.** Means over the seeds. Intervals and p values are Student's over the seeds,
widened where needed to those of all questions together. No p value is corrected for the number of
rows. An interval of width 0 means that no question differs, not that none could.

**Figures.** Bars are 95 % intervals. The dashed line is no compression, or no difference to it,
and the grey band its interval. Points that share a place are set apart a little sideways. The
tables name what is grey, and have what had nothing beside it to be compared with. Of the KV cache
few methods have a line, named where it ends, and the others dots; the dotted line is the front:
what no other method beats at its size or less, oracles aside."""


def write_report(
    rows: Iterable[Row],
    folder: Path,
    *,
    title: str = "Evaluation",
    command: str | None = None,
    machines: Mapping[str, Mapping[str, Any]] | None = None,
    left_out: Sequence[Mapping[str, Any]] = (),
) -> list[Path]:
    """Writes a page with tables, and beside it figures where matplotlib is installed.

    Args:
        rows: With different keys.
        folder: Where to; made if it is not there.
        title: Of the page.
        command: That the page was made with.
        machines: What ``machine.json`` says of the runs, by the name of the rows' file.
        left_out: What ``left_out.json`` says: the fields of a row's key, and the reason.

    Returns:
        The page, then the figures.

    Raises:
        ValueError: There are no rows, two have the same key, or the scores of one are not as many
            as its questions.
        FileExistsError: The folder has a page that this did not write.
    """
    rows = list(rows)
    _check(rows)
    page = folder / PAGE
    if page.exists() and MARK not in page.read_text(encoding="utf-8", errors="replace"):
        raise FileExistsError(f"{page} is not a report's page and is left alone: choose --out")
    folder.mkdir(parents=True, exist_ok=True)
    groups: dict[Group, list[Pooled]] = {}
    for entry in pool(rows):
        groups.setdefault(entry.group, []).append(entry)
    look = figures.styles([row.method for row in rows])
    files, parts = [page], [MARK, f"# {as_text(title)}", _origin(command, machines or {}), NOTES]
    drawing = find_spec("matplotlib") is not None
    if not drawing:
        parts.append("Figures are drawn with matplotlib: `pip install 'lightkv-gnn[draw]'`.")
    for number, (group, entries) in enumerate(groups.items(), start=1):
        parts += [f"## {as_text(group.suite)}: {as_text(group.group)}", *_tables(entries)]
        for name, caption, canvas in _drawn(entries, look) if drawing else ():
            file = folder / f"{number:02}-{_slug(group)}-{name}.png"
            figures.save(canvas, file)
            files.append(file)
            parts += [f"![{caption}]({file.name})", f"*{caption}*"]
    parts += _missing(left_out)
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return files


def _drawn(
    entries: Sequence[Pooled], look: dict[str, dict[str, Any]]
) -> Iterator[tuple[str, str, Any]]:
    """Name, caption and picture of each figure of a group; the one of what is kept comes first."""
    plots = [(pareto.NAME, pareto.CAPTION, lambda: pareto.draw(entries))] * bool(figures.PLOTS)
    for plot in figures.PLOTS:
        plots.append((plot.name, plot.caption, partial(figures.draw, plot, entries, look)))
    for name, caption, draw in plots:
        if (canvas := draw()) is not None:
            yield name, caption, canvas


def _check(rows: Sequence[Row]) -> None:
    if not rows:
        raise ValueError("there are no rows to report")
    seen = set()
    for row in rows:
        if row.key in seen:
            raise ValueError(f"two rows for {row.key}: expected one; were runs mixed?")
        seen.add(row.key)
        if not row.questions or row.questions != len(row.scores):
            raise ValueError(
                f"{row.key}: {len(row.scores)} scores of {row.questions} questions; "
                "expected one each, and at least one"
            )


def _origin(command: str | None, machines: Mapping[str, Mapping[str, Any]]) -> str:
    """Where the numbers and the page are from."""
    lines = [
        f"- {as_text(name)}: "
        + "; ".join(f"{as_text(key)} {as_text(value)}" for key, value in facts.items() if value)
        for name, facts in machines.items()
    ]
    if not lines:
        lines = ["- The runs left no `machine.json`: versions and hardware are not known."]
    made = f"- This page: {datetime.now(timezone.utc).date().isoformat()}"
    return "\n".join([*lines, made + (f", by {as_code(command)}" if command else "")])


def _missing(left_out: Sequence[Mapping[str, Any]]) -> list[str]:
    """What methods could not do, with the groups and seeds for which they could not."""
    places: dict[str, dict[str, list[str]]] = {}
    for note in left_out:
        depth = figures.depth_title(note["depth"])
        line = f"{note['method']} at {note['retention']:.1%}, {depth}: {note['reason']}"
        own = places.setdefault(line, {}).setdefault(f"{note['suite']}, {note['group']}", [])
        own.append(str(note["seed"]))
    lines = []
    for line, groups in places.items():
        where = (f"{group} (seeds {', '.join(seeds)})" for group, seeds in groups.items())
        lines.append(as_text(f"- {line}. {'; '.join(where)}"))
    return ["## Left out, since a method could not", "\n".join(lines)] if lines else []


def _tables(entries: Sequence[Pooled]) -> list[str]:
    """One for each depth, without columns that nobody measured; methods without one are in all."""
    base = [entry for entry in entries if entry.first.method == BASELINE]
    others = [entry for entry in entries if entry.first.method != BASELINE]
    parts = []
    if not base:
        parts.append("There are no rows of `none`: differences are as the rows have them.")
    depths = sorted({entry.first.depth for entry in others if entry.first.depth >= 0}) or [-1]
    for depth in depths:
        here = [entry for entry in others if entry.first.depth in (depth, -1)]
        here.sort(key=lambda entry: (-entry.first.retention, -entry.accuracy))
        best = best_at_budget(here)
        table = [HEAD, ("---",) * len(HEAD)]
        small = [entry for entry in here if entry.first.method == DOWNSAMPLE.name]
        table += [_cells(entry, entry in best, small) for entry in base + here]
        if others:
            parts.append(f"### {figures.depth_title(depth).capitalize()}")
        parts.append(_asked(base + here))
        known = [any(cell != "–" for cell in column[2:]) for column in zip(*table, strict=True)]
        lines = (" | ".join(compress(cells, known)) for cells in table)
        parts.append("\n".join(f"| {line} |" for line in lines))
    return parts


def _asked(entries: Sequence[Pooled]) -> str:
    """How many seeds and questions are behind a table."""
    kinds: dict[str, list[str]] = {}
    for entry in entries:
        questions = sorted({f"{row.questions:,}" for row in entry.rows})
        seeds = len(entry.rows)
        words = f"{seeds} seed{'s' if seeds > 1 else ''}, {' or '.join(questions)} questions each"
        kinds.setdefault(words, []).append(as_text(entry.first.method))
    if len(kinds) == 1:
        return f"{next(iter(kinds))}."
    return "; ".join(f"{words}: {', '.join(dict.fromkeys(who))}" for words, who in kinds.items())


def _hard(entry: Pooled, small: Sequence[Pooled]) -> str:
    """Accuracy on the questions that smaller pictures get wrong."""
    if entry.first.method != BASELINE:
        value = as_share(entry.mean("hard_accuracy")).rstrip("%")
        return f"{value} ({entry.mean('hard_questions'):.0f})" if entry in small else value
    seeds = {row.seed: row for row in entry.rows}
    found = []
    for other in small:
        pairs = [(seeds[row.seed], row) for row in other.rows if row.seed in seeds]
        values = [with_hard(*pair).hard_accuracy for pair in pairs]
        known = [value for value in values if value is not None]
        if known:
            found.append(f"{100 * sum(known) / len(known):.1f} ({other.first.retention:.0%})")
    return ", ".join(found) or "–"


def _cells(entry: Pooled, best: bool, small: Sequence[Pooled]) -> tuple[str, ...]:
    first, value, difference = entry.first, f"{entry.accuracy:.1%}", entry.difference
    baseline = first.method == BASELINE
    value = value.rstrip("%")
    return (
        as_text(first.method),
        "" if baseline else f"{first.retention:.1%}",
        as_share(entry.mean("held")),
        f"{as_bytes(entry.mean('kv_bytes'))} ({as_share(entry.mean('kv_ratio'))})",
        f"{as_count(entry.mean('flops'))} ({as_share(entry.mean('flops_ratio'))})",
        (f"**{value}**" if best else value) + " " + as_points(*entry.interval, sign=""),
        _hard(entry, small),
        as_share(entry.mean("agreement")).rstrip("%"),
        ""
        if baseline
        else f"{100 * difference.value:+.1f} {as_points(difference.low, difference.high)}",
        "" if baseline else as_p_value(difference.p_value),
        f"{entry.mean('seconds'):.3g}",
        *(as_list([1e3 * entry.mean(name)]) for name in ("prefill_seconds", "method_seconds")),
        *(as_list([entry.mean(name)]) for name in ("effective_rank", "attention_entropy")),
        as_list([stage.divergence for stage in entry.stages]),
        as_list([stage.error for stage in entry.stages]),
    )


def _slug(group: Group) -> str:
    return re.sub(r"[^a-z0-9]+", "-", " ".join(group).lower()).strip("-")[:60] or "group"
