"""The explorer's page without a browser: what is in it, and that nothing gets out of its place."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from pages import HOSTILE, noise
from PIL import Image
from traces import traced

from lightkv_graphs import LayerBar, MergeTrace, Tile, TokenLayout, View, write_page
from lightkv_graphs.explore import frame, page_html
from lightkv_graphs.explore.payload import PIXELS, data_uri, mean_colours, pack, payload

DTYPES = {"u8": "u1", "i16": "<i2", "i32": "<i4", "f32": "<f4"}


def unpacked(packed: dict[str, str]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed["data"]), DTYPES[packed["kind"]])


class Elements(HTMLParser):
    """Start tags with their attributes, and the text of elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = f"{tag} {dict(attrs).get('type', '')}".strip()

    def handle_data(self, data: str) -> None:
        self.texts[self._open] = self.texts.get(self._open, "") + data


def data_of(page: str) -> dict:
    return json.loads(Elements(page).texts["script application/json"])


@pytest.mark.parametrize("guided", [True, False])
def test_payload_has_what_the_trace_has(guided: bool) -> None:
    trace = traced([[(6, 8), (3, 5)], [(4, 4)]], guided=guided).with_prompts(["one", "two"])
    (shown,) = payload([View(trace)])["views"]
    layout = trace.layout
    for name in ("row", "col", "mass", "protected"):
        assert unpacked(shown[name]).tolist() == getattr(layout, name).tolist()
    assert [(i["sample"], i["rows"], i["cols"], i["tokens"]) for i in shown["images"]] == [
        (0, 6, 8, 48),
        (0, 3, 5, 15),
        (1, 4, 4, 16),
    ]
    assert shown["prompts"] == ["one", "two"]
    assert shown["layers"] is None
    for number, (packed, stage) in enumerate(zip(shown["stages"], trace, strict=True)):
        assert (packed["layer"], packed["windows"]) == (stage.layer, stage.windows)
        for name in ("window", "kept", "survivor", "weight", "similarity"):
            value = getattr(stage, name)
            value = value.float() if value.is_floating_point() else value
            assert unpacked(packed[name]).tolist() == value.tolist()
        if guided:
            heard = trace.relative_guidance(number).float()
            assert unpacked(packed["guidance"]).tolist() == heard.tolist()
        else:
            assert packed["guidance"] is None


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (torch.tensor([0, 255]), "u8"),
        (torch.tensor([-1, 255]), "i16"),
        (torch.tensor([256]), "i16"),
        (torch.tensor([2**15]), "i32"),
        (torch.tensor([True, False]), "u8"),
        (torch.tensor([], dtype=torch.int64), "u8"),
        (torch.tensor([0.1, -torch.inf], dtype=torch.float64), "f32"),
        (torch.tensor([0.5], dtype=torch.bfloat16), "f32"),
    ],
)
def test_numbers_take_the_smallest_kind(values: torch.Tensor, kind: str) -> None:
    packed = pack(values)
    assert packed["kind"] == kind
    kept = values.float() if kind == "f32" else values.long()
    assert unpacked(packed).tolist() == kept.tolist()


def test_cells_have_the_mean_colour_of_their_pixels() -> None:
    picture = noise(40, 24)
    colours = np.frombuffer(mean_colours(picture, (6, 8)), "u1").reshape(6, 8, 3)
    cells = np.asarray(picture).reshape(6, 4, 8, 5, 3).mean((1, 3))
    assert np.abs(colours - cells).max() <= 1


def test_a_picture_of_several_views_is_there_once() -> None:
    trace, picture = traced([[(6, 8)]]), noise(16, 12)
    views = [View(trace, picture), View(trace, picture.copy()), View(trace)]
    shown = payload(views)
    assert len(shown["pictures"]) == 1
    assert [view["images"][0].get("picture") for view in shown["views"]] == [0, 0, None]
    assert shown["views"][0]["images"][0]["shape"] == 12 / 16


def test_small_pictures_are_kept_exactly() -> None:
    picture = noise(20, 30)
    start, _, data = data_uri(picture.convert("RGBA"), PIXELS).partition(",")
    assert start == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as found:
        assert np.array_equal(np.asarray(found), np.asarray(picture))


def test_large_pictures_become_smaller() -> None:
    start, _, data = data_uri(noise(900, 600), 10_000).partition(",")
    with Image.open(io.BytesIO(base64.b64decode(data))) as found:
        assert found.size == (122, 82)
    start, _, _ = data_uri(noise(900, 600), PIXELS).partition(",")
    assert start == "data:image/jpeg;base64"


def test_2880_tokens_with_a_photo_stay_small() -> None:
    trace = traced([[(48, 60)]], schedule=((7, 4), (15, 2), (23, 1)), guided=True)
    smooth = noise(24, 18).resize((1344, 1008), Image.Resampling.BICUBIC)
    assert len(page_html(View(trace, smooth))) < 320_000
    assert len(page_html(View(trace))) < 220_000


