"""What people come for, each in three actions at most, by what can be read on the screen.

A `Person` knows the page by its visible words alone, and three signs that every chat has. A word
that is hidden, covered or off the screen cannot be pressed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.patience import eventually
from tests.server.conftest import Serving
from tests.server.page_support import opened

pytestmark = pytest.mark.page
MAX_ACTIONS = 3
LENGTHY = {"temperature": "0", "repeat_penalty": "1", "max_tokens": "20000", "n_ctx": "24000"}
"""Options of an answer that is always the same, and long."""
SCREENS = {
    "desk": {"viewport": {"width": 1440, "height": 900}},
    "phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
}
SIGNS = {"send": "#i-send", "menu": "#i-menu", "more": "#i-more"}
READ = """([words, sign, beside]) => {
  const reads = it => it.tagName === "SELECT" ? it.selectedOptions[0]?.text ?? ""
    : [it, ...(it.labels ?? [])].map(said => said.innerText).join(" ") + (it.placeholder ?? "");
  const isSeen = it => {
    const box = it.getBoundingClientRect(), x = box.x + box.width / 2, y = box.y + box.height / 2;
    const top = document.elementFromPoint(x, y);
    return it.checkVisibility({ visibilityProperty: true }) && top !== null && it.contains(top);
  };
  const near = it => it.closest(".turn, .branch, main > header")?.innerText ?? "";
  return [...document.querySelectorAll("button, input, select, textarea, li[role=treeitem]")]
    .filter(it => sign ? it.querySelector(`use[href="${sign}"]`) : reads(it).includes(words))
    .find(it => isSeen(it) && near(it).includes(beside)) ?? null;
}"""


class Person:
    """Somebody who reads what is on the screen, and counts what they have to do."""

    def __init__(self, page: Any, is_phone: bool) -> None:
        self.page = page
        self.is_phone = is_phone
        self.n_actions = 0

    def see(self, words: str, beside: str = "", sign: str = "") -> Any:
        """What can be pressed or filled and has these words on it."""
        found = self.page.wait_for_function(READ, arg=[words, sign, beside])
        self.n_actions += 1
        return found.as_element()

    def press(self, words: str, beside: str = "") -> None:
        self.see(words, beside).click()

    def press_sign(self, name: str, beside: str = "") -> None:
        self.see("", beside, SIGNS[name]).click()

    def fill(self, words: str, text: str) -> None:
        self.see(words).fill(text)

    def choose(self, words: str, option: str) -> None:
        """A click opens the list, and another takes something of it."""
        self.see(words).select_option(label=option)
        self.n_actions += 1

    def slide_back(self, words: str) -> None:
        self.see(words).press("ArrowLeft")

    def send(self) -> None:
        if self.is_phone:
            self.press_sign("send")
        else:
            assert "Enter sends" in self.page.inner_text("#form")
            self.page.keyboard.press("Enter")
            self.n_actions += 1


@pytest.fixture(params=SCREENS)
def person(request: Any, serving: Serving, browser: Any) -> Iterator[Person]:
    """In front of an agent that was asked thrice, which has a fork."""
    args = {"max_tokens": "24", "seed": "3"}
    made = serving.post("/v1/agents", {"name": "Travels", "args": args})["id"]
    for text in ("First", "Second", "Third"):
        serving.post(f"/v1/agents/{made}/messages", {"input": text})
    serving.post(f"/v1/agents/{made}/fork", {"position": 1, "name": "Other travels"})
    with opened(browser, serving, **SCREENS[request.param]) as page:
        expect(page.locator(".turn > footer")).to_have_count(3)
        found = Person(page, request.param == "phone")
        yield found
        assert found.n_actions <= MAX_ACTIONS


def test_talk(person: Person) -> None:
    person.fill("Message", "Hello")
    person.send()
    expect(person.page.locator(".said")).to_have_text(["First", "Second", "Third", "Hello"])
    expect(person.page.locator(".turn > footer")).to_have_count(4)


def test_stop_and_go_on(person: Person, serving: Serving) -> None:
    page = person.page
    serving.post("/v1/agents", {"name": "Endless", "args": LENGTHY})
    page.reload()
    page.locator("#title", has_text="Endless").wait_for()
    page.fill("#input", "Tell me")
    page.evaluate("() => document.getElementById('form').requestSubmit()")
    expect(page.locator(".answer")).not_to_have_text("")
    person.press("Stop")
    expect(page.locator(".ended")).to_contain_text("You stopped it here.")
    said = page.inner_text(".answer")
    person.press("Go on")
    longer = "n => document.querySelector('.answer').innerText.length > n"
    page.wait_for_function(longer, arg=len(said))
    assert page.inner_text(".answer").startswith(said)


def test_fork_at_turn_2(person: Person) -> None:
    person.press("Fork", beside="Second")
    expect(person.page.locator(".said")).to_have_text(["First", "Second"])
    expect(person.page.locator(".turn > footer")).to_have_count(2)


def test_compare(person: Person) -> None:
    if person.is_phone:
        person.press_sign("more", beside="Travels")
        person.press("Compare with")
    else:
        person.press("Branches")
    person.press("Compare", beside="Other travels")
    expect(person.page.locator("#compare .top")).to_contain_text("Turn 1 is the same.")
    expect(person.page.locator("#compare .said")).to_have_text(["Second", "Third"])


def test_find_an_old_agent(person: Person, serving: Serving) -> None:
    for name in ("Old notes", *(f"Draft {n}" for n in range(25))):
        serving.post("/v1/agents", {"name": name})
    person.page.reload()
    expect(person.page.locator("#agents li")).to_have_count(27)
    if person.is_phone:
        person.press_sign("menu")
    person.fill("Find an agent", "notes")
    person.press("Old notes")
    expect(person.page.locator("#title")).to_have_text("Old notes")


def test_change_the_model(person: Person, serving: Serving) -> None:
    person.choose("tiny", "other")
    person.page.locator("#status", has_text="read by the other model").wait_for(state="attached")
    models = [{"default": "other"}, {"default": "tiny"}, {"default": "tiny"}]
    assert eventually(lambda: [it["models"] for it in serving.get("/v1/agents")["data"]] == models)
    expect(person.page.locator("#model")).to_have_value("other")
    expect(person.page.locator(".said")).to_have_text(["First", "Second", "Third"])


def test_hold_an_answer_to_a_schema(person: Person) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    person.press("Settings")
    person.fill("Nothing: answers are free", json.dumps(schema))
    person.press("Answer again with these")
    answer = person.page.locator(".answer").last
    expect(answer).to_have_text(re.compile(r'^\{"a": ?(true|false)\}$'))
    expect(person.page.locator(".said")).to_have_text(["First", "Second", "Third"])


def test_restore_an_earlier_point(person: Person) -> None:
    if person.is_phone:
        person.press("Memory")
    person.slide_back("After turn 3 of 3")
    person.press("Restore turn 2 as a fork")
    expect(person.page.locator(".said")).to_have_text(["First", "Second"])


def test_delete(person: Person, serving: Serving) -> None:
    person.press_sign("more", beside="Travels")
    person.press("Delete")
    person.press("Delete")
    expect(person.page.locator("#title")).not_to_have_text("Travels")
    assert "Travels" not in [it["name"] for it in serving.get("/v1/agents")["data"]]
