"""The explorer in a real browser, opened from the disk without a network."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import pytest
import torch
from pages import HOSTILE, Open, noise
from PIL import Image
from traces import traced

from lightkv_gnn.stage.compressor import TokenCompressor
from lightkv_graphs import LayerBar, MergeTrace, Tile, TokenLayout, View
from lightkv_graphs.explore import frame

pytestmark = pytest.mark.browser

ROWS, COLS = 6, 8
TRACE = traced([[(ROWS, COLS)]], guided=True)
OTHER = traced([[(ROWS, COLS)]], ratio=0.3)
POINTED = "token => document.querySelector('.told').dataset.token === String(token)"
PICTURE = noise(COLS, ROWS).resize((320, 240), Image.Resampling.NEAREST)


def canvas(page: Any, view: int = 0, kind: str = "base") -> str:
    """What is drawn, as text to compare."""
    return (
        page.locator(f".view >> nth={view}")
        .locator(f".board .{kind}")
        .evaluate("(canvas) => canvas.toDataURL()")
    )


def go(page: Any, position: int) -> None:
    page.locator("#stage").fill(str(position))
    page.wait_for_function(
        "at => document.querySelectorAll('#marks li')[at].className === 'now'", arg=position
    )


def place(
    page: Any, token: int, view: int = 0, cols: int = COLS, rows: int = ROWS
) -> tuple[float, float]:
    box = page.locator(".board").nth(view).bounding_box()
    row, col = divmod(token, cols)
    return (
        box["x"] + (col + 0.5) * box["width"] / cols,
        box["y"] + (row + 0.5) * box["height"] / rows,
    )


def hover(page: Any, token: int, **where: int) -> None:
    page.locator(".board").nth(where.get("view", 0)).scroll_into_view_if_needed()
    page.mouse.move(*place(page, token, **where))


def told(page: Any, view: int = 0) -> tuple[str, list[int]]:
    """Token and cluster that a view tells of."""
    panel = page.locator(".told").nth(view)
    members = panel.get_attribute("data-members")
    return panel.get_attribute("data-token"), [int(member) for member in members.split()]


def cluster(trace: MergeTrace, token: int, position: int) -> list[int]:
    if not position:
        return [token]
    survivor = int(trace.survivor_of(position - 1)[token])
    return trace.members(survivor, position - 1).tolist()


def test_it_opens_and_may_ask_for_nothing(opened: Open) -> None:
    page = opened(View(TRACE, PICTURE), title="Red <b>& blue")
    assert page.title() == page.locator("h1").inner_text() == "Red <b>& blue"
    assert (
        page.locator("#summary").inner_text().startswith("48 vision tokens, merged in 3 stages: 48")
    )
    assert page.locator("html").get_attribute("lang") == "en"
    blocked = page.evaluate(
        """() => new Promise((found) => {
          const heard = ({ violatedDirective }) => found(violatedDirective);
          document.addEventListener("securitypolicyviolation", heard);
          const image = new Image();
          image.onerror = () => setTimeout(found, 1000, "nothing");
          image.src = "https://example.org/picture.png";
        })"""
    )
    assert blocked == "img-src"
    assert opened.asked.pop() == "https://example.org/picture.png"
    assert "violates" in opened.complaints.pop()


def test_it_opens_on_the_patch_of_most_guidance(opened: Open) -> None:
    """Of each image; without a prompt, on one that lives on with some others."""
    trace = traced([[(ROWS, COLS)], [(4, 4)]], guided=True)
    guidance = trace.stages[0].guidance
    page = opened(View(trace))
    heading = page.locator(".told h3").first
    row, col = divmod(int(guidance[: ROWS * COLS].argmax()), COLS)
    assert heading.inner_text() == f"Row {row}, column {col}"
    page.locator("#images input").nth(1).check()
    row, col = divmod(int(guidance[ROWS * COLS :].argmax()), 4)
    assert heading.inner_text() == f"Row {row}, column {col}"
    unheard = opened(View(traced([[(ROWS, COLS)]])))
    assert unheard.locator(".told h3").first.inner_text().startswith("Row ")


def test_the_slider_changes_what_is_drawn(opened: Open) -> None:
    page = opened(View(TRACE, PICTURE))
    page.locator("input[name=clusters]").check()
    drawn = set()
    for position, layout in enumerate([TRACE.layout, *(stage.layout for stage in TRACE)]):
        go(page, position)
        drawn.add(canvas(page))
        caption = page.locator(".shown figcaption").inner_text()
        assert caption.startswith(f"{len(layout)} of 48 tokens" if position else "48 tokens")
        assert ("after layer" in caption) == bool(position)
    assert len(drawn) == 4


def test_the_caption_tells_what_a_stage_lost(opened: Open) -> None:
    how = TokenCompressor(matcher="coverage_matching")
    trace = traced([[(ROWS, COLS)], [(4, 4)]], guided=True, compressor=how)
    page = opened(View(trace))
    assert "lost" not in page.locator(".shown figcaption").inner_text()
    for position, stage in enumerate(trace, start=1):
        go(page, position)
        share, least = stage.certificate.shares_of_images()[0]
        found = re.search(
            r"lost (.+) % of what .*, any other choice of as many (.+) % at least",
            page.locator(".shown figcaption").inner_text(),
        )
        assert [float(value) for value in found.groups()] == pytest.approx(
            [100 * share, 100 * least], abs=0.51
        )


def test_hovering_a_patch_shows_its_cluster(opened: Open) -> None:
    page = opened(View(TRACE, PICTURE))
    for position, token in product(range(4), (0, 7, 20, 47)):
        go(page, position)
        hover(page, token)
        page.wait_for_function(POINTED, arg=token)
        members = cluster(TRACE, token, position)
        assert told(page) == (str(token), members)
        listed = page.locator(".patches li").all_inner_texts()
        assert listed == [f"{member // COLS},{member % COLS}" for member in members]
        fate = page.locator(".fate").inner_text()
        survivors = TRACE.kept(position - 1)[TRACE.survivor_of(position - 1)]
        home = int(survivors[token]) if position else token
        if len(members) == 1:
            assert "stands for itself" in fate
        elif home == token:
            assert "in its own place" in fate
        else:
            assert f"at row {home // COLS}, column {home % COLS}" in fate
    page.mouse.move(0, 0)
    page.wait_for_function(POINTED, arg="")


def test_the_patch_that_it_opens_on_has_a_rim(opened: Open) -> None:
    page = opened(View(TRACE, PICTURE))
    heading = page.locator(".told h3").inner_text()
    row, col = map(int, re.findall(r"\d+", heading))
    drawn = """(canvas, [row, col, rows, cols]) => {
      const { width, height } = canvas;
      const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
      const alpha = (y, x) =>
        data[4 * (Math.floor(y * height / rows) * width + Math.floor(x * width / cols)) + 3];
      const across = alpha(rows - row - 0.5, cols - col - 0.5);
      return [alpha(row + 0.5, col), alpha(row + 0.5, col + 0.5), across];
    }"""
    where = [row, col, ROWS, COLS]
    edge, middle, across = page.locator(".board .over").evaluate(drawn, where)
    assert edge > 0 == middle == across


def test_what_is_not_in_the_cluster_is_veiled(opened: Open) -> None:
    page = opened(View(TRACE, PICTURE))
    go(page, 2)
    token = max(range(48), key=lambda token: len(cluster(TRACE, token, 2)))
    hover(page, token)
    page.wait_for_function(POINTED, arg=token)
    clear = page.locator(".board .over").evaluate(
        """(canvas, [rows, cols]) => {
          const { width, height } = canvas;
          const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
          const clear = new Set();
          for (let pixel = 0; pixel < width * height; pixel++) {
            const row = Math.floor(Math.floor(pixel / width) / (height / rows));
            const col = Math.floor((pixel % width) / (width / cols));
            if (data[4 * pixel + 3] === 0) clear.add(row * cols + col);
          }
          return [...clear].sort((one, other) => one - other);
        }""",
        [ROWS, COLS],
    )
    assert clear == cluster(TRACE, token, 2)


def test_the_table_and_the_lineage_tell_the_traces_numbers(opened: Open) -> None:
    page = opened(View(TRACE, PICTURE))
    hover(page, 20)
    page.wait_for_function(POINTED, arg=20)
    rows = [row.split("\t") for row in page.locator(".told tbody tr").all_inner_texts()]
    row, token = 20, 20
    for number, (cells, stage) in enumerate(zip(rows, TRACE, strict=True)):
        survivor = int(stage.survivor[row])
        heard = float(TRACE.relative_guidance(number)[row])
        merged = int(stage.kept[survivor]) != row
        assert (int(cells[0]), int(cells[1])) == (stage.layer, int(stage.window[row]))
        assert float(cells[2]) == pytest.approx(float(stage.weight[row]), rel=0.01)
        if merged:
            assert float(cells[3]) == pytest.approx(float(stage.divergence[row]), rel=0.01)
        else:
            assert cells[3] == "\u2013"
        assert float(cells[4]) == pytest.approx(heard, rel=0.01)
        assert int(cells[5]) == int(stage.layout.mass[survivor])
        row = survivor
    leaves = cluster(TRACE, token, 3)
    assert len(leaves) <= 14
    nodes = len(leaves) + sum(
        len({int(TRACE.survivor_of(stage)[leaf]) for leaf in leaves}) for stage in range(3)
    )
    assert page.locator(".lineage .frame").count() == nodes
    assert page.locator(".lineage .edges path").count() == nodes - 1
    assert page.locator(".lineage use").count() == nodes


def test_toggles_change_what_is_drawn(opened: Open) -> None:
    page = opened([View(TRACE, PICTURE), View(OTHER, PICTURE)])
    go(page, 1)
    plain = canvas(page)
    for name in ("clusters", "survivors", "windows", "edges", "guidance", "differences"):
        box = page.locator(f"input[name={name}]")
        box.check()
        assert canvas(page) != plain, name
        box.uncheck()
        assert canvas(page) == plain, name


def test_guidance_comes_with_its_scale(opened: Open) -> None:
    page = opened(View(TRACE, PICTURE))
    assert page.locator("#legend").is_hidden()
    page.locator("input[name=guidance]").check()
    low, high = (float(end) for end in TRACE.relative_guidance(0).aminmax())
    numbers = re.findall(r"\d+\.?\d*", page.locator("#legend").inner_text())
    assert [float(number) for number in numbers] == pytest.approx([low, high, 1], rel=0.01)
    unguided = opened(View(OTHER))
    assert unguided.locator("input[name=guidance]").count() == 0


def test_two_prompts_are_linked(opened: Open) -> None:
    views = [View(TRACE, PICTURE, "red?", "yes", name="A"), View(OTHER, PICTURE, "blue?", name="B")]
    page = opened(views)
    assert page.locator(".prompt").all_inner_texts() == ["red?", "blue?"]
    assert page.locator("h2").all_inner_texts() == ["A", "B"]
    go(page, 2)
    for view in (0, 1):
        token = 10 + view
        hover(page, token, view=view)
        page.wait_for_function(POINTED, arg=token)
        assert told(page, 0) == (str(token), cluster(TRACE, token, 2))
        assert told(page, 1) == (str(token), cluster(OTHER, token, 2))
    page.locator("input[name=differences]").check()
    homes = [trace.kept(1)[trace.survivor_of(1)] for trace in (TRACE, OTHER)]
    elsewhere = homes[0] != homes[1]
    shares = [trace.share(1) for trace in (TRACE, OTHER)]
    otherwise = ~elsewhere & ((shares[0] - shares[1]).abs() >= 0.05)
    assert elsewhere.sum() > 1
    assert otherwise.sum() > 1
    for caption in page.locator(".shown figcaption").all_inner_texts():
        assert f"{int(elsewhere.sum())} patches live on elsewhere" in caption
        assert f"{int(otherwise.sum())} with another share" in caption


def test_hostile_text_is_shown_as_text(opened: Open) -> None:
    trace = TRACE.with_prompts([HOSTILE])
    page = opened([View(trace, answer=HOSTILE, name=HOSTILE), View(TRACE)], title=HOSTILE)
    shown = HOSTILE.replace("\ud800", "\ufffd")
    for selector in ("h1", "h2 >> nth=0", ".prompt >> nth=0", ".answer bdi >> nth=0"):
        text = page.locator(selector).evaluate("(element) => element.textContent.toWellFormed()")
        assert text == shown, selector
    assert page.locator(".prompt").first.get_attribute("dir") == "auto"
    assert page.locator("script").count() == 2


def test_right_to_left_prompts_run_from_the_right(opened: Open) -> None:
    page = opened(View(TRACE, prompt="ما لون الكرة؟"))
    direction = page.locator(".prompt").evaluate("(element) => getComputedStyle(element).direction")
    assert direction == "rtl"


def test_the_keyboard_does_it_all(opened: Open) -> None:
    page = opened(View(TRACE, PICTURE))
    page.locator("#stage").focus()
    for key, caption in (
        ("End", "after layer 9"),
        ("ArrowLeft", "after layer 7"),
        ("Home", "before"),
    ):
        page.keyboard.press(key)
        assert caption in page.locator(".shown figcaption").inner_text()
    page.keyboard.press("ArrowRight")
    page.locator(".board").focus()
    for key, token in (
        ("ArrowRight", 0),
        ("ArrowRight", 1),
        ("ArrowDown", 9),
        ("End", 15),
        ("Home", 8),
    ):
        page.keyboard.press(key)
        assert told(page) == (str(token), cluster(TRACE, token, 1)), key
    assert page.locator("#said").inner_text().startswith("row 1, column 0: After layer 3 it")
    page.keyboard.press("Enter")
    assert page.locator(".told.pinned").count() == 1
    assert "pinned" in page.locator("#said").inner_text()
    hover(page, 30)
    assert told(page)[0] == "8"
    page.keyboard.press("Escape")
    assert told(page) == ("", [])
    assert page.locator("#said").inner_text() == "No patch"
    outline = page.locator(".board").evaluate("(board) => getComputedStyle(board).outlineStyle")
    assert outline == "solid"


def test_a_click_pins_and_another_lets_go(opened: Open) -> None:
    page = opened(View(TRACE, PICTURE))
    page.mouse.click(*place(page, 12))
    hover(page, 30)
    assert told(page)[0] == "12"
    assert page.locator(".eyebrow").inner_text() == "Pinned"
    page.mouse.click(*place(page, 12))
    assert told(page)[0] == ""


def test_a_finger_pins(opened: Open) -> None:
    page = opened(View(TRACE, PICTURE), has_touch=True, viewport={"width": 390, "height": 844})
    page.locator(".board").scroll_into_view_if_needed()
    page.touchscreen.tap(*place(page, 12))
    page.wait_for_function(POINTED, arg=12)
    assert page.locator(".told.pinned").count() == 1


def test_playing_ends_at_the_last_stage(opened: Open) -> None:
    page = opened(View(TRACE, PICTURE))
    page.locator("#play").click()
    page.wait_for_function("() => document.querySelector('#stage').value === '3'")
    page.wait_for_function("() => document.querySelector('#play').ariaPressed === 'false'")
    page.locator("#back").click()
    assert page.locator("#stage").input_value() == "2"
    page.locator("#on").click()
    assert page.locator("#on").is_disabled()


def test_light_and_dark(opened: Open) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        page = opened(View(TRACE, PICTURE), color_scheme=scheme)
        paper = "() => getComputedStyle(document.body).backgroundColor"
        colours[scheme] = page.evaluate(paper)
        page.locator("#theme").click()
        colours[f"not {scheme}"] = page.evaluate(paper)
    assert colours["light"] == colours["not dark"] != colours["dark"] == colours["not light"]


def test_several_images_and_tokens_without_a_place(opened: Open) -> None:
    layout = TokenLayout.from_tiles([[Tile(4, 4), Tile(3, 5, before=1, row_end=1)], [Tile(2, 2)]])
    trace = MergeTrace(layout, (), ("first", "second"))
    page = opened(View(trace, [noise(8, 8, seed) for seed in range(3)]))
    assert page.locator("#images label").all_inner_texts() == [
        "0, sample 0",
        "1, sample 0",
        "2, sample 1",
    ]
    before = canvas(page)
    page.locator("#images label").nth(1).click()
    assert canvas(page) != before
    assert page.locator(".shown figcaption").inner_text().startswith("19 tokens")
    hover(page, 6, rows=3, cols=5)
    page.wait_for_function(POINTED, arg=24)
    assert (int(layout.row[24]), int(layout.col[24])) == (1, 1)
    assert page.locator(".told h3").inner_text() == "Row 1, column 1"
    loose = layout.protected[16:35].nonzero()[:, 0] + 16
    assert page.locator(".loose summary").inner_text() == f"{len(loose)} tokens without a place"
    assert page.locator(".numbers").text_content() == ", ".join(map(str, loose.tolist()))
    page.locator("#images label").nth(2).click()
    assert page.locator(".prompt").inner_text() == "second"
    for unused in ("#steps", ".strip", ".bars"):
        assert not page.locator(unused).is_visible()


def test_layers_are_drawn_as_given(opened: Open) -> None:
    held = [48, 48, 24, 12]
    bars = [LayerBar(tokens, 48, 10 * tokens, 480) for tokens in held]
    page = opened(View(TRACE, layers=bars))
    heights = page.locator(".bars .bar").evaluate_all(
        "(bars) => bars.map((bar) => bar.style.height)"
    )
    assert heights == [f"{100 * tokens / 48:g}%" for tokens in held] * 2
    assert page.locator(".total").all_inner_texts() == ["68.8 % of 192", "68.8 % of 1.88 KiB"]
    titles = page.locator(".bars li").evaluate_all("(bars) => bars.map((bar) => bar.title)")
    assert titles[2] == "layer 2: 24 of 48"
    assert page.locator(".bars li.stage").count() == 2
    bare = opened(View(TRACE))
    counts = bare.locator(".bars li").evaluate_all("(bars) => bars.map((bar) => bar.title)")
    assert counts[3:5] == ["layer 3: 48 of 48", "layer 4: 24 of 48"]
    assert counts[-1] == "layer 10 and later: 6 of 48"


def test_dropped_tokens_and_strange_numbers(opened: Open) -> None:
    (stage,) = traced([[(2, 2)]], schedule=((3, 1),), guided=True).stages
    merged = int((~torch.isin(torch.arange(4), stage.kept)).nonzero()[0])
    stage.weight[merged] = 0
    stage.similarity[merged] = torch.nan
    stage.guidance[:] = -torch.inf
    page = opened(View(MergeTrace(TokenLayout.from_grids([[(2, 2)]]), (stage,))))
    hover(page, merged, rows=2, cols=2)
    page.wait_for_function(POINTED, arg=merged)
    cells = page.locator(".told tbody tr").inner_text().split("\t")
    assert cells[2:5] == ["dropped", "\u2013", "1"]
    page.locator("input[name=guidance]").check()
    assert page.locator("#legend").inner_text().startswith("guidance: 0.5")


def test_nothing_sticks_out(opened: Open) -> None:
    long = "x" * 400
    page = opened([View(TRACE, PICTURE, long, long, name=long)] * 2, title=long)
    go(page, 3)
    for width in (360, 800, 1400):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        prompt = page.locator(".prompt").first
        assert prompt.evaluate("(text) => text.scrollWidth <= text.clientWidth")


def test_a_notebook_shows_it_in_a_frame(browser: Any) -> None:
    with browser.new_context(offline=True) as context:
        page = context.new_page()
        page.set_content(frame(View(TRACE, prompt=HOSTILE)))
        inside = page.frame_locator("iframe")
        inside.locator("html[data-ready]").wait_for(state="attached")
        assert inside.locator("#summary").inner_text().startswith("48 vision tokens")
