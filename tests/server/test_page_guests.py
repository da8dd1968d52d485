"""The page: commands, tools that were called, and replies that are no part of what was emitted."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import wasmtime
from playwright.sync_api import expect

from tests.commands.guests import CAT, command
from tests.server.conftest import Serving
from tests.server.page_support import WAIT_MS, choose, chromium, opened, say
from tests.tools.guests import CALLER
from tests.tools.plays import scripted
from tests.tools.test_chat import ROME, SAID

pytestmark = pytest.mark.page
expect.set_options(timeout=WAIT_MS)
CORRECTS = """(module
  (import "isthmus" "emit" (func $emit (param i32 i32) (result i32)))
  (import "isthmus" "reply" (func $reply (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 8) "a draft, thrown away") (data (i32.const 64) "what it means")
  (func (export "on_message") (param i32) (result i32)
    (drop (call $emit (i32.const 8) (i32.const 20)))
    (call $reply (i32.const 64) (i32.const 13))))"""
"""Emits something, and replies with something else."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A model that says what it is told to, and its tools."""
    folder = tmp_path_factory.mktemp("page")
    failing = f"broken={sys.executable} -c 'raise SystemExit(1)'"
    tools = ("--tool", "weather=echo sunny", "--tool", "clock=echo noon", "--tool", failing)
    model = ("--model", f"scripted={scripted(folder)}", "--n-ctx", "2048")
    made = Serving(folder / "data", *model, *tools)
    yield made
    assert made.stop() == 0


def bring(serving: Serving, wasm: bytes) -> str:
    return str(serving.client.post("/v1/guests", content=wasm).json()["id"])


def test_a_command_is_chosen_and_answers(serving: Serving, browser: Any) -> None:
    guest = bring(serving, command(f"{CAT} (call $exit (i32.const 3))"))
    with opened(browser, serving) as page:
        page.click("#new")
        page.click("#settings")
        page.locator("#dialog [name=guest]").select_option(guest)
        expect(page.locator("#dialog [name=system]")).to_be_hidden()
        page.locator("#dialog [name=options]").fill("no variable")
        page.click("#dialog .main")
        expect(page.locator("#dialog .wrong")).to_contain_text("give NAME=VALUE")
        page.locator("#dialog [name=options]").fill("LANG=C\nA=b=c")
        page.locator("#dialog [name=argv]").fill("--all\n-v")
        page.click("#dialog .main")
        page.locator("#dialog").wait_for(state="hidden")
        say(page, "one line")
        expect(page.locator(".answer").last).to_have_text("one line")
        expect(page.locator(".ended")).to_have_text("It exited with the status 3.")
        say(page, "another")
        expect(page.locator(".ended")).to_have_count(1)
        page.click("#settings")
        expect(page.locator("#dialog")).to_contain_text("LANG=C, A=b=c, --all, -v")
        page.click("#dialog .main")
        [agent] = [it for it in serving.get("/v1/agents")["data"] if it["guest"] == guest]
        assert (agent["argv"], agent["position"]) == (["--all", "-v"], 2)
        page.locator("[aria-label='Fork after this turn']").first.click()
        expect(page.locator(".turn > footer")).to_have_count(1)
        say(page, "in a fork")
        expect(page.locator(".answer").last).to_have_text("in a fork")
        page.click("#new")  # is one of `chat` again
        page.click("#settings")
        expect(page.locator("#dialog [name=guest]")).to_have_value("chat")
        expect(page.locator("#dialog [name=system]")).to_be_visible()


def test_tools_that_were_called_are_told(serving: Serving, browser: Any) -> None:
    tools = {"tools": ["weather", "clock"], "args": {"temperature": "0"}}
    serving.post("/v1/agents", {"name": "Rome", **tools})
    caller = {"guest": bring(serving, CALLER), "tools": ["broken"]}
    serving.post("/v1/agents", {"name": "Caller", **caller})
    with opened(browser, serving) as page:
        choose(page, "Rome")
        say(page, ROME)
        expect(page.locator(".facts").last).to_contain_text("weather, clock · ")
        expect(page.locator(".answer").last).to_contain_text(SAID.splitlines()[-1])
        say(page, "And now?")
        expect(page.locator(".facts").last).not_to_contain_text("weather")
        page.reload()
        choose(page, "Rome")
        expect(page.locator(".facts").first).to_contain_text("weather, clock · ")
        choose(page, "Caller")
        say(page, "=broken x")
        expect(page.locator(".facts").last).to_contain_text("broken (failed) · ")


def test_a_reply_that_was_not_emitted_is_shown(serving: Serving, browser: Any) -> None:
    guest = bring(serving, bytes(wasmtime.wat2wasm(CORRECTS)))
    serving.post("/v1/agents", {"name": "Corrects", "guest": guest})
    with opened(browser, serving) as page:
        choose(page, "Corrects")
        say(page, "hello")
        expect(page.locator(".answer")).to_have_text("what it means")
        page.reload()
        choose(page, "Corrects")
        expect(page.locator(".answer")).to_have_text("what it means")
