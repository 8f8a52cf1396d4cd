"""Importing the library does not load what only drawing and exporting need."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

HEAVY = ("matplotlib", "networkx")


def loaded_by(statement: str) -> list[str]:
    """Which of the heavy packages a fresh interpreter has after ``statement``."""
    code = f"{statement}; import sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    return ast.literal_eval(done.stdout.splitlines()[-1])


def test_importing_the_library_loads_neither_matplotlib_nor_networkx() -> None:
    assert (
        loaded_by("import lightkv_graphs, lightkv_gnn.stage.compressor, lightkv_gnn.stage.official")
        == []
    )


def test_the_test_above_would_notice() -> None:
    assert loaded_by("import networkx") == ["networkx"]