def test_given_text_stays_text() -> None:
    trace = traced([[(4, 4)]]).with_prompts([HOSTILE])
    given = View(trace, answer=HOSTILE, name=HOSTILE)
    page = page_html([given, View(trace, prompt=HOSTILE)], title=HOSTILE)
    assert page.isascii()
    found = Elements(page)
    assert [attrs for tag, attrs in found.tags if tag == "script"] == [
        {"type": "application/json", "id": "data"},
        {"type": "module"},
    ]
    views = data_of(page)["views"]
    assert views[0]["prompts"] == views[1]["prompts"] == [HOSTILE]
    assert views[0]["answer"] == views[0]["name"] == HOSTILE
    assert found.texts["title"].strip() == HOSTILE.replace("\ud800", "\ufffd")
    raw = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert raw is not None
    assert not set("<>&\u2028\u2029") & set(raw[1])


def test_a_title_like_a_placeholder_is_a_title() -> None:
    page = page_html(View(traced([[(4, 4)]])), title="{{data}} {{style}} \\1")
    assert Elements(page).texts["title"].strip() == "{{data}} {{style}} \\1"


def test_the_page_needs_nothing_else() -> None:
    page = page_html(View(traced([[(4, 4)]]), noise(8, 8)))
    found = Elements(page)
    assert not [tag for tag, _ in found.tags if tag in ("link", "iframe", "object", "base")]
    assert not [value for _, attrs in found.tags for value in [attrs.get("src")] if value]
    for address in re.findall(r"\w+://[\w./]+", page):
        assert address == "http://www.w3.org/2000/svg"  # a name, never fetched
    policy = next(attrs["content"] for tag, attrs in found.tags if "http-equiv" in attrs)
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy


def test_a_notebook_gets_the_page_in_a_frame() -> None:
    trace = traced([[(4, 4)]]).with_prompts([HOSTILE])
    shown = trace._repr_html_()
    ((tag, attrs),) = Elements(shown).tags
    assert (tag, attrs["sandbox"]) == ("iframe", "allow-scripts")
    assert attrs["srcdoc"] == page_html(View(trace))
    assert html.unescape(HOSTILE) not in shown
    assert 'height="300"' in frame(View(trace), height=300)


def test_the_page_is_written_where_it_is_asked_for(tmp_path) -> None:
    file = tmp_path / "page.html"
    view = View(traced([[(4, 4)]]), layers=[LayerBar(16, 16), LayerBar(8, 16, 100, 200)])
    assert write_page(str(file), view, title="Mine") == file
    written = data_of(file.read_text())
    assert written["views"][0]["layers"] == [
        {"tokens": 16, "full": 16, "kv_bytes": None, "kv_bytes_full": None},
        {"tokens": 8, "full": 16, "kv_bytes": 100, "kv_bytes_full": 200},
    ]
    with pytest.raises(FileNotFoundError):
        write_page(tmp_path / "nowhere" / "page.html", view)


def test_what_does_not_go_together_is_refused() -> None:
    trace = traced([[(4, 4), (3, 3)]])
    with pytest.raises(TypeError, match="expected a MergeTrace"):
        View("trace.safetensors")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1 pictures for a trace of 2 images"):
        View(trace, noise(8, 8))
    with pytest.raises(ValueError, match="1 prompts for 2 samples"):
        View(traced([[(4, 4)], [(3, 3)]]), prompt=["only one"])
    with pytest.raises(ValueError, match="no views"):
        page_html([])
    with pytest.raises(ValueError, match="view 1 has other vision tokens than view 0"):
        page_html([View(trace), View(traced([[(4, 4), (3, 4)]]))])
    layout = TokenLayout.from_tiles([[Tile(2, 2, before=1)]])
    moved = TokenLayout.from_tiles([[Tile(2, 2, after=1)]])
    with pytest.raises(ValueError, match="other vision tokens"):
        page_html([View(MergeTrace(layout, ())), View(MergeTrace(moved, ()))])


def test_prompts_are_the_traces_own_unless_given() -> None:
    trace = traced([[(4, 4)], [(4, 4)]]).with_prompts(["a", "b"])
    assert View(trace).prompts == ("a", "b")
    assert View(trace, prompt="c").prompts == ("c", "c")
    assert View(trace, prompt=["c", "d"]).prompts == ("c", "d")
    assert View(replace(trace, prompts=())).prompts == ()


@pytest.mark.parametrize("pictures", ["photo.jpg", ["photo.jpg"], 3])
def test_names_of_files_are_no_pictures(pictures: object) -> None:
    with pytest.raises(TypeError, match=r"a picture is .*: expected a PIL image"):
        View(traced([[(4, 6)]]), pictures)  # type: ignore[arg-type]
