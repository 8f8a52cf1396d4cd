"""Who may import whom, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"lightkv_gnn": ROOT, "lightkv_graphs": ROOT / "graphs"}

GRAPH_ORDER = (
    "host",
    "occupancy",
    "layout",
    "partition",
    "matching",
    "prompt_matching",
    "dropping",
    "build",
    "stage",
    "header",
    "files",
    "convert",
    "trace",
    "draw/canvas",
    "draw/merges",
    "draw/guidance",
    "draw/window",
    "draw/lineage",
    "draw/layers",
    "draw/__init__",
    "explore/view",
    "explore/payload",
    "explore/page",
    "explore/__init__",
)
"""Each module of the graph layer may import those before it."""

SHOWS_ITSELF = {"trace": "explore"}
"""What a notebook shows of a class is made by a later module, imported when it is asked for."""

LOWER = {
    "errors": set(),
    "choices": {"errors"},
    "guidance": {"choices"},
    "scatter": {"guidance", "kernels"},
    "messages": {"scatter"},
    "tensor_stage": {"scatter"},
    "ranks": {"errors"},
    "compressor": {"scatter", "messages", "tensor_stage", "ranks"},
    "official": {"scatter", "messages", "guidance", "compressor"},
}
"""What the model-free modules may import of their own package."""

KNOWS_MODELS = (
    "adapters/*",
    "session*.py",
    "backends.py",
    "capture.py",
    "cache*.py",
    "tiny/*",
    "evaluation/*",
    "harness/*",
    "bench/*",
    "cli*.py",
    "demo*.py",
    "doctor.py",
    "planning.py",
    "running.py",
)
"""Files of lightkv_gnn that may import transformers."""

ON_DEMAND = ("matplotlib", "networkx")


class Import(NamedTuple):
    """One imported module, and whether importing the file imports it."""

    module: str
    at_once: bool
    for_types: bool


def imports(path: str, source: str) -> Iterator[Import]:
    """Every import of a file; ``path`` is relative to the folder that holds its package."""
    package = path.split("/")[:-1]

    def visit(node: ast.AST, at_once: bool, for_types: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, at_once, for_types)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield Import(base, at_once, for_types)
            for alias in node.names:  # "from package import module"
                yield Import(f"{base}.{alias.name}", at_once, for_types)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            at_once = False
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from visit(child, False, True)
            for child in node.orelse:
                yield from visit(child, at_once, for_types)
            return
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_once, for_types)

    yield from visit(ast.parse(source), True, False)


def violations(files: Mapping[str, str]) -> list[str]:
    """What breaks the rules, as "path imports module"; ``files`` maps paths to sources."""
    found = []
    for path, source in files.items():
        for item in imports(path, source):
            if not allowed(path, item):
                found.append(f"{path} imports {item.module}")
    return sorted(set(found))


def allowed(path: str, item: Import) -> bool:
    package, _, file = path.partition("/")
    module = file.removesuffix(".py")
    top, *rest = item.module.split(".")
    if top in ON_DEMAND:
        return not item.at_once
    if package == "lightkv_graphs":
        if top == package and module in GRAPH_ORDER:
            before = GRAPH_ORDER[: GRAPH_ORDER.index(module)]
            if module in SHOWS_ITSELF and not item.at_once:
                before = (*before, SHOWS_ITSELF[module])
            return any("/".join(rest[:depth]) in before for depth in (1, 2))
        return top not in ("lightkv_gnn", "transformers")
    if top == package and module in LOWER:
        return bool(rest) and rest[0] in LOWER[module]
    if top == "transformers" and module in LOWER:
        return False
    if top == "transformers":
        return item.for_types or any(fnmatch(file, pattern) for pattern in KNOWS_MODELS)
    return True


def sources() -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): path.read_text(encoding="utf-8")
        for package, root in PACKAGES.items()
        for path in sorted((root / package).rglob("*.py"))
    }


def test_imports_follow_the_layers() -> None:
    assert violations(sources()) == []


def test_the_lists_above_name_the_modules_there_are() -> None:
    files = sources()
    graph_layer = {path.removesuffix(".py") for path in files if path.startswith("lightkv_graphs/")}
    assert graph_layer == {f"lightkv_graphs/{module}" for module in (*GRAPH_ORDER, "__init__")}
    assert {f"lightkv_gnn/{module}.py" for module in LOWER} <= set(files)


@pytest.mark.parametrize(
    ("path", "source", "culprit"),
    [
        ("lightkv_graphs/build.py", "import lightkv_gnn", "lightkv_gnn"),
        (
            "lightkv_graphs/__init__.py",
            "from lightkv_gnn.stage.scatter import backend",
            "lightkv_gnn.sc",
        ),
        ("lightkv_graphs/draw/merges.py", "def f():\n    import lightkv_gnn", "lightkv_gnn"),
        ("lightkv_graphs/layout.py", "from lightkv_graphs.trace import MergeTrace", ".trace"),
        ("lightkv_graphs/layout.py", "from lightkv_graphs import trace", ".trace"),
        ("lightkv_graphs/layout.py", "from . import trace", ".trace"),
        ("lightkv_graphs/trace.py", "from lightkv_graphs.draw.canvas import CELL", ".draw.canvas"),
        ("lightkv_graphs/draw/merges.py", "from lightkv_graphs.draw import layers", ".draw"),
        ("lightkv_graphs/matching.py", "from .build import merge_graph", ".build"),
        ("lightkv_graphs/occupancy.py", "import lightkv_graphs", "lightkv_graphs"),
        ("lightkv_graphs/draw/merges.py", "import transformers", "transformers"),
        ("lightkv_graphs/trace.py", "from lightkv_graphs.explore import frame", ".explore"),
        ("lightkv_graphs/stage.py", "def f():\n    import lightkv_graphs.explore", ".explore"),
        ("lightkv_graphs/explore/view.py", "import lightkv_graphs.explore.page", "explore.page"),
        ("lightkv_graphs/explore/page.py", "from lightkv_gnn import errors", "lightkv_gnn"),
        ("lightkv_graphs/draw/merges.py", "import matplotlib.pyplot as plt", "matplotlib.pyplot"),
        ("lightkv_graphs/trace.py", "try:\n    import networkx\nexcept ImportError: 1", "networkx"),
        ("lightkv_graphs/trace.py", "class A:\n    import networkx", "networkx"),
        ("lightkv_gnn/session.py", "from matplotlib import pyplot", "matplotlib"),
        ("lightkv_gnn/messages.py", "from transformers import Cache", "transformers"),
        (
            "lightkv_gnn/official.py",
            "def f():\n    import transformers.utils",
            "transformers.utils",
        ),
        (
            "lightkv_gnn/guidance.py",
            "if TYPE_CHECKING:\n    from transformers import PreTrainedModel",
            "transformers",
        ),
        ("lightkv_gnn/schedule.py", "import transformers", "transformers"),
        (
            "lightkv_gnn/scatter.py",
            "from lightkv_gnn.stage.messages import mean",
            "lightkv_gnn.stage.messages",
        ),
        ("lightkv_gnn/compressor.py", "from lightkv_gnn import adapters", "lightkv_gnn.adapters"),
        (
            "lightkv_gnn/guidance.py",
            "from lightkv_gnn.session.attach import attach",
            "lightkv_gnn.session.attach",
        ),
    ],
)
def test_a_planted_violation_is_found(path: str, source: str, culprit: str) -> None:
    found = violations({path: source})
    assert found
    assert all(line.startswith(f"{path} imports ") for line in found)
    assert any(culprit in line for line in found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("lightkv_graphs/draw/merges.py", "def f():\n    import matplotlib.pyplot"),
        ("lightkv_graphs/trace.py", "if TYPE_CHECKING:\n    import networkx"),
        ("lightkv_graphs/trace.py", "from lightkv_graphs.layout import TokenLayout"),
        ("lightkv_graphs/draw/merges.py", "from lightkv_graphs.draw.canvas import CELL"),
        ("lightkv_graphs/trace.py", "def f():\n    from lightkv_graphs.explore import frame"),
        ("lightkv_graphs/explore/page.py", "from lightkv_graphs.explore.view import View"),
        ("lightkv_gnn/adapters/llava.py", "import transformers"),
        ("lightkv_gnn/cache.py", "from transformers.cache_utils import Cache"),
        ("lightkv_gnn/config.py", "if TYPE_CHECKING:\n    import transformers"),
        ("lightkv_gnn/compressor.py", "from lightkv_graphs import plan_stage"),
        ("lightkv_gnn/compressor.py", "from lightkv_gnn.stage.messages import mean"),
    ],
)
def test_what_is_allowed_is_not_found(path: str, source: str) -> None:
    assert violations({path: source}) == []
