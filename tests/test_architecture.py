"""Who may import whom, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
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
    "certificate",
    "matching",
    "prompt_matching",
    "greedy",
    "coverage",
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

BELOW = {
    "errors": (),
    "choices": ("errors",),
    "sources": (),
    "machine": ("__version__",),
    "intervals": (),
    "tables": (),
    "units": (),
    "seams": ("errors",),
    "costs": ("errors", "choices", "tables", "units"),
    "stage": ("errors", "choices"),
    "attention": ("errors", "choices", "seams"),
    "cache": ("errors", "choices", "seams"),
    "adapters": ("errors", "choices", "seams", "costs"),
    "config": ("errors", "choices", "attention", "stage", "costs", "adapters", "tables"),
    "vllm": ("errors", "choices", "stage", "adapters", "__version__"),
}
"""What the small files and the lower rooms may import; graphs may be imported by all."""

ON_TOP = {
    "session": tuple(name for name in BELOW if name not in ("sources", "machine", "intervals")),
    "planning": ("sources", "session"),
    "tiny": ("intervals", "session"),
    "asking": ("sources", "session", "tiny"),
    "baselines": ("session",),
    "evaluation": ("machine", "intervals", "session", "baselines", "tiny", "__version__"),
    "bench": ("machine", "session", "planning", "baselines", "vllm"),
    "batch": ("sources", "machine", "session", "asking", "__version__"),
    "harness": ("sources", "session", "asking", "baselines"),
}
"""What stands on a session may import of their own, and all that a session may."""

ROOMS = {
    **BELOW,
    **{name: (*own, *ON_TOP["session"]) for name, own in ON_TOP.items()},
    "commands": (*BELOW, *ON_TOP, "__version__", "attach", "LightKVConfig"),
    "__main__": ("commands",),
    "__init__": (*BELOW, *ON_TOP),
}
"""Each room and file, and the others that it may import."""

KNOWS_TRANSFORMERS = (
    "adapters",
    "asking",
    "attention",
    "bench",
    "cache",
    "commands",
    "evaluation",
    "harness",
    "planning",
    "seams",
    "session",
    "tiny",
)
"""Rooms that may import transformers; others may for types."""

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
            return any("/".join(rest[:depth]) in before for depth in (1, 2))
        return top not in ("lightkv_gnn", "transformers")
    here = module.split("/")[0]
    if top == package and rest and rest[0] != here:
        return rest[0] in ROOMS[here]
    if top == "transformers":
        return item.for_types or here in KNOWS_TRANSFORMERS
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
    ours = {path.split("/")[1].removesuffix(".py") for path in files if "lightkv_gnn/" in path}
    assert ours == set(ROOMS)


def test_rooms_stand_on_floors() -> None:
    """What a room may import is below it, so that no chain of imports comes back to it."""
    names = {name for name in ROOMS if not name.startswith("__")}
    floors = TopologicalSorter({name: names & set(ROOMS[name]) for name in names})
    assert set(floors.static_order()) == names  # raises CycleError for a circle


def test_no_module_imports_itself_by_way_of_others() -> None:
    files = sources()
    modules = {
        path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in files
    }
    arrows = {
        name: {
            item.module
            for item in imports(path, files[path])
            if item.at_once and item.module in modules and item.module != name
        }
        for name, path in modules.items()
    }
    for name, path in modules.items():
        if path.endswith("/__init__.py"):  # what a package gathers does not ask it for anything
            arrows[name] = {to for to in arrows[name] if to.startswith(f"{name}.")}
            for other, to in arrows.items():
                to -= {name} if other.startswith(f"{name}.") else set()
    TopologicalSorter(arrows).prepare()


ROOM_FOLDERS = sorted(path.parent for path in (ROOT / "lightkv_gnn").glob("*/__init__.py"))


@pytest.mark.parametrize("room", ROOM_FOLDERS, ids=lambda room: room.name)
def test_a_room_says_what_its_files_do(room: Path) -> None:
    said = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8"))) or ""
    files = {path.stem for path in room.glob("[!_]*.py")}
    rooms = {path.parent.name for path in room.glob("*/__init__.py")}
    missing = {name for name in files | rooms if f"``{name}``" not in said}
    assert not missing, f"{room.name}/__init__.py says nothing of {sorted(missing)}"


@pytest.mark.parametrize("room", ROOM_FOLDERS, ids=lambda room: room.name)
def test_tests_mirror_the_rooms(room: Path) -> None:
    assert list((ROOT / "tests" / room.name).glob("test_*.py"))


@pytest.mark.parametrize(
    ("path", "source", "culprit"),
    [
        ("lightkv_graphs/build.py", "import lightkv_gnn", "lightkv_gnn"),
        ("lightkv_graphs/__init__.py", "from lightkv_gnn.stage import scatter", "lightkv_gnn.st"),
        ("lightkv_graphs/draw/merges.py", "def f():\n    import lightkv_gnn", "lightkv_gnn"),
        ("lightkv_graphs/layout.py", "from lightkv_graphs.trace import MergeTrace", ".trace"),
        ("lightkv_graphs/layout.py", "from lightkv_graphs import trace", ".trace"),
        ("lightkv_graphs/layout.py", "from . import trace", ".trace"),
        ("lightkv_graphs/trace.py", "from lightkv_graphs.draw.canvas import CELL", ".draw.canvas"),
        ("lightkv_graphs/draw/merges.py", "from lightkv_graphs.draw import layers", ".draw"),
        ("lightkv_graphs/matching.py", "from .build import merge_graph", ".build"),
        ("lightkv_graphs/occupancy.py", "import lightkv_graphs", "lightkv_graphs"),
        ("lightkv_graphs/draw/merges.py", "import transformers", "transformers"),
        (
            "lightkv_graphs/trace.py",
            "def f():\n    from lightkv_graphs.explore import x",
            ".explore",
        ),
        ("lightkv_graphs/stage.py", "def f():\n    import lightkv_graphs.explore", ".explore"),
        ("lightkv_graphs/explore/view.py", "import lightkv_graphs.explore.page", "explore.page"),
        ("lightkv_graphs/explore/page.py", "from lightkv_gnn import errors", "lightkv_gnn"),
        ("lightkv_graphs/draw/merges.py", "import matplotlib.pyplot as plt", "matplotlib.pyplot"),
        ("lightkv_graphs/trace.py", "try:\n    import networkx\nexcept ImportError: 1", "networkx"),
        ("lightkv_graphs/trace.py", "class A:\n    import networkx", "networkx"),
        ("lightkv_gnn/session/attach.py", "from matplotlib import pyplot", "matplotlib"),
        ("lightkv_gnn/stage/messages.py", "from transformers import Cache", "transformers"),
        ("lightkv_gnn/costs/plan.py", "def f():\n    import transformers.utils", "transformers"),
        ("lightkv_gnn/stage/scatter.py", "from lightkv_gnn.cache import layers", "gnn.cache"),
        ("lightkv_gnn/stage/guidance.py", "from lightkv_gnn.session import attach", "gnn.session"),
        ("lightkv_gnn/costs/ledger.py", "from lightkv_gnn.adapters import Adapter", ".adapters"),
        ("lightkv_gnn/cache/sizes.py", "import lightkv_gnn.attention.masks", "attention.masks"),
        ("lightkv_gnn/adapters/base.py", "def f():\n    from lightkv_gnn import config", ".config"),
        ("lightkv_gnn/config.py", "from lightkv_gnn.session import attach", ".session"),
        ("lightkv_gnn/session/call.py", "from lightkv_gnn.planning import model", ".planning"),
        ("lightkv_gnn/session/call.py", "from lightkv_gnn import tiny", "lightkv_gnn.tiny"),
        ("lightkv_gnn/batch/worker.py", "from lightkv_gnn.commands import run", ".commands"),
        ("lightkv_gnn/tiny/evaluate.py", "from lightkv_gnn.evaluation import rows", ".evaluation"),
        ("lightkv_gnn/baselines/fastv.py", "from lightkv_gnn.bench import cases", ".bench"),
        ("lightkv_gnn/seams.py", "from lightkv_gnn.session import checks", ".session"),
        ("lightkv_gnn/errors.py", "from lightkv_gnn import choices", ".choices"),
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
        ("lightkv_graphs/explore/page.py", "from lightkv_graphs.explore.view import View"),
        ("lightkv_gnn/adapters/llava.py", "import transformers"),
        ("lightkv_gnn/cache/layers.py", "from transformers.cache_utils import Cache"),
        ("lightkv_gnn/stage/ranks.py", "if TYPE_CHECKING:\n    import transformers"),
        ("lightkv_gnn/stage/compressor.py", "from lightkv_graphs import plan_stage"),
        ("lightkv_gnn/stage/compressor.py", "from lightkv_gnn.stage.messages import mean"),
        ("lightkv_gnn/commands/run.py", "from lightkv_gnn.asking import loading"),
        ("lightkv_gnn/session/call.py", "from lightkv_gnn import seams"),
    ],
)
def test_what_is_allowed_is_not_found(path: str, source: str) -> None:
    assert violations({path: source}) == []


MAKERS = {
    *("arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randint"),
    *("randn", "randperm", "tensor", "zeros"),
}
LABORATORY = ("bench", "evaluation", "tiny")


def test_tensors_are_made_on_a_device_that_is_named() -> None:
    """torch's default device is the user's, and sizes stay on the host."""
    unnamed = []
    for path, source in sources().items():
        if path.split("/")[1] in LABORATORY:
            continue
        for node in ast.walk(ast.parse(source)):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and ast.unparse(node.func.value) == "torch"
                and node.func.attr in MAKERS
                and all(word.arg not in ("device", None) for word in node.keywords)
            ):
                unnamed.append(f"{path}:{node.lineno}: {ast.unparse(node)}")
    assert unnamed == []
