"""Traces live in files: what was saved comes back, and what is not valid does not."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import traces
from reference import make_layout
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightkv_gnn.stage.compressor import TokenCompressor
from lightkv_graphs import MergeTrace, StageTrace, TraceFileError, stride_matching
from lightkv_graphs.header import FORMAT

GRIDS: dict[str, Any] = {
    "one": [[(4, 6)]],
    "two samples": [[(6, 5), (3, 3)], [(4, 4)]],
    "a sample without images": [[], [(3, 4)]],
}
INTEGERS = ("window", "kept", "survivor")
PLACES = ("sample", "image", "row", "col", "mass", "protected")


def example(path: Path | None = None, **variant: Any) -> MergeTrace:
    trace = traces.traced([[(6, 5)], [(4, 4)]], guided=True, newlines=True, **variant)
    if path is not None:
        trace.save(path)
    return trace


def same_layout(one: Any, other: Any) -> None:
    for name in PLACES:
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.grids == other.grids
    assert one.samples == other.samples
    assert one.counts == other.counts


@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("variant", [{}, {"newlines": 1}, {"holes": 5, "protect": 4}], ids=str)
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5])
def test_what_was_saved_comes_back(
    grids: Any, variant: dict[str, int], guided: bool, ratio: float, tmp_path: Path
) -> None:
    trace = traces.traced(grids, ratio=ratio, guided=guided, **variant)
    trace.save(tmp_path / "a")
    loaded = MergeTrace.load(tmp_path / "a")
    same_layout(trace.layout, loaded.layout)
    assert len(loaded) == len(trace)
    for one, other in zip(trace, loaded, strict=True):
        assert (one.layer, one.windows) == (other.layer, other.windows)
        same_layout(one.layout, other.layout)
        for name in INTEGERS:
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        assert torch.equal(one.weight.float(), other.weight)
        assert torch.equal(one.similarity.float(), other.similarity)
        assert (one.guidance is None) == (other.guidance is None) == (not guided)
        if one.guidance is not None and other.guidance is not None:
            assert torch.equal(one.guidance.float(), other.guidance)
    assert trace.to_networkx().edges == loaded.to_networkx().edges
    loaded.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def certified(path: Path | None = None) -> MergeTrace:
    return example(path, compressor=TokenCompressor(matcher="coverage_matching"))


def test_certificates_come_back(tmp_path: Path) -> None:
    trace = certified(tmp_path / "a")
    for one, other in zip(trace, MergeTrace.load(tmp_path / "a"), strict=True):
        assert one.certificate is not None
        assert other.certificate is not None
        assert all(
            torch.equal(*pair) for pair in zip(one.certificate, other.certificate, strict=True)
        )
        assert other.to("cpu").certificate is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:2], r"certificate has shape \[2, 2\]: expected \[3, image\]"),
        (lambda rows: rows[:, :1], r"certificate.weight has shape \[1\]: expected \[image\]"),
        (lambda rows: -rows, r"certificate.weight\[0\] is -.*: expected 0 or more"),
        (lambda rows: rows[[1, 0, 2]], r"certificate.lost\[0\] is .*: expected 0 to the weight"),
        (lambda rows: rows[[0, 2, 1]], r"certificate.least\[0\] is .*: expected 0 to what is lost"),
        (lambda rows: rows * torch.nan, r"certificate.weight\[0\] is nan"),
    ],
)
def test_certificates_that_cannot_be(
    change: Callable[[Tensor], Tensor], message: str, tmp_path: Path
) -> None:
    certified(tmp_path / "a")
    header, tensors = contents(tmp_path / "a")
    tensors["0.certificate"] = change(tensors["0.certificate"]).contiguous()
    save_file(tensors, tmp_path / "b", {FORMAT: json.dumps(header)})
    refused(tmp_path / "b", message)


def test_occupancy_after_loading_counts_the_tokens(tmp_path: Path) -> None:
    example(tmp_path / "a")
    for done in MergeTrace.load(tmp_path / "a"):
        free = done.layout.image[~done.layout.protected].bincount().tolist()
        assert [occupancy.tokens for occupancy in done.layout.occupancy] == free


def test_no_stages(tmp_path: Path) -> None:
    trace = MergeTrace(make_layout([[(2, 3)]]), ())
    trace.save(tmp_path / "a")
    loaded = MergeTrace.load(tmp_path / "a")
    same_layout(trace.layout, loaded.layout)
    assert len(loaded) == 0


PROMPTS = ["wie groß?\n\0", 'ein "Wort" \\ ☃ 𝄞 \ud800']


def test_prompts_come_back(tmp_path: Path) -> None:
    trace = example().with_prompts(PROMPTS)
    trace.save(tmp_path / "a")
    assert MergeTrace.load(tmp_path / "a").prompts == tuple(PROMPTS) == trace.to("cpu").prompts
    assert example().prompts == ()


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["one"], "1 prompts for 2 samples: expected one each, or none"),
        ("what", "prompts is 'what': expected a list"),
        (["one", 2], r"prompts is \('one', 2\): expected a list of strings"),
    ],
)
def test_prompts_are_strings_one_per_sample(prompts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        example().with_prompts(prompts)


@pytest.mark.parametrize("ratio", [0.5, 0.2])
def test_files_are_small(ratio: float, tmp_path: Path) -> None:
    """As many tokens as LLaVA-NeXT gives a picture."""
    trace = traces.traced([[(24, 24)] * 5], ratio=ratio, guided=True)
    assert len(trace.layout) == 2880
    trace.save(tmp_path / "a")
    assert (tmp_path / "a").stat().st_size < 100_000


def test_large_numbers_come_back(tmp_path: Path) -> None:
    cheap = TokenCompressor(matcher=stride_matching)
    trace = traces.traced([[(1, 40_000)], [(200, 1)]], ((0, 200),), compressor=cheap)
    trace.save(tmp_path / "a")
    loaded = MergeTrace.load(tmp_path / "a")
    assert torch.equal(loaded.layout.col, trace.layout.col)
    assert torch.equal(loaded.stages[0].window, trace.stages[0].window)


def test_an_error_leaves_the_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example(tmp_path / "a")
    before = (tmp_path / "a").read_bytes()
    real = Path.write_bytes

    def half(path: Path, data: bytes) -> int:
        assert path.name != "a"
        real(path, data[: len(data) // 2])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="no space left"):
        example(tmp_path / "a", ratio=0.25)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == before
    monkeypatch.undo()
    monkeypatch.setattr(Path, "replace", half)
    with pytest.raises(TypeError):
        example(tmp_path / "a", ratio=0.25)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == before
    monkeypatch.undo()
    example(tmp_path / "a", ratio=0.25)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() != before


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "missing"
    with pytest.raises(FileNotFoundError, match=rf"a.safetensors cannot .* no folder {folder}$"):
        example(folder / "a.safetensors")


def test_what_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    trace = example()
    trace.stages[1].weight[3] = torch.nan
    with pytest.raises(ValueError, match=r"stage 1: weight\[3\] is nan: expected a share"):
        trace.save(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        MergeTrace.load(tmp_path / "none")
    with pytest.raises(OSError, match=str(tmp_path)):
        MergeTrace.load(tmp_path)


# --- stages from tokens -----------------------------------------------------------------------


def given(stage: int) -> tuple[MergeTrace, dict[str, Any]]:
    """What ``StageTrace.from_tokens`` takes, from a valid stage of another trace."""
    trace = example()
    done = trace.stages[stage]
    names = ("layer", "windows", *INTEGERS, "weight", "similarity", "guidance")
    values = {name: getattr(done, name) for name in names}
    return trace, {
        name: value.clone() if isinstance(value, Tensor) else value
        for name, value in values.items()
    }


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_stage_from_tokens(stage: int) -> None:
    trace, values = given(stage)
    before = ([trace.layout] + [done.layout for done in trace])[stage]
    done = StageTrace.from_tokens(before, **values)
    same_layout(done.layout, trace.stages[stage].layout)


def entry(name: str, index: int, value: float) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        values[name][index] = value

    return change


def swapped(name: str, one: int, other: int) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        values[name][[one, other]] = values[name][[other, one]]

    return change


def put(name: str, value: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        values[name] = value(values[name])

    return change


def to_another_window(values: dict[str, Any]) -> None:
    """A merged token ends in a survivor of another window."""
    into = values["window"][values["kept"]]
    source = int((values["survivor"] != -1).index_fill(0, values["kept"], False).nonzero()[0])
    values["survivor"][source] = int((into != values["window"][source]).nonzero()[0])


def protected_merges(values: dict[str, Any]) -> None:
    """A newline token, at 5, joins the one before it."""
    place = int((values["kept"] == 5).nonzero())
    values["kept"] = values["kept"][values["kept"] != 5]
    gone = values["survivor"] > place
    values["survivor"] = values["survivor"] - gone.long()
    values["survivor"][5] = place - 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("weight", lambda v: v[1:]), r"weight has shape \[55\]: expected \[token\] = \[56\]"),
        (put("kept", lambda v: v[None]), r"kept has shape .*: expected \[survivor\]"),
        (put("layer", lambda _: -1), "layer -1 with 4 windows"),
        (put("windows", lambda _: 0), "with 0 windows"),
        (entry("kept", 0, -1), r"kept\[0\] is -1: expected a token from 0 to 55"),
        (entry("kept", -1, 56), "is 56: expected a token from 0 to 55"),
        (swapped("kept", 1, 2), r"kept\[2\] is \d+: expected tokens in ascending order"),
        (entry("survivor", 4, 99), r"survivor\[4\] is 99: expected a row of \d+"),
        (entry("survivor", 4, -1), r"survivor\[4\] is -1"),
        (entry("survivor", 5, 0), r"survivor\[kept\]\[\d+\] is 0: expected the number of its own"),
        (protected_merges, r"survivor\[5\] is \d: expected its own row, as it is protected"),
        (entry("window", 0, 17), r"window\[0\] is 17: expected a window of the token's image"),
        (entry("window", 0, 32), r"window\[0\] is 32: expected a window of the token's image"),
        (entry("window", 5, 0), r"window\[5\] is 0: expected a window of the token's image"),
        (entry("window", 5, 33), r"window\[5\] is 33: expected a window of the token's image"),
        (to_another_window, r"window\[\d+\] is \d+: expected that of the token it ends in"),
        (entry("weight", 3, -0.5), r"weight\[3\] is -0.5: expected a share of 0 or more"),
        (entry("weight", 3, torch.inf), r"weight\[3\] is inf"),
        (entry("weight", 3, 1.1), r"sum of weights\[\d+\] is .*: expected 1 for each survivor"),
        (entry("guidance", 3, torch.nan), r"guidance\[3\] is nan: expected a logarithm"),
        (entry("guidance", 3, torch.inf), r"guidance\[3\] is inf: expected a logarithm"),
        (put("similarity", lambda v: v * 1.01), "expected a cosine, NaN or minus infinity"),
        (put("similarity", lambda v: v * 0), r"similarity\[kept\]\[0\] is 0.0: expected 1"),
    ],
)
def test_stages_that_cannot_be(change: Callable[[dict[str, Any]], None], message: str) -> None:
    trace, values = given(0)
    change(values)
    with pytest.raises(ValueError, match=message):
        StageTrace.from_tokens(trace.layout, **values)


@pytest.mark.parametrize("number", [torch.nan, -torch.inf])
def test_similarity_may_be_unknown(number: float, tmp_path: Path) -> None:
    trace = example()
    done = trace.stages[0]
    source = int((done.weight != -1).index_fill(0, done.kept, False).nonzero()[0])
    done.similarity[source] = number
    trace.save(tmp_path / "a")
    loaded = MergeTrace.load(tmp_path / "a").stages[0].similarity[source]
    assert torch.equal(loaded.isnan(), torch.tensor(number).isnan())
    assert loaded.isneginf() == (number == -torch.inf)


# --- files of strangers -----------------------------------------------------------------------


def contents(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        return (
            json.loads(file.metadata()[FORMAT]),
            {name: file.get_tensor(name).clone() for name in file.keys()},  # noqa: SIM118
        )


def refused(path: Path, message: str) -> None:
    with pytest.raises(TraceFileError, match=message) as caught:
        MergeTrace.load(path)
    assert str(caught.value).startswith(f"{path} holds no valid trace: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "it has version 2: expected 1; a later release"),
        ({"version": None}, "it has version None: expected 1"),
        ({"extra": 1}, r"its header lacks \[\] and has \['extra'\] too many"),
        ({"layers": "3"}, "layers is '3': expected a list of integers from 0"),
        ({"layers": [3, True, 9]}, r"layers is \[3, True, 9\]"),
        ({"layers": [3, 3, 9]}, "expected each layer once, ascending"),
        ({"layers": [3, 7]}, "and as many windows"),
        ({"windows": [4, 2, 0]}, r"windows is \[4, 2, 0\]: expected a list of integers from 1"),
        ({"windows": [4, 2, 2**31 - 1]}, "expected .* 1 to 1000 windows"),
        ({"grids": [[6, 5], [4]]}, r"grids is .*: expected a list of pairs of integers"),
        ({"grids": [[6, 5], 4]}, r"grids is .*: expected a list of pairs of integers"),
        ({"grids": 4}, "grids is 4: expected a list of pairs of integers"),
        ({"grids": [[6, 5]]}, "there are 1 grids, 2 samples and 2 counts"),
        ({"grids": [[6, 5], [3, 4]]}, "token 51 .* lies outside its image's grid"),
        ({"grids": [[6, 5], [2**30, 2**30]]}, "cells: expected 4194304 at most"),
        ({"samples": [0, 1.0]}, "samples is"),
        ({"samples": [0, 10**400]}, "samples is"),
        ({"samples": [0, 2**16]}, "names sample 65536: expected 0 to 65535"),
        ({"counts": [2**31 - 1, 2**31 - 1]}, r"row has shape \[56\]: expected \[4294967294\]"),
        ({"counts": [34, 22]}, "token 34 .* lies outside its image's grid"),
        ({"prompts": "why"}, "prompts is 'why': expected a list of strings"),
        ({"prompts": ["why"]}, "1 prompts for 2 samples"),
        ({"prompts": [["why"] * 99] * 2}, r"prompts is .{77}\.\.\.: expected"),
    ],
    ids=str,
)
def test_headers_that_cannot_be(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    example(tmp_path / "a")
    header, tensors = contents(tmp_path / "a")
    save_file(tensors, tmp_path / "a", {FORMAT: json.dumps({**header, **changes})})
    refused(tmp_path / "a", message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "its header is no JSON"),
        ("[" * 100_000, "its header is no JSON"),
        ("9" * 5_000, "its header is no JSON"),
        ("[]", r"its header is \[\]: expected a JSON object"),
        ("{}", "it has version None"),
    ],
    ids=["cut off", "deep", "long number", "a list", "empty"],
)
def test_headers_that_are_none(text: str, message: str, tmp_path: Path) -> None:
    save_file({"row": torch.zeros(1)}, tmp_path / "a", {FORMAT: text})
    refused(tmp_path / "a", message)


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "a"
    save_file({"row": torch.zeros(1)}, path)
    refused(path, "its metadata has the keys .*: expected 'lightkv-trace'")
    for data in (b"", b"{}", b"PK\3\4" * 100, struct.pack("<Q", 2**60) + b"{}"):
        path.write_bytes(data)
        refused(path, "header")


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("col", None, "it has no tensor 'col': expected one, as its header says"),
        ("1.weight", None, "it has no tensor '1.weight'"),
        ("3.weight", torch.zeros(1), "it has a tensor '3.weight': expected"),
        ("more", torch.zeros(1), "it has a tensor 'more': expected"),
        ("row", torch.zeros(56), "tensor 'row' is F32: expected I8 or I16 or I32"),
        ("0.weight", torch.ones(56).half(), "tensor '0.weight' is F16: expected F32"),
        ("0.stays", torch.ones(56).to(torch.int8), "tensor '0.stays' is I8: expected BOOL"),
        ("row", torch.zeros(56, 1).to(torch.int8), r"row has shape \[56, 1\]: expected \[56\]"),
        ("0.stays", torch.ones(3).bool(), r"stage 0: stays has shape \[3\]"),
        ("0.stays", torch.zeros(56).bool(), r"stage 0: survivor has shape .* = \[56\]"),
        ("1.similarity", torch.ones(1), r"stage 1: similarity has shape \[1\]"),
        ("2.guidance", torch.ones(1), r"stage 2: guidance has shape \[1\]"),
        ("mass", torch.zeros(56).to(torch.int8), "has a mass below 1"),
    ],
)
def test_tensors_that_cannot_be(
    name: str, tensor: Tensor | None, message: str, tmp_path: Path
) -> None:
    trace = traces.traced([[(6, 5)], [(4, 4)]], guided=True, newlines=True)
    trace.save(tmp_path / "a")
    header, tensors = contents(tmp_path / "a")
    assert len(tensors["row"]) == 56
    del tensors[name if tensor is None else name.replace("3.", "0.").replace("more", "row")]
    if tensor is not None:
        _, whole = contents(tmp_path / "a")
        tensors = {**whole, name: tensor}
    save_file(tensors, tmp_path / "a", {FORMAT: json.dumps(header)})
    refused(tmp_path / "a", message)


def flipped(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice([1, 1, 2, 8])):
        data[chance.randrange(len(data))] = chance.randrange(256)


def cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def in_header(data: bytearray, chance: random.Random) -> None:
    """One character of the header is another one that often stands there."""
    place = chance.randrange(8, 8 + int.from_bytes(data[:8], "little"))
    data[place : place + 1] = chance.choice([b"0", b"9", b"]", b"[", b",", b'"', b"-", b"99", b""])


def moved(data: bytearray, chance: random.Random) -> None:
    start, other = (chance.randrange(len(data) - 64) for _ in range(2))
    data[start : start + 64] = data[other : other + 64]


@pytest.mark.parametrize("damage", [flipped, cut, in_header, moved])
def test_damaged_files_are_refused_or_valid(
    damage: Callable[[bytearray, random.Random], None], tmp_path: Path
) -> None:
    path = tmp_path / "a"
    example().with_prompts(["what?", "why?"]).save(path)
    whole, chance = path.read_bytes(), random.Random(0)
    refusals = 0
    for _ in range(300):
        data = bytearray(whole)
        damage(data, chance)
        path.write_bytes(data)
        try:
            loaded = MergeTrace.load(path)
        except TraceFileError:
            refusals += 1
            continue
        loaded.save(path)
        assert repr(MergeTrace.load(path)) == repr(loaded)
    assert refusals > 20
