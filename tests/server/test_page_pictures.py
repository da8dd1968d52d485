"""The page takes pictures and sounds: chosen from files, dropped on it, and pasted."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.server.conftest import Serving
from tests.server.page_support import WAIT_MS, chromium, opened, say
from tests.server.test_media import png
from tests.tiny_projector import TEXTS, TinyProjector

pytestmark = pytest.mark.page
expect.set_options(timeout=WAIT_MS)
GIVE = """([kind, type, name, data]) => {
  const bytes = Uint8Array.from(atob(data), it => it.charCodeAt(0)), given = new DataTransfer();
  given.items.add(new File([bytes], name, { type }));
  const how = { bubbles: true, cancelable: true, clipboardData: given, dataTransfer: given };
  const event = kind === "paste" ? new ClipboardEvent(kind, how) : new DragEvent(kind, how);
  document.getElementById("input").dispatchEvent(event);
  return event.defaultPrevented;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("seeing")
    text = TEXTS["gemma3"].write(folder / "text.gguf")
    projector = TinyProjector("gemma3").write(folder / "mmproj.gguf")
    blind = replace(TEXTS["gemma3"], seed=2).write(folder / "blind.gguf")
    model = (
        "--model",
        f"eyes={text}",
        "--mmproj",
        f"eyes={projector}",
        "--model",
        f"blind={blind}",
    )
    made = Serving(folder / "data", *model, "--n-ctx", "1024", "--device", "cpu")
    yield made
    assert made.stop() == 0


@pytest.fixture
def seeing(serving: Serving) -> Serving:
    """The same for each test, without agents: the page shows one at its start."""
    for it in serving.get("/v1/agents")["data"]:
        serving.client.delete(f"/v1/agents/{it['id']}")
    return serving


def give(
    page: Any, how: str, data: bytes = b"", name: str = "a.png", type_: str = "image/png"
) -> None:
    assert page.evaluate(GIVE, [how, type_, name, base64.b64encode(data).decode()])


PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
DESK = {"viewport": {"width": 1440, "height": 900}}


def choose_files(page: Any, act: Callable[[], None], *files: tuple[str, str, bytes]) -> None:
    """Does what opens the dialog of files, and chooses these there."""
    with page.expect_file_chooser() as choosing:
        act()
    assert choosing.value.is_multiple()
    each = [{"name": it[0], "mimeType": it[1], "buffer": it[2]} for it in files]
    choosing.value.set_files(each)


@pytest.mark.parametrize("screen", [PHONE, DESK])
def test_a_picture_is_chosen(browser: Any, seeing: Serving, screen: dict[str, Any]) -> None:
    """In three actions: the button, the file, and what sends the message."""
    with opened(browser, seeing, **screen) as page:
        page.wait_for_load_state("networkidle")
        attach = page.get_by_role("button", name="Add a picture or sound")
        box = attach.bounding_box()
        assert min(box["width"], box["height"]) >= 44
        choose_files(page, attach.click, ("a.png", "image/png", png()))
        expect(page.locator("#files li")).to_contain_text("a.png")
        expect(page.locator("#status")).to_have_text("a.png goes with the message")
        page.locator("#input").fill("What is it?")
        page.get_by_role("button", name="Send").click()
        page.locator(".turn > footer").wait_for()
        assert [it["n_files"] for it in turns(seeing)] == [1]


def test_the_keyboard_chooses_too(browser: Any, seeing: Serving) -> None:
    with opened(browser, seeing) as page:
        page.wait_for_load_state("networkidle")
        page.locator("#settings").focus()
        page.keyboard.press("Tab")
        expect(page.locator("#attach")).to_be_focused()
        files = [(f"{it}.png", "image/png", png()) for it in "ab"]
        choose_files(page, lambda: page.locator("#attach").press("Enter"), *files)
        expect(page.locator("#files li")).to_have_count(2)
        expect(page.locator("#input")).to_be_focused()


def test_a_model_that_reads_is_given_no_files(browser: Any, seeing: Serving) -> None:
    with opened(browser, seeing) as page:
        page.wait_for_load_state("networkidle")
        expect(page.locator("#attach")).to_be_visible()
        page.locator("#model").select_option("blind")
        expect(page.locator("#attach")).to_be_hidden()
        page.locator("#model").select_option("eyes")
        expect(page.locator("#attach")).to_be_visible()


def test_a_photo_is_made_smaller(browser: Any, seeing: Serving) -> None:
    """What a telephone takes is larger than a message."""
    photo = png(2600, 1300)
    assert len(photo) > 3_000_000
    with opened(browser, seeing) as page:
        page.wait_for_load_state("networkidle")
        sent: list[str] = []
        page.on("request", lambda it: sent.append(it.post_data or ""))
        choose_files(page, page.locator("#attach").click, ("photo.png", "image/png", photo))
        expect(page.locator("#files li")).to_contain_text("photo.png")
        say(page, "What is it?")
        assert turns(seeing)[-1]["n_files"] == 1
        (uri,) = next(json.loads(it)["files"] for it in sent if '"files"' in it)
        kind, data = uri.split(",", 1)
        assert kind == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (2048, 1024)


def turns(seeing: Serving) -> list[dict[str, Any]]:
    """Those of the agent that was made last."""
    agents = seeing.get("/v1/agents")["data"]
    newest = max(agents, key=lambda it: it["created"])
    found: list[dict[str, Any]] = seeing.get(f"/v1/agents/{newest['id']}")["turns"]
    return found


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_a_picture_goes_with_the_message(browser: Any, seeing: Serving, how: str) -> None:
    with opened(browser, seeing) as page:
        give(page, how, png())
        expect(page.locator("#files li")).to_have_count(1)
        say(page, "What is it?")
        expect(page.locator("#files")).to_be_hidden()
        expect(page.locator(".turn .files")).to_have_text("1 picture or sound")
        (turn,) = turns(seeing)
        assert (turn["input"], turn["n_files"]) == ("What is it?", 1)
        page.locator("[aria-label='Answer again']").click()
        expect(page.locator(".walk").first).to_contain_text("of 2")
        page.locator("#send").wait_for()
        (again,) = turns(seeing)
        assert again["n_files"] == 1
        page.reload()
        page.locator(".turn .files").wait_for()
        page.locator("[aria-label='Answer again']").click()
        expect(page.locator("#notice")).to_contain_text("the files of this turn no more")


def test_files_are_taken_away_and_others_are_refused(browser: Any, seeing: Serving) -> None:
    with opened(browser, seeing) as page:
        give(page, "drop", b"GIF89a", "a.gif", "image/gif")
        expect(page.locator("#notice")).to_contain_text("a.gif is none of PNG, JPEG, WebP and WAV")
        give(page, "drop", bytes(3_000_001))
        expect(page.locator("#notice")).to_contain_text("A message takes 2.9 MiB of files")
        expect(page.locator("#files")).to_be_hidden()
        for name in ("a.png", "b.png"):
            give(page, "paste", png(), name)
        expect(page.locator("#files li")).to_have_count(2)
        page.locator("[aria-label='Take a.png away']").click()
        say(page, "What is it?")
        assert turns(seeing)[-1]["n_files"] == 1


def test_a_damaged_picture_can_be_left(browser: Any, seeing: Serving) -> None:
    with opened(browser, seeing) as page:
        give(page, "drop", png()[:60])
        page.locator("#input").fill("What is it?")
        page.locator("#input").press("Enter")
        page.get_by_role("button", name="Leave it").click()
        say(page, "Hello")
        assert [it["n_files"] for it in turns(seeing)] == [0]
