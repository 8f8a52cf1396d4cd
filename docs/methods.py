"""The methods that pages name: the table of docs/evaluation.md and the list in docs/lmms-eval.md.

python docs/methods.py            writes them into the pages
python docs/methods.py --check    ends with 1 if a page is not what would be written

The table stands between marks, ``<!-- methods -->`` and ``<!-- end -->``; the list ends a cell that
begins with :data:`LIST`.  Words for a method are its ``source``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from lightkv_gnn.baselines import METHODS
from lightkv_gnn.harness.arguments import BASELINES

FOLDER = Path(__file__).parent

TABLE = re.compile(r"(<!-- methods -->\n).*?(<!-- end -->)", re.DOTALL)

LIST = "a method instead of LightKV: "


def table() -> str:
    """Every method, and what it does."""
    rows = [f"| `{method.name}` | {method.source} |" for method in METHODS.values()]
    return "\n".join(["| method | what it does |", "|---|---|", *rows]) + "\n"


def listed(names: Iterable[str]) -> str:
    """Names as code, with commas between."""
    return ", ".join(f"`{name}`" for name in names)


def pages() -> dict[str, str]:
    """What each page should say, by its name.

    Raises:
        ValueError: A page lacks its marks.
    """
    texts = {
        name: (FOLDER / name).read_text(encoding="utf-8")
        for name in ("evaluation.md", "lmms-eval.md")
    }
    head, mark, rest = texts["lmms-eval.md"].partition(LIST)
    if not mark or not TABLE.search(texts["evaluation.md"]):
        raise ValueError("a page has no marks: expected those that this script names")
    _, end, tail = rest.partition(" |\n")
    return {
        "evaluation.md": TABLE.sub(
            lambda found: f"{found[1]}{table()}{found[2]}", texts["evaluation.md"]
        ),
        "lmms-eval.md": head + mark + listed(BASELINES) + end + tail,
    }


def main() -> int:
    """Writes the pages, or checks them."""
    status = 0
    for name, text in pages().items():
        page = FOLDER / name
        if sys.argv[1:] != ["--check"]:
            page.write_text(text, encoding="utf-8")
        elif page.read_text(encoding="utf-8") != text:
            print(f"{name} is not what the methods say: run python docs/methods.py")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
