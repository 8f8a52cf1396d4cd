"""``lightkv-gnn doctor``, on this machine and on ones where something is missing."""

from __future__ import annotations

import importlib
import json
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch
import transformers
from families.processors import NEED_TORCHVISION, PARTS
from transformers import Cache

from lightkv_gnn import Ledger, adapters, seams, tiny
from lightkv_gnn.adapters import families
from lightkv_gnn.commands import diagnosis as doctor
from lightkv_gnn.commands.cli import main


def without(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """As if a package were not installed."""

    def look(name: str) -> str:
        if name == missing:
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor, "version", look)


def breaks(monkeypatch: pytest.MonkeyPatch, module: str, error: Exception) -> None:
    """As if a package could not be imported."""

    def load(name: str) -> object:
        if name == module:
            raise error
        return importlib.import_module(name)

    monkeypatch.setattr(doctor, "import_module", load)


def test_a_sound_machine(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["works"] is True
    versions = {package["name"]: package["version"] for package in found["required"]}
    assert versions["torch"] == torch.__version__
    assert versions["transformers"] == transformers.__version__
    assert found["devices"][0].startswith("cpu")
    assert [family["name"] for family in found["families"]] == list(families())
    assert all(family["known"] for family in found["families"])
    assert "retention 54.9%" in found["proof"]["detail"]


def test_what_is_missing_comes_with_a_command(capsys, monkeypatch):
    without(monkeypatch, "torchvision")
    assert main(["doctor"]) == 0
    printed = capsys.readouterr()
    lines = {line[:16].strip(): line[17:] for line in printed.out.splitlines()}
    assert lines["torchvision"].startswith("not installed (for processors of some families")
    assert lines["torchvision"].endswith(doctor.torchvision_command(torch.__version__))
    table = printed.out[printed.out.index("model families\n") :].split("\n\n")[0].splitlines()[1:]
    assert len({len(line) - len(line.split(maxsplit=1)[1]) for line in table}) == 1
    said = dict(line.split(maxsplit=1) for line in table)
    assert list(said) == sorted(families())
    assert said["qwen2_vl"] == "its processor needs torchvision, as above"
    assert said["llava"] == "ready"
    assert lines["a compression"].startswith("works: ")
    assert printed.err == "importing everything, then compressing once ...\n"


def test_what_is_broken_is_told_from_what_is_missing(capsys, monkeypatch):
    breaks(monkeypatch, "matplotlib", RuntimeError("operator does not exist\nmore"))
    assert main(["doctor"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "BROKEN" in line)
    assert line.startswith("matplotlib")
    assert line.endswith("operator does not exist; try pip install 'lightkv-gnn[draw]'")


def test_without_a_basic_package_nothing_works(capsys, monkeypatch):
    breaks(monkeypatch, "transformers", ImportError("no module"))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "is BROKEN: no module; try pip install transformers" in out
    assert "FAILED: not tried without transformers" in out


def test_a_compression_that_fails_is_told(capsys, monkeypatch):
    def load() -> None:
        raise OSError("no weights")

    monkeypatch.setattr(tiny, "load", load)
    assert main(["doctor"]) == 1
    assert "FAILED: OSError: no weights" in capsys.readouterr().out


def test_versions_that_were_tested_are_told_with_what_was_found(capsys, monkeypatch):
    monkeypatch.setattr(seams.transformers, "__version__", "5.99.1")
    with pytest.warns(UserWarning, match="newer than the versions that were tested"):
        assert main(["doctor"]) == 0
    (line,) = (x for x in capsys.readouterr().out.splitlines() if x.startswith("interfaces"))
    assert "works: tested with transformers 5.17 to" in line
    assert "installed is 5.99.1, which is newer; layers take" in line


def test_an_interface_that_is_missing_is_told(capsys, monkeypatch):
    monkeypatch.delattr(Cache, "get_mask_sizes")
    assert main(["doctor"]) == 1
    assert "FAILED: UnsupportedModelError: transformers" in capsys.readouterr().out


def test_a_compression_that_saves_nothing_is_told(capsys, monkeypatch):
    real = Ledger.totals
    monkeypatch.setattr(Ledger, "totals", lambda self: {**real(self), "kv_bytes_observed": 7})
    assert main(["doctor"]) == 1
    assert "of KV; planned" in capsys.readouterr().out


def test_families_unknown_to_transformers_are_told(capsys, monkeypatch):
    monkeypatch.setattr(adapters, "families", lambda: ("llava", "later"))
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{'later':16} not in this transformers: pip install --upgrade transformers" in lines
    assert f"{'llava':16} ready" in lines


def test_needs_are_those_of_the_processors():
    assert set(doctor.PROCESSOR_NEEDS) == set(NEED_TORCHVISION) - {"llava_pixtral"}
    assert set(doctor.PROCESSOR_NEEDS) < set(PARTS)


@pytest.mark.parametrize(
    ("build", "index"),
    [("2.13.0+cpu", "/cpu"), ("2.13.0+cu130", "/cu130"), ("2.13.0", ""), (None, "")],
)
def test_torchvision_comes_from_where_torch_did(build, index):
    expected = f" --index-url https://download.pytorch.org/whl{index}" if index else ""
    assert doctor.torchvision_command(build) == f"pip install torchvision{expected}"
