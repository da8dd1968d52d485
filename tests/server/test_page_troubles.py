"""A server that goes away, keys that are asked for and revoked, many agents, and a long stream."""

from __future__ import annotations

import json
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from isthmus.server.http.key import KeyLimits
from isthmus.server.keys.keys import new_key
from isthmus.server.storage.record import FullRecord, encode
from tests.server.conftest import Serving
from tests.server.page_support import ENDLESS, opened, say, tell

pytestmark = pytest.mark.page


def test_a_server_that_goes_away_and_comes_back(
    tiny_long: Path, tmp_path: Path, browser: Any
) -> None:
    options = ("--model", f"tiny={tiny_long}", "--n-ctx", "60000")
    first = Serving(tmp_path / "data", *options)
    port = first.url.rpartition(":")[2]
    made = {"name": "Ada", "args": ENDLESS}
    first.post("/v1/agents", made)
    with opened(browser, first) as page:
        page.locator("#title", has_text="Ada").wait_for()
        tell(page, "Tell me everything.")
        expect(page.locator(".answer")).not_to_have_text("")
        first.kill()
        expect(page.locator(".failed")).to_contain_text("went away before this answer was saved")
        expect(page.locator("#notice")).to_contain_text("The server does not answer.")
        assert page.locator(".answer").inner_text()  # what was said can be read
        assert page.inner_text(".said") == "Tell me everything."

        second = Serving(tmp_path / "data", *options, "--port", port)
        try:
            expect(page.locator("#notice")).to_be_hidden()
            with page.expect_request("**/messages") as again:
                page.get_by_role("button", name="Try again").click()
            assert again.value.headers["last-event-id"].endswith(".0")  # it may have gone on
            expect(page.locator("#stop")).to_be_visible()
            expect(page.locator(".answer")).not_to_have_text("")
            page.click("#stop")
            expect(page.locator(".ended")).to_contain_text("You stopped it here.")
        finally:
            assert second.stop() == 0


def test_a_key_is_asked_for_once_and_may_be_revoked(
    tiny_q8: Path, tmp_path: Path, browser: Any
) -> None:
    keys = tmp_path / "keys"
    key, other = (new_key(keys, it, KeyLimits.parse([])) for it in ("ada", "grace"))
    options = ("--model", f"tiny={tiny_q8}", "--n-ctx", "512", "--keys", str(keys))
    server = Serving(tmp_path / "data", *options)
    try:
        with opened(browser, server) as page:
            asked = page.locator("#dialog [name=key]")
            expect(asked).to_be_focused()
            asked.fill("wrong")
            page.keyboard.press("Enter")
            expect(page.locator("#dialog .wrong")).to_contain_text("give an API key")
            sent: list[str] = []
            page.on("request", lambda it: sent.append(it.url))
            page.wait_for_timeout(6000)  # longer than the page waits between two looks
            assert not sent  # nothing asks on while the form is open
            asked.fill(key)
            page.keyboard.press("Enter")
            expect(asked).to_be_hidden()
            expect(page.locator("#model")).to_have_value("tiny")
            page.click("#settings")
            page.locator("#dialog [name=max_tokens]").fill("8")
            page.click("#dialog .main")
            say(page, "Hello")

            lines = keys.read_text().splitlines(keepends=True)
            keys.write_text("".join(it for it in lines if "ada" not in it))
            expect(page.locator("#dialog")).to_contain_text("not accepted any more")
            asked.fill(other)
            page.keyboard.press("Enter")
            expect(asked).to_be_hidden()
            expect(page.locator("#empty")).to_be_visible()  # what is another key's is not shown
    finally:
        assert server.stop() == 0


