"""The page, in a headless Chromium: talk, fork, compare, look at the memory.

`make test-page` runs it; with ISTHMUS_SCREENSHOTS it writes the pictures of docs/.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.conftest import Serving
from tests.tools.guests import CALLER

pytestmark = [pytest.mark.page, pytest.mark.model]
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"),
    *("--disable-component-update", "--disable-sync", "--disable-quic"),
)


@pytest.fixture
def server(smollm2: Path, tmp_path: Path) -> Iterator[Serving]:
    """One for each test: the page opens the first agent that there is."""
    serving = Serving(tmp_path / "data", "--model", f"smollm2={smollm2}")
    yield serving
    assert serving.stop() == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    from playwright.sync_api import sync_playwright

    names = (os.environ.get("CHROMIUM", ""), "chromium", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    assert program, "install chromium, or say where it is by CHROMIUM"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield browser
        browser.close()


def test_a_reply_that_was_not_emitted_is_shown(server: Serving, browser) -> None:  # type: ignore[no-untyped-def]
    from playwright.sync_api import expect

    guest = server.client.post("/v1/guests", content=CALLER).json()["id"]
    server.post("/v1/agents", {"name": "Caller", "guest": guest})
    page = browser.new_context().new_page()
    page.goto(server.url)
    page.wait_for_selector("nav [aria-current=true]")
    page.fill("#input", "? which tools are there")
    page.keyboard.press("Enter")
    expect(page.locator(".turn footer")).to_contain_text("tokens", timeout=60_000)
    assert page.inner_text(".turn .answer") == "[]"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page(server: Serving, browser, scheme: str) -> None:  # type: ignore[no-untyped-def]
    from playwright.sync_api import expect

    context = browser.new_context(
        color_scheme=scheme, viewport={"width": 1280, "height": 800}, reduced_motion="reduce"
    )
    page = context.new_page()
    problems: list[str] = []
    outside: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda it: problems.append(it.text) if it.type == "error" else None)
    page.on("request", lambda it: None if it.url.startswith(server.url) else outside.append(it.url))
    page.goto(server.url)

    page.keyboard.press("Alt+n")
    page.wait_for_selector("nav [aria-current=true]")
    page.fill("#input", "My name is Ada. What is an isthmus?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn footer button", timeout=60_000)
    expect(page.locator(".turn footer")).to_contain_text("tokens", timeout=60_000)
    answer = page.inner_text(".turn .answer")

    page.keyboard.press("Alt+f")
    page.wait_for_selector("nav ul ul [aria-current=true]")
    assert page.inner_text(".turn .answer") == answer
    page.fill("#input", "Say it in one sentence.")
    page.keyboard.press("Enter")
    expect(page.locator(".turn footer button")).to_have_count(2, timeout=60_000)
    facts = page.inner_text("#facts")
    assert "shared with forks" in facts
    assert "0 B" not in facts.splitlines()[facts.splitlines().index("shared with forks") + 1]

    page.once("dialog", lambda dialog: dialog.accept("1"))
    page.click("#compare")
    page.wait_for_selector(".turn pre")
    assert "differ" in page.inner_text(".turn pre")
    expect(page.locator("#counters dd").first).to_have_text(re.compile("[1-9]"))
    page.focus("nav [aria-current=true]")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    expect(page.locator(".turn")).to_have_count(1)

    page.fill("#input", "Tell me a very long story.")
    page.keyboard.press("Enter")
    page.wait_for_selector("#stop:not([hidden])")
    page.click("#stop")
    page.wait_for_selector("#send:not([hidden])")
    assert page.locator(".turn").count() == 1  # it has not happened

    if folder := os.environ.get("ISTHMUS_SCREENSHOTS"):
        page.locator("nav ul ul [data-id]").first.click()
        expect(page.locator(".turn")).to_have_count(2)
        page.fill("#input", "")
        page.wait_for_timeout(2500)
        page.screenshot(path=str(Path(folder) / f"page-{scheme}.png"))
    page.once("dialog", lambda dialog: dialog.accept())
    before = page.locator("nav [data-id]").count()
    page.click("#delete")
    expect(page.locator("nav [data-id]")).to_have_count(before - 1)
    assert problems == []
    assert outside == []
    context.close()
