"""What tests of the page share: a browser, a page that is watched, and a guest that says what it is
told, so that a test decides what an answer is."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import wasmtime

if TYPE_CHECKING:
    from tests.server.conftest import Serving

AXE = "axe-core@4.14.1"
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"),
    *("--disable-component-update", "--disable-sync", "--disable-quic"),
)
WAIT_MS = 60_000
DRAWN = "#turns[aria-busy=false]"
"""Once the turns of the agent that is shown are there."""
ENDLESS = {"grammar": "root ::= [a-z ] root", "max_tokens": "59000", "n_ctx": "60000"}
"""Options of an answer that has no end."""
ECHO = """(module
  (import "isthmus" "emit" (func $emit (param i32 i32) (result i32)))
  (import "isthmus" "message_read" (func $read (param i32 i32) (result i32)))
  (memory (export "memory") 32)
  (func (export "on_message") (param $nbytes i32) (result i32)
    (local $at i32) (local $n i32) (local $head i32)
    (drop (call $read (i32.const 1024) (local.get $nbytes)))
    (if (i32.eq (i32.load8_u (i32.const 1024)) (i32.const 42)) (then
      (local.set $head (i32.sub (i32.load8_u (i32.const 1025)) (i32.const 48)))
      (drop (call $emit (i32.const 1026) (local.get $head)))
      (local.set $n (i32.sub (i32.sub (local.get $nbytes) (local.get $head)) (i32.const 2)))
      (loop $again
        (if (call $emit (i32.add (i32.const 1026) (local.get $head)) (local.get $n))
          (then (return (i32.const 0))))
        (local.set $at (i32.add (local.get $at) (local.get $n)))
        (br_if $again (i32.lt_u (local.get $at) (i32.const 1048576))))
      (return (i32.const 0))))
    (loop $more
      (local.set $n (i32.sub (local.get $nbytes) (local.get $at)))
      (if (i32.gt_u (local.get $n) (i32.const 7)) (then (local.set $n (i32.const 7))))
      (if (call $emit (i32.add (i32.const 1024) (local.get $at)) (local.get $n))
        (then (return (i32.const 0))))
      (local.set $at (i32.add (local.get $at) (local.get $n)))
      (br_if $more (i32.lt_u (local.get $at) (local.get $nbytes))))
    (i32.const 0)))"""
"""Says what it is told, seven bytes at a time. After a star comes a digit, the length of a text
that it says once; what follows that is said until it is a MiB."""


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium."""
    from playwright.sync_api import expect, sync_playwright

    names = (os.environ.get("CHROMIUM", ""), "chromium", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    assert program, "install chromium, or say where it is by CHROMIUM"
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser: Any, server: Serving, **how: Any) -> Iterator[Any]:
    """The page, in a context of its own, once it shows an agent or asks for a key. No script of it
    may fail, and nothing that it asks for may be elsewhere. PAGE_SLOWER=4 has it a quarter of the
    processor."""
    given = {"viewport": {"width": 1440, "height": 900}, "reduced_motion": "reduce", **how}
    context = browser.new_context(**given)
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda it: problems.append(it.text) if _is_fault(it) else None)
    page.on("request", lambda it: None if _is_ours(it.url, server) else problems.append(it.url))
    if times := os.environ.get("PAGE_SLOWER"):
        slower = {"rate": float(times)}
        context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", slower)
    page.goto(server.url)
    page.locator(f"{DRAWN}, #dialog[open]").first.wait_for(state="attached")
    try:
        yield page
        assert problems == []
    finally:
        context.close()


def _is_fault(message: Any) -> bool:
    """Whether a message of the console is one: a status that is an error is told there too."""
    return message.type == "error" and not message.text.startswith("Failed to load resource")


def _is_ours(url: str, server: Serving) -> bool:
    return url.startswith((f"{server.url}/", f"blob:{server.url}", "data:,"))


def fetch_axe(folder: Path) -> str:
    """The source of axe-core, which looks for what keeps people out."""
    npm = shutil.which("npm")
    assert npm, "install npm: the tests fetch axe-core by it"
    subprocess.run([npm, "pack", "--silent", AXE], cwd=folder, check=True, timeout=120)
    archive = next(folder.glob("*.tgz"))
    shutil.unpack_archive(archive, folder)
    return (folder / "package" / "axe.min.js").read_text()


def violations(page: Any, axe: str, *rules: str) -> list[str]:
    """What axe-core finds on a page, as lines; by all of its rules if none are named."""
    page.evaluate(axe)
    only = {"runOnly": list(rules)} if rules else {}
    options = {"resultTypes": ["violations"], **only}
    found = page.evaluate("options => axe.run(document, options)", options)
    return [
        f"{it['id']}: {node['html'][:160]} {node.get('failureSummary', '')}"
        for it in found["violations"]
        for node in it["nodes"]
    ]


def bring_echo(server: Serving) -> str:
    """The hash of the guest that says what it is told."""
    wasm = bytes(wasmtime.wat2wasm(ECHO))
    return str(server.client.post("/v1/guests", content=wasm).json()["id"])


def say(page: Any, text: str) -> None:
    """Tells the agent that is shown something, and waits for the answer's end."""
    page.locator(DRAWN).wait_for(state="attached")
    before = page.locator(".turn > footer").count()
    tell(page, text)
    page.locator(".turn > footer").nth(before).wait_for()
    page.locator("#send").wait_for()


def tell(page: Any, text: str) -> None:
    """Tells the agent that is shown something, and waits for nothing."""
    page.locator("#input").fill(text)
    page.locator("#input").press("Enter")


def choose(page: Any, name: str) -> None:
    """Shows the agent of that name, with its turns."""
    page.locator("#agents li", has_text=name).first.click()
    page.locator("#title", has_text=name).wait_for()
    page.locator(DRAWN).wait_for(state="attached")


def wait_for_copy(page: Any, text: str) -> None:
    """Waits until the clipboard has a text that begins so."""
    read = "async text => (await navigator.clipboard.readText()).startsWith(text)"
    page.wait_for_function(read, arg=text)
