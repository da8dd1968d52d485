"""The page in a headless Chromium: what people do with it.

`make test-page` runs it; with ISTHMUS_SCREENSHOTS it writes the pictures of docs/.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.server.conftest import Serving
from tests.server.page_support import ENDLESS, choose, opened, say, tell

pytestmark = pytest.mark.page


def settings(page: Any, **fields: str) -> None:
    page.click("#settings")
    for name, value in fields.items():
        control = page.locator(f"#dialog [name={name}]")
        if name == "kind":
            control.select_option(value)
        else:
            control.fill(value)
    page.click("#dialog .main")
    page.locator("#dialog").wait_for(state="hidden")


def names(page: Any) -> int:
    return page.locator("#agents li").count()


def test_first_visit_talk_fork_compare_restore_delete(serving: Serving, browser: Any) -> None:
    with opened(browser, serving) as page:
        expect(page.locator("#empty")).to_contain_text("An agent is")
        settings(page, max_tokens="24")
        assert page.locator("#prompts button").count() == 3
        page.locator("#prompts button").first.click()
        expect(page.locator(".turn > footer")).to_have_count(1)
        expect(page.locator("#title")).to_have_text(re.compile("What is an isthmus"))
        say(page, "And now?")
        answers = page.locator(".answer").all_inner_texts()

        # another answer to turn 2 is a fork, and one can walk back
        page.locator("[aria-label='Answer again']").last.click()
        walk = page.locator(".turn").last.locator(".walk")
        expect(walk).to_contain_text("2 of 2")
        expect(page.locator(".turn > footer")).to_have_count(2)
        assert page.locator(".answer").first.inner_text() == answers[0]
        walk.locator("[aria-label='The branch before']").click()
        expect(walk).to_contain_text("1 of 2")
        expect(page.locator(".answer").last).to_have_text(answers[1], use_inner_text=True)

        # a fork at turn 1, whose turn 2 says something else
        page.locator("[aria-label='Say something else here']").last.click()
        page.locator(".editing textarea").fill("Something else")
        page.keyboard.press("Enter")
        expect(page.locator(".said").last).to_have_text("Something else")
        expect(page.locator(".turn").last.locator(".walk")).to_contain_text("3 of 3")
        expect(page.locator("#agents li")).to_have_count(3)

        # side by side
        page.click("#tab-branches")
        expect(page.locator(".branch")).to_have_count(3)
        page.locator(".branch button", has_text="Compare").first.click()
        expect(page.locator("#compare h2.whose")).to_have_count(2)
        expect(page.locator("#compare .top")).to_contain_text("Turn 1 is the same.")
        expect(page.locator("#compare .said")).to_have_text(["Something else", "And now?"])
        page.click("[aria-label='Close the comparison']")
        expect(page.locator("#turns")).to_be_visible()

        # any earlier point, with its memory
        page.click("#tab-memory")
        slider = page.locator("#memory [type=range]")
        expect(slider).to_have_attribute("max", "2")
        slider.press("ArrowLeft")
        page.get_by_role("button", name="Restore turn 1 as a fork").click()
        expect(page.locator(".turn > footer")).to_have_count(1)
        expect(page.locator("#agents li")).to_have_count(4)

        page.click("#more")
        page.get_by_role("menuitem", name="Delete").click()
        page.get_by_role("button", name="Delete").click()
        expect(page.locator("#agents li")).to_have_count(3)
        expect(page.locator("#empty")).to_be_visible()


def test_stop_keeps_what_was_said_and_it_goes_on(serving: Serving, browser: Any) -> None:
    with opened(browser, serving) as page:
        settings(page, max_tokens="50000", kind="grammar", form=ENDLESS["grammar"])
        tell(page, "Tell me a very long story.")
        expect(page.locator(".answer")).not_to_have_text("")
        page.keyboard.press("Escape")
        expect(page.locator(".ended")).to_contain_text("You stopped it here.")
        said = page.inner_text(".answer")
        assert said
        assert page.inner_text(".said") == "Tell me a very long story."
        page.reload()
        expect(page.locator(".answer")).to_have_text(said, use_inner_text=True)

        page.click("#new")
        settings(page, max_tokens="12")
        say(page, "Hello")
        expect(page.locator(".ended")).to_contain_text("Cut at 12 tokens.")
        page.click("#go-on")
        expect(page.locator(".turn > footer")).to_contain_text(re.compile("[0-9]{2} tokens"))
        expect(page.locator(".turn")).to_have_count(1)
        expect(page.locator(".ended")).to_contain_text("Cut at 12 tokens.")
        (agent,) = (it for it in serving.get("/v1/agents")["data"] if it["name"] == "Hello")
        turns = serving.get(f"/v1/agents/{agent['id']}")["turns"]
        assert [it["input"] for it in turns] == ["Hello", ""]


def test_answers_follow_a_form_and_another_model_goes_on(serving: Serving, browser: Any) -> None:
    with opened(browser, serving) as page:
        settings(page, max_tokens="8")
        say(page, "Hello")
        settings(page, system="Be brief.", kind="regex", form="[0-9]{4}", max_tokens="40")
        expect(page.locator("#agents li")).to_have_count(2)
        say(page, "A year")
        assert re.fullmatch("[0-9]{4}", page.locator(".answer").last.inner_text())

        page.click("#settings")
        page.locator("#dialog [name=kind]").select_option("json_schema")
        page.locator("#dialog [name=form]").fill("{")
        page.click("#dialog .main")
        expect(page.locator("#dialog .wrong")).to_contain_text("The schema is no JSON")
        page.keyboard.press("Escape")

        page.select_option("#model", "other")
        expect(page.locator("#agents li")).to_have_count(3)
        say(page, "Another year")
        assert re.fullmatch("[0-9]{4}", page.locator(".answer").last.inner_text())
        page.click("#tab-about")
        expect(page.locator("#about")).to_contain_text("other")


def test_switching_never_waits_and_reading_is_not_disturbed(serving: Serving, browser: Any) -> None:
    made = {"name": "Endless", "args": ENDLESS}
    serving.post("/v1/agents", made)
    serving.post("/v1/agents", {"name": "Other", "args": {"max_tokens": "5"}})
    with opened(browser, serving, viewport={"width": 800, "height": 420}) as page:
        page.locator("#agents li", has_text="Endless").click()
        page.locator("#title", has_text="Endless").wait_for()
        tell(page, "Begin")
        grows = page.locator("#scroll")
        page.locator("#stop").wait_for()
        it = "document.getElementById('scroll')"
        page.wait_for_function(f"() => {it}.scrollHeight > 3 * {it}.clientHeight")
        grows.evaluate("it => { it.scrollTop = 40 }")
        expect(page.locator("#latest")).to_be_visible()
        height = grows.evaluate("it => it.scrollHeight")
        page.wait_for_function(f"height => {it}.scrollHeight > height", arg=height)
        assert grows.evaluate("it => it.scrollTop") == 40
        page.click("#latest")
        expect(page.locator("#latest")).to_be_hidden()

        page.locator("#agents li", has_text="Other").click()
        expect(page.locator("#title")).to_have_text("Other")
        say(page, "Hello")  # while the other one answers
        busy = page.locator("#agents li.busy")
        expect(busy).to_contain_text("Endless")
        busy.click()
        page.click("#stop")
        expect(page.locator(".ended")).to_contain_text("You stopped it here.")
        assert page.locator(".answer").last.inner_text()


REDRAW = "() => document.dispatchEvent(new Event('visibilitychange'))"
"""What a browser tells the page when somebody comes back to it: it asks for all agents."""


def test_what_is_drawn_anew_stays_in_its_place(serving: Serving, browser: Any) -> None:
    """A press that begins before and ends after is not lost; nor is what a key pointed at."""
    ids = {}
    for name in ("Ada", "Grace"):
        ids[name] = serving.post("/v1/agents", {"name": name, "args": {"max_tokens": "8"}})["id"]
    with opened(browser, serving) as page:
        row = page.locator("#agents li", has_text="Ada")
        row.hover()
        page.mouse.down()
        serving.client.patch(f"/v1/agents/{ids['Ada']}", json={"name": "Ada Lovelace"})
        page.evaluate(REDRAW)
        expect(row).to_contain_text("Ada Lovelace")
        page.mouse.up()
        expect(page.locator("#title")).to_have_text("Ada Lovelace")
        for text in ("One", "Two"):
            say(page, text)
        canvas = page.locator("#map").element_handle()
        page.focus("#map")
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        expect(page.locator("#where")).to_have_text(PLACE)
        place = page.inner_text("#where").partition(":")[0]
        page.keyboard.press("Alt+f")  # a fork
        expect(page.locator("#memory")).to_contain_text("The same in a fork")
        expect(page.locator("#map")).to_be_focused()
        expect(page.locator("#where")).to_contain_text(place)
        assert canvas.evaluate("it => it.isConnected")
        choose(page, "Ada Lovelace")
        say(page, "Three")
        expect(page.locator("#where")).to_contain_text(place)
        first = page.locator(".turn").first.element_handle()
        say(page, "Four")
        assert first.evaluate("it => it.isConnected")


PLACE = re.compile("0x[0-9a-f]{8} – 0x[0-9a-f]{8}: ")


def test_keyboard_alone(serving: Serving, browser: Any) -> None:
    for name in ("Ada", "Grace"):
        serving.post("/v1/agents", {"name": name, "args": {"max_tokens": "8"}})
    with opened(browser, serving) as page:
        expect(page.locator("#agents li")).to_have_count(2)
        page.keyboard.press("Alt+n")
        settings(page, max_tokens="8")
        page.focus("#input")
        page.keyboard.type("hello")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("there")
        page.keyboard.press("Enter")
        expect(page.locator(".turn > footer")).to_have_count(1)
        assert page.inner_text(".said") == "hello\nthere"
        page.keyboard.press("Alt+f")
        expect(page.locator("#agents li")).to_have_count(4)

        page.locator("#title").click()  # the focus is nowhere
        page.keyboard.press("/")
        page.keyboard.type("gra")
        expect(page.locator("#agents li")).to_have_text(re.compile("Grace"))
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(page.locator("#title")).to_have_text("Grace")

        page.focus("#tab-memory")
        page.keyboard.press("ArrowLeft")
        expect(page.locator("#tab-work")).to_be_focused()
        expect(page.locator("#work")).to_contain_text("Tokens decoded")
        page.keyboard.press("ArrowRight")
        page.focus("#map")
        page.keyboard.press("ArrowRight")
        expect(page.locator("#where")).to_have_text(PLACE)

        page.focus("#more")
        page.keyboard.press("Enter")
        expect(page.locator("#menu button").first).to_be_focused()
        for key in ("ArrowDown", "ArrowUp", "Enter"):
            page.keyboard.press(key)
        page.locator("#dialog [name=name]").fill("Grace Hopper")
        page.keyboard.press("Enter")
        expect(page.locator("#title")).to_have_text("Grace Hopper")
        page.focus("#settings")
        page.keyboard.press("Enter")
        page.keyboard.press("Escape")
        expect(page.locator("#settings")).to_be_focused()
    assert "Grace Hopper" in [it["name"] for it in serving.get("/v1/agents")["data"]]


def test_export_and_restore(serving: Serving, browser: Any, tmp_path: Path) -> None:
    with opened(browser, serving) as page:
        settings(page, max_tokens="8")
        say(page, "Hello you")
        page.click("#more")
        with page.expect_download() as told:
            page.get_by_role("menuitem", name="Export as Markdown").click()
        told.value.save_as(tmp_path / "text.md")
        assert "## You\n\nHello you\n" in (tmp_path / "text.md").read_text()
        page.click("#more")
        with page.expect_download() as whole:
            page.get_by_role("menuitem", name="Export the whole agent").click()
        file = tmp_path / "hello.1.safetensors"
        whole.value.save_as(file)
        page.click("#side-more")
        with page.expect_file_chooser() as chooser:
            page.get_by_role("menuitem", name="Restore from a file").click()
        chooser.value.set_files(file)
        expect(page.locator("#title")).to_have_text("hello")
        say(page, "On")


def picture(page: Any, name: str) -> None:
    """Writes page-NAME.png, if a folder for it is named; nothing on the page is pointed at."""
    if folder := os.environ.get("ISTHMUS_SCREENSHOTS"):
        page.mouse.move(0, 0)
        page.evaluate("() => document.activeElement.blur()")
        page.screenshot(path=str(Path(folder) / f"page-{name}.png"))


@pytest.mark.model
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures(server: Serving, browser: Any, scheme: str) -> None:
    """A real model, as the documentation shows it."""
    size = {"width": 1280, "height": 800}
    with opened(browser, server, color_scheme=scheme, viewport=size) as page:
        page.click("#new")
        settings(page, seed="3", max_tokens="220")
        say(page, "Write a Python function that adds two numbers.")
        say(page, "Now one that multiplies them.")
        page.locator("[aria-label='Answer again']").last.click()
        expect(page.locator(".walk").last).to_contain_text("2 of 2")
        expect(page.locator("#memory")).to_contain_text("The same in a fork")
        picture(page, scheme)
        page.set_viewport_size({"width": 390, "height": 844})
        expect(page.locator("#open-side")).to_be_visible()
        expect(page.locator(".turn > footer").last).to_be_in_viewport(ratio=1)
        picture(page, f"phone-{scheme}")
        page.set_viewport_size(size)
        page.click("#new")
        page.click("#settings")
        expect(page.locator("#dialog[open] [name=guest]")).to_have_value("chat")
        picture(page, f"settings-{scheme}")
