"""Inputs of a batch: folders, JSON Lines and Parquet give the same rows and pictures."""

from __future__ import annotations

import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
import pyarrow.parquet as pq  # noqa: E402

from lightkv_gnn.batch import Asked, read_items  # noqa: E402


def picture(number):
    return Image.new("RGB", (3, 2), (number, 0, 255 - number))


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "photos"
    for number in range(40):
        file = made / ("" if number % 2 else "deep") / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(file)
    (made / "notes.txt").write_text("no picture")
    return made


def as_bytes(file):
    return file.read_bytes()


def numbers(items, asked=None):
    """What the pictures show: the number that each was painted with."""
    asked = items.asked(set()) if asked is None else asked
    return [int(np.asarray(items.pictures.read(one))[0, 0, 0]) for one in asked]


def written(kind, folder, tmp_path):
    """The folder's pictures as another kind of input, in the order of their names."""
    files = sorted(folder.rglob("*.png"))
    names = [file.relative_to(tmp_path).as_posix() for file in files]
    if kind == "lines":
        made = tmp_path / "list.jsonl"
        made.write_text("".join(json.dumps({"image": name}) + "\n\n" for name in names))
        return made
    image = {
        "paths": names,
        "bytes": [as_bytes(file) for file in files],
        "structs": [
            {"bytes": None if n % 3 else as_bytes(file), "path": name}
            for n, (file, name) in enumerate(zip(files, names, strict=True))
        ],
    }[kind.removeprefix("sharded ")]
    table = pa.table({"image": image})
    if not kind.startswith("sharded"):
        made = tmp_path / "table.parquet"
        pq.write_table(table, made, row_group_size=7)
        return made
    made = tmp_path / "tables"
    made.mkdir()
    for start in range(0, 40, 15):
        pq.write_table(table.slice(start, 15), made / f"{start:02}.parquet", row_group_size=7)
    return made


KINDS = ("lines", "paths", "bytes", "structs", "sharded bytes")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_input_has_the_same_pictures(kind, folder, tmp_path):
    plain = read_items(folder, "what ?")
    assert plain.table["id"].to_pylist()[:2] == ["01.png", "03.png"]
    assert sorted(numbers(plain)) == list(range(40))
    other = read_items(written(kind, folder, tmp_path), "what ?")
    assert numbers(other) == numbers(plain)
    assert other.table["id"].to_pylist() == [str(row) for row in range(40)]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_read_in_any_order_and_in_another_process(kind, folder, tmp_path):
    items = read_items(written(kind, folder, tmp_path), "what ?")
    asked = items.asked(set())
    expected = numbers(items)
    order = np.random.default_rng(0).permutation(40)
    items.pictures.read(asked[5])
    moved = pickle.loads(pickle.dumps(items.pictures))
    shuffled = [asked[row] for row in order]
    assert [np.asarray(moved.read(one))[0, 0, 0] for one in shuffled] == [
        expected[row] for row in order
    ]


def test_columns_are_carried_along_and_prompts_filled_in(tmp_path):
    file = tmp_path / "list.jsonl"
    rows = [
        {"image": "a.png", "id": 7, "answer": "cat", "boxes": [[1, 2]], "note": "line\u2028break"},
        {"image": "b.png", "id": "x", "prompt": "where ?"},
    ]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    with pytest.raises(ValueError, match="'id' is not of one kind"):
        read_items(file, "what ?")
    rows[0]["id"] = "7"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    assert read_items(file, "what ?").table.to_pylist() == [
        {"id": "7", "image": "a.png", "prompt": "what ?", "input_answer": "cat"}
        | {"boxes": [[1, 2]], "note": "line\u2028break"},
        {"id": "x", "image": "b.png", "prompt": "where ?", "input_answer": None}
        | {"boxes": None, "note": None},
    ]


def test_a_limit_takes_the_first_rows_and_done_ones_are_left_out(folder):
    items = read_items(folder, "what ?", limit=3)
    assert items.asked({"03.png"}) == [
        Asked(0, "01.png", "what ?"),
        Asked(2, "05.png", "what ?"),
    ]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ('{"image": "a", "id": 1}\n{"image": "b", "id": 1}', "1 ids are there more than once.*'1'"),
        ('{"image": "a"}\n{"image": 3}', "line 2: expected an object with 'image'"),
        ('{"image": "a"}\n{"imag', "line 2: "),
        ('{"image": "a", "prompt": "x"}\n{"image": "b"}', "1 of 2 rows have no prompt.* row 1"),
        (
            '{"image": "a", "id": 1}\n{"image": "b"}',
            "1 of 2 rows have no id.* row 1, .*: give each",
        ),
        ('{"image": "a", "prompt": [1]}', "'prompt' is list<.*expected text"),
        ('{"image": "a", "answer": 1, "input_answer": 2}', "'answer' is carried along as"),
        ("", "has no rows"),
    ],
)
def test_bad_lists_are_told_of(lines, told, tmp_path):
    file = tmp_path / "list.jsonl"
    file.write_text(lines)
    with pytest.raises(ValueError, match=told):
        read_items(file, None if "prompt" in told else "what ?")


def test_bad_sources_are_told_of(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_items(tmp_path / "missing.jsonl")
    with pytest.raises(ValueError, match=r"ends in \.jsonl or \.parquet"):
        read_items(folder / "notes.txt")
    with pytest.raises(ValueError, match="40 of 40 rows have no prompt, such as row 0"):
        read_items(folder)
    pq.write_table(pa.table({"image": [1.5]}), folder / "a.parquet")
    with pytest.raises(ValueError, match=r"has pictures, such as .* and Parquet files"):
        read_items(folder)
    with pytest.raises(ValueError, match="'image' is double: expected paths, bytes, or a struct"):
        read_items(folder / "a.parquet", "what ?")
    pq.write_table(pa.table({"picture": [b""]}), folder / "a.parquet")
    with pytest.raises(ValueError, match="has no column 'image'"):
        read_items(folder / "a.parquet", "what ?")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no pictures"):
        read_items(tmp_path / "empty", "what ?")


def test_a_cell_without_a_picture_says_so(tmp_path):
    content = io.BytesIO()
    picture(9).save(content, "PNG")
    rows = [{"bytes": content.getvalue()}, {"bytes": None}, None]
    pq.write_table(pa.table({"image": rows}), tmp_path / "t.parquet")
    items = read_items(tmp_path / "t.parquet", "what ?")
    first, *others = items.asked(set())
    assert numbers(items, [first]) == [9]
    for one in others:
        with pytest.raises(ValueError, match=r"t.parquet#[12]: the row has no picture"):
            items.pictures.read(one)
