"""The page: markup, style, program and data in one file, which needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any

from lightkv_graphs.explore.payload import payload
from lightkv_graphs.explore.view import View

MODULES = (
    "dom",
    "data",
    "colours",
    "places",
    "board",
    "lineage",
    "details",
    "layers",
    "panel",
    "controls",
    "explore",
)
"""The program's files, each after those that it imports from."""

TITLE = "How vision tokens merged"


def write_page(
    path: str | PathLike[str], views: View | Sequence[View], *, title: str = TITLE
) -> Path:
    """Writes the explorer of one view, or of several of the same image beside each other.

    The page is one file: it opens from a disk, loads nothing, and everything given, such as
    prompts, is shown as text.

    Args:
        path: Where to; an existing file is replaced.
        views: What to show.
        title: Of the page.

    Returns:
        The path.

    Raises:
        ValueError: There are no views, or they begin with different tokens.
        OSError: The file cannot be written.
    """
    path = Path(path)
    path.write_text(page_html(views, title=title), encoding="ascii")
    return path


def page_html(views: View | Sequence[View], *, title: str = TITLE) -> str:
    """The explorer as HTML, in ASCII; see :func:`write_page`."""
    shown = [views] if isinstance(views, View) else list(views)
    style, program = _file("page.css"), _program()
    parts = {
        "title": html.escape(title).encode("ascii", "xmlcharrefreplace").decode("ascii"),
        "policy": (
            f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; "
            f"script-src '{_hash(program)}'; base-uri 'none'; form-action 'none'"
        ),
        "style": style,
        "program": program,
        "data": as_data(payload(shown)),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _file("page.html"))


def frame(views: View | Sequence[View], *, height: int = 860) -> str:
    """The explorer as an ``<iframe>`` of so many pixels, for a notebook."""
    inside = html.escape(page_html(views), quote=True)
    return (
        f'<iframe srcdoc="{inside}" sandbox="allow-scripts" title="{TITLE}" '
        f'width="100%" height="{height}" frameborder="0"></iframe>'
    )


def as_data(value: Any) -> str:
    """JSON for a ``<script>`` element: in ASCII, and nothing in it ends or opens markup."""
    text = json.dumps(value, separators=(",", ":"))
    return re.sub("[<>&]", lambda sign: f"\\u{ord(sign[0]):04x}", text)


def _program() -> str:
    """The modules as one: what they import from each other is in scope without importing."""
    joined = "\n".join(_file(f"{name}.js") for name in MODULES)
    joined = re.sub(r'^import \{[^}]*\} from "\./\w+\.js";\n', "", joined, flags=re.MULTILINE)
    return re.sub(r"^export ", "", joined, flags=re.MULTILINE)


@lru_cache
def _file(name: str) -> str:
    return files("lightkv_graphs.explore").joinpath(name).read_text(encoding="ascii")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("ascii")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
