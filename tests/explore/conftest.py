"""A browser, where there is one, and pages opened in it from the disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pages import Open

from lightkv_graphs import View, write_page

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window; LIGHTKV_REQUIRE_BROWSER=1 makes its absence a failure."""
    missing = [
        name
        for name, there in (("chromium", CHROMIUM), ("playwright", find_spec("playwright")))
        if not there
    ]
    if missing:
        problem = f"not installed: {', '.join(missing)}"
        if os.environ.get("LIGHTKV_REQUIRE_BROWSER") == "1":
            pytest.fail(problem)
        pytest.skip(problem)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # As root, as in containers, Chromium starts only without its sandbox.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield running
        running.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens a page of views without a network; fails if it asks for anything or complains."""
    contexts, asked, complaints = [], [], []

    def opening(views: View | Sequence[View], title: str = "Test", **options: Any) -> Any:
        file = write_page(tmp_path / f"page-{len(contexts)}.html", views, title=title)
        context = browser.new_context(offline=True, reduced_motion="reduce", **options)
        context.set_default_timeout(15_000)
        contexts.append(context)
        page = context.new_page()
        page.route("**/*", lambda route: route.continue_() if local(route) else route.abort())
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.goto(file.as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")
        return page

    opening.asked, opening.complaints = asked, complaints  # type: ignore[attr-defined]
    yield opening
    for context in contexts:
        context.close()
    pages = {(tmp_path / f"page-{number}.html").as_uri() for number in range(len(contexts))}
    assert [url for url in asked if url not in pages and not url.startswith("data:")] == []
    assert complaints == []


def local(route: Any) -> bool:
    return route.request.url.startswith(("file:", "data:"))