def test_two_thousand_agents(tiny_q8: Path, tmp_path: Path, browser: Any) -> None:
    folder = tmp_path / "data" / "agents"
    folder.mkdir(parents=True)
    for n in range(2000):
        id_ = f"{n:012d}"
        record = FullRecord(
            id=id_, name=f"Agent {n}", guest="chat", models={"default": "tiny"},
            args={}, limits={}, seed=1, created=float(n),
        )  # fmt: skip
        (folder / f"{id_}.json").write_bytes(encode(record))
    server = Serving(tmp_path / "data", "--model", f"tiny={tiny_q8}", "--n-ctx", "512")
    try:
        with opened(browser, server) as page:
            expect(page.locator("#agents li")).to_have_count(2000)
            page.fill("#find", "agent 1234")
            expect(page.locator("#agents li")).to_have_count(1)
            page.locator("#agents li").click()
            expect(page.locator("#title")).to_have_text("Agent 1234")
            page.fill("#find", "")
            expect(page.locator("#agents li")).to_have_count(2000)
            page.locator("#agents [tabindex='0']").focus()
            page.keyboard.press("End")
            expect(page.locator("#agents li", has_text="Agent 0").last).to_be_focused()
    finally:
        assert server.stop() == 0


@pytest.mark.long
def test_a_long_answer_scrolls_smoothly_while_it_streams(
    tiny_long: Path, tmp_path: Path, browser: Any
) -> None:
    """4,000 tokens, and a wheel that turns meanwhile. The browser's own trace says what became of
    each frame, and what the page's thread did for it: by the time of the processor, since a busy
    machine takes what it wants of any other."""
    server = Serving(tmp_path / "data", "--model", f"tiny={tiny_long}", "--n-ctx", "60000")
    try:
        server.post("/v1/agents", {"name": "Long", "args": {**ENDLESS, "max_tokens": "4000"}})
        with opened(browser, server) as page:
            page.locator("#title", has_text="Long").wait_for()
            browser.start_tracing(page=page, categories=TRACED)
            tell(page, "Begin")
            box = page.locator("#scroll").bounding_box()
            page.mouse.move(box["x"] + 100, box["y"] + 100)
            turned, until = 0, time.monotonic() + 120
            while page.locator("#stop").is_visible() and time.monotonic() < until:
                page.mouse.wheel(0, -60 if turned % 20 < 10 else 60)
                turned += 1
            trace = json.loads(browser.stop_tracing())["traceEvents"]
            expect(page.locator(".ended")).to_contain_text("Cut at 4,000 tokens.")
    finally:
        assert server.stop() == 0
    frames, took = Counter(frame_states(trace)), sorted(own_ms_of_frames(trace))
    slow = [it for it in took if it > 1000 / 60]
    middle, most = took[len(took) // 2], took[len(took) * 99 // 100]
    print(f"{turned} turns of the wheel; frames: {dict(frames)}")
    print(f"{len(took)} frames of the page's thread, in ms of the processor: {middle:.2f} in the")
    print(f"middle, {most:.2f} at 99 %, {took[-1]:.2f} at most; {len(slow)} longer than a frame")
    assert turned >= 5
    assert frames["STATE_PRESENTED_ALL"] > len(slow)
    assert len(slow) < len(took) / 200


TRACED = ["devtools.timeline", "disabled-by-default-devtools.timeline", "cc", "benchmark"]


def frame_states(trace: list[dict[str, Any]]) -> Iterator[str]:
    """What became of each frame: whether it was presented, in part, dropped, or not wanted."""
    for it in trace:
        if it["name"] == "PipelineReporter" and "frame_reporter" in it.get("args", {}):
            yield it["args"]["frame_reporter"]["state"]


def own_ms_of_frames(trace: list[dict[str, Any]]) -> Iterator[float]:
    """Milliseconds of the processor that went into each frame on the thread that runs the page's
    script, lays it out and paints it: all that it did since the frame before."""
    (place,) = {
        (it["pid"], it["tid"])
        for it in trace
        if it["name"] == "thread_name" and it["args"]["name"] == "CrRendererMain"
    }
    here = [it for it in trace if (it["pid"], it["tid"]) == place]
    name, whole = "ProxyMain::BeginMainFrame", "X"
    begun = sorted(it["ts"] for it in here if (it["name"], it["ph"]) == (name, whole))
    spent = [0.0] * (len(begun) + 1)
    for it in here:
        if it["name"] == "RunTask":
            spent[bisect_right(begun, it["ts"] + it.get("dur", 0))] += it.get("tdur", 0) / 1000
    yield from spent[1:]
