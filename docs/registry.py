"""The tables of docs/families.md: which types of models are served, and why others are not.

python docs/registry.py            writes them into the page
python docs/registry.py --check    ends with 1 if the page is not what would be written

They stand between marks, ``<!-- registry: NAME -->`` and ``<!-- end -->``.  Words for a family are
in ``lightkv_gnn/adapters/served.py``, and those for the others in ``unserved.py`` beside it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from lightkv_gnn.adapters import base
from lightkv_gnn.adapters.served import SERVED, Family
from lightkv_gnn.adapters.unserved import KINDS, TARGETS, UNSERVED

PAGE = Path(__file__).parent / "families.md"

HEAD = ("family", "`model_type`", "text models", "one tile, on its true grid", "videos")

MARK = re.compile(r"(<!-- registry: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def row(family: Family) -> tuple[str, ...]:
    """Cells of a family."""
    adapters = [base._ADAPTERS[model_type] for model_type in family.types]
    texts = sorted({text for adapter in adapters for text in adapter.text_models})
    free = any(not adapter.text_models for adapter in adapters)
    models = "any" if free else ", ".join(texts)
    needs = f"; {family.needs}" if family.needs else ""
    return family.name, _code(family.types), f"{models}{needs}", family.tile, family.videos


def summary() -> str:
    """How many types there are, and are served."""
    served, others = len(base._ADAPTERS), [one for one in UNSERVED.values() if one.target]
    possible = served + len(others)
    return (
        f"**{served} of the {possible} model types of transformers that put vision tokens into a "
        "decoder's sequence have an adapter**, which tells the library which tokens those are and "
        'on what grid they lie. Others may be tried with `adapter="auto"`, which finds both in '
        "the model itself, or says what it misses.\n"
    )


def served() -> str:
    """The table of families."""
    return _table([HEAD, *map(row, SERVED)])


def unserved() -> str:
    """A list for each kind of types that are not served."""
    parts = []
    for kind, words in sorted(KINDS.items(), key=lambda one: one[0] not in TARGETS):
        own = {name: one.why for name, one in sorted(UNSERVED.items()) if one.kind == kind}
        if own:
            lines = (f"- `{name}`: {why}" for name, why in own.items())
            parts.append(f"*{kind[0].upper()}{kind[1:]}*: {words}.\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


PARTS = {"summary": summary, "served": served, "unserved": unserved}


def written(page: str) -> str:
    """The page with its tables as they are now."""
    return MARK.sub(lambda mark: f"{mark[1]}\n{PARTS[mark[2]]()}\n{mark[3]}", page)


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = (f"| {' | '.join(cells)} |" for cells in rows)
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body]) + "\n"


def main() -> int:
    """Writes the page, or compares."""
    before = PAGE.read_text(encoding="utf-8")
    after = written(before)
    if "--check" in sys.argv:
        return int(before != after)
    PAGE.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
