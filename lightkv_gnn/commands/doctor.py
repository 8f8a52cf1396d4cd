"""The command ``lightkv-gnn doctor``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

import typer

from lightkv_gnn.commands.diagnosis import Diagnosis, Family, Package, diagnose
from lightkv_gnn.commands.options import Json, make_app

app = make_app()


@app.command()
def doctor(as_json: Json = False) -> None:
    """Tell what is installed, what works, and how to get what is missing.

    Exit status 0 if the basics work: a small model is compressed to prove it.
    """
    if not as_json:
        typer.echo("importing everything, then compressing once ...", err=True)
    found = diagnose()
    if as_json:
        print(json.dumps({"works": found.works, **asdict(found)}, indent=2))
    else:
        print("\n".join(_lines(found)))
    if not found.works:
        raise typer.Exit(1)


def _lines(found: Diagnosis) -> Iterator[str]:
    for name, value in found.system.items():
        yield f"{name:16} {value}"
    for package in found.required:
        yield _line(package)
    for device in found.devices:
        yield f"{'device':16} {device}"
    yield "\noptional"
    for package in found.optional:
        yield _line(package)
    if found.families:
        yield "\nmodel families"
        width = max(16, *(len(family.name) for family in found.families))
        for family in sorted(found.families, key=lambda family: family.name):
            yield f"{family.name:{width}} {_state(family)}"
    yield ""
    for name, proof in (("interfaces", found.seams), ("a compression", found.proof)):
        yield f"{name:16} {'works' if proof.works else 'FAILED'}: {proof.detail}"


def _line(package: Package) -> str:
    use = f" (for {package.use})" if package.use else ""
    if package.works:
        return f"{package.name:16} {package.version}{use}"
    if package.version is None:
        return f"{package.name:16} not installed{use}: {package.get}"
    return (
        f"{package.name:16} {package.version} is BROKEN{use}: {package.problem}; try {package.get}"
    )


def _state(family: Family) -> str:
    if not family.known:
        return "not in this transformers: pip install --upgrade transformers"
    if family.missing:
        return f"its processor needs {' and '.join(family.missing)}, as above"
    return "ready"
