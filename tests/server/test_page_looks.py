"""The page at three widths, light and dark: nobody is kept out, and nothing is cut off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.server.conftest import Serving
from tests.server.page_support import bring_echo, fetch_axe, opened, say, violations

pytestmark = pytest.mark.page
WIDTHS = (390, 768, 1440)
TEXT = """# A title

A [link](https://example.org), `code`, **bold** and *more*.

| a | b |
| --- | --: |
| 1 | 2 |

```python
print("hello")
```

> A quote

- one
  1. two
"""


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return fetch_axe(tmp_path_factory.mktemp("axe"))


@pytest.fixture(scope="module")
def echoing(tiny_server: Serving) -> Serving:
    """An agent that says what it is told, a fork of it, and an agent of a model."""
    guest = bring_echo(tiny_server)
    agent = tiny_server.post("/v1/agents", {"name": "Echo", "guest": guest})["id"]
    for text in ("hello", TEXT):
        tiny_server.post(f"/v1/agents/{agent}/messages", {"input": text})
    tiny_server.post(f"/v1/agents/{agent}/fork", {"position": 1, "name": "Echo, forked"})
    talker = tiny_server.post("/v1/agents", {"name": "Talker", "args": {"max_tokens": "8"}})["id"]
    tiny_server.post(f"/v1/agents/{talker}/messages", {"input": "hello"})
    return tiny_server


SMALL = """() => [...document.querySelectorAll("button, select, input, summary, [role=treeitem]")]
  .map(it => [it, it.getBoundingClientRect()])
  .filter(([it, box]) => it.checkVisibility({ visibilityProperty: true }) && box.width > 1)
  .filter(([it, box]) => box.height < 43.9 || box.width < 43.9)
  .map(([it, box]) => `${it.outerHTML.slice(0, 90)} ${box.width} x ${box.height}`)"""
"""What can be pressed and is smaller than 44 pixels."""


def overflows(page: Any) -> bool:
    return bool(page.evaluate("() => document.documentElement.scrollWidth > innerWidth"))


def require_good(page: Any, axe: str, *rules: str) -> None:
    assert violations(page, axe, *rules) == []
    assert page.evaluate(SMALL) == []
    assert not overflows(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_is_for_everybody(
    echoing: Serving, browser: Any, axe: str, width: int, scheme: str
) -> None:
    size = {"width": width, "height": 844}
    with opened(browser, echoing, viewport=size, color_scheme=scheme) as page:
        side, panel = width < 720, width < 1152
        rules = ("color-contrast",) if scheme == "dark" else ()  # nothing else is another

        def show(name: str) -> None:
            if side:
                page.click("#open-side")
            page.locator("#agents li", has_text=name).first.click()
            page.locator("#title", has_text=name).wait_for()

        expect(page.locator(".turn > footer").first).to_be_visible()
        show("Echo")
        expect(page.locator(".answer table")).to_be_visible()
        require_good(page, axe, *rules)
        if side:
            page.click("#open-side")
            require_good(page, axe, *rules)
            page.keyboard.press("Escape")
            expect(page.locator("#open-side")).to_be_focused()
        if panel:
            page.click("#open-panel")
        for name in ("memory", "branches", "about", "work"):
            page.click(f"#tab-{name}")
            page.locator(f"#{name} > *:not(.dim)").first.wait_for()
            require_good(page, axe, *rules)
        page.click("#tab-branches")
        page.get_by_role("button", name="Compare with Echo, forked").click()
        expect(page.locator("#compare h2.whose")).to_have_count(2)
        require_good(page, axe, *rules)
        page.click("[aria-label='Close the comparison']")
        show("Talker")
        page.click("#settings")
        page.locator("#dialog [name=kind]").select_option("regex")
        require_good(page, axe, *rules)
        page.keyboard.press("Escape")
        page.click("#more")
        require_good(page, axe, *rules)
        page.keyboard.press("Escape")
        if side:
            page.click("#open-side")
        page.click("#new")
        expect(page.locator("#empty")).to_be_visible()
        require_good(page, axe, *rules)


def test_zoomed_to_200_percent(echoing: Serving, browser: Any, axe: str) -> None:
    """A window of 1,280 pixels has 640 then, each of two."""
    size = {"width": 640, "height": 400}
    with opened(browser, echoing, viewport=size, device_scale_factor=2) as page:
        page.click("#open-side")
        page.locator("#agents li", has_text="Echo").first.click()
        say(page, "zoomed")
        require_good(page, axe)
        assert page.locator("#input").bounding_box()["width"] > 500
        assert page.locator("#scroll").bounding_box()["height"] > 120


def test_letters_that_are_twice_as_large(echoing: Serving, browser: Any) -> None:
    with opened(browser, echoing, viewport={"width": 768, "height": 900}) as page:
        expect(page.locator(".turn > footer").first).to_be_visible()
        page.evaluate("() => { document.documentElement.style.fontSize = '200%' }")
        assert not overflows(page)


def test_paths_of_a_proxy(echoing: Serving, browser: Any, tmp_path: Path) -> None:
    """The page asks relative to its own address, so that a proxy may have it below a path."""
    for name in ("page.html", "main.js", "state.js", "panel.js", "memory.js"):
        path = "/" if name == "page.html" else f"/page/{name}"
        text = echoing.client.get(path).text
        assert '"/v1' not in text
        assert '="/' not in text
