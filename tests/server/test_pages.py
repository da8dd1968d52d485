"""Pages of other origins in a headless Chromium: what their scripts may do and see."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isthmus.server.http.key import KeyLimits
from isthmus.server.keys.keys import new_key
from tests.server.conftest import Serving
from tests.server.test_origins import requests

pytestmark = pytest.mark.page
CHAT = "/v1/chat/completions"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
ASK = """async ([url, body, headers, simple]) => {
  const type = { "Content-Type": simple ? "text/plain" : "application/json" };
  try {
    const told = await fetch(url, { method: "POST", body: JSON.stringify(body),
                                    headers: { ...type, ...headers } });
    const headers_ = Object.fromEntries(told.headers);
    return { status: told.status, body: await told.json(), headers: headers_ };
  } catch (error) { return { error: error.name }; }
}"""
STREAM = """async ([url, body, headers]) => {
  const type = { "Content-Type": "application/json" };
  const told = await fetch(url, { method: "POST", body: JSON.stringify(body),
                                  headers: { ...type, ...headers } });
  const reader = told.body.getReader(), decoder = new TextDecoder(), pieces = [];
  for (let it; !(it = await reader.read()).done;) pieces.push(decoder.decode(it.value));
  return { status: told.status, pieces };
}"""
LEAVE = """async ([url, body, headers]) => {
  const leaving = new AbortController();
  const told = await fetch(url, { method: "POST", body: JSON.stringify(body), headers,
                                  signal: leaving.signal });
  const first = await told.body.getReader().read();
  leaving.abort();
  return new TextDecoder().decode(first.value);
}"""


@contextlib.contextmanager
def elsewhere() -> Iterator[str]:
    """An origin with one empty page."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>elsewhere</title><link rel=icon href=data:,>")

        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{serving.server_address[1]}"
        finally:
            serving.shutdown()
            thread.join()


@pytest.fixture
def origin() -> Iterator[str]:
    with elsewhere() as url:
        yield url


@pytest.fixture
def page(browser: Any, origin: str) -> Iterator[Any]:
    context = browser.new_context()
    page = context.new_page()
    page.goto(origin)
    yield page
    context.close()


@contextlib.contextmanager
def serving(model: Path, folder: Path, *options: str) -> Iterator[Serving]:
    made = Serving(folder / "data", "--model", f"tiny={model}", "--log-format", "json", *options)
    try:
        yield made
    finally:
        assert made.stop() == 0


def statuses(server: Serving) -> list[tuple[str, int, str | None]]:
    return [(it["method"], it["status"], it["error"]) for it in requests(server)]


@pytest.mark.parametrize("keyed", [False, True])
def test_a_page_that_is_not_named_sees_and_does_nothing(
    page: Any, tiny_q8: Path, tmp_path: Path, keyed: bool
) -> None:
    key = new_key(tmp_path / "keys", "ada")
    options = ("--keys", str(tmp_path / "keys")) if keyed else ()
    heads = {"Authorization": f"Bearer {key}"} if keyed else {}
    with serving(tiny_q8, tmp_path, *options) as server:
        for simple in (False, True):
            asked = [server.url + CHAT, BODY, heads, simple]
            assert page.evaluate(ASK, asked) == {"error": "TypeError"}
        made = {"name": "planted"}
        told = page.evaluate(ASK, [f"{server.url}/v1/agents", made, {}, True])
        assert told == {"error": "TypeError"}
    # a text needs no preflight: it came, and was refused
    assert ("POST", 403, "origin") in statuses(server)
    assert all(status == 403 for _, status, _ in statuses(server))
    assert not list((tmp_path / "data" / "agents").glob("*.json"))


def test_a_page_that_is_named_streams_and_sees_why(
    page: Any, origin: str, tiny_long: Path, tmp_path: Path
) -> None:
    key = new_key(tmp_path / "keys", "ada", KeyLimits.parse(["rpm=4"]))
    options = ("--keys", str(tmp_path / "keys"), "--origins", origin, "--n-ctx", "65536")
    heads = {"Authorization": f"Bearer {key}", "X-Stainless-Lang": "js", "X-Request-ID": "mine"}
    with serving(tiny_long, tmp_path, *options) as server:
        url = server.url + CHAT

        told = page.evaluate(STREAM, [url, {**BODY, "stream": True}, heads])
        assert told["status"] == 200
        assert "".join(told["pieces"]).endswith("data: [DONE]\n\n")
        endless = {**BODY, "stream": True, "max_tokens": 64000, "ignore_eos": True}
        first = page.evaluate(LEAVE, [url, endless, heads])  # before there is an end
        assert first.startswith("data: {")
        assert "[DONE]" not in first

        stranger = page.evaluate(ASK, [url, BODY, {"Authorization": "Bearer x"}, False])
        assert (stranger["status"], stranger["body"]["error"]["code"]) == (401, "invalid_api_key")
        for _ in range(2):
            wrong = page.evaluate(ASK, [url, {**BODY, "max_tokens": "x"}, heads, False])
            assert (wrong["status"], wrong["body"]["error"]["param"]) == (400, "max_tokens")
            assert wrong["headers"]["x-request-id"] == "mine"
        spent = page.evaluate(ASK, [url, BODY, heads, False])
        assert (spent["status"], spent["body"]["error"]["code"]) == (429, "rate_limit_exceeded")
        assert int(spent["headers"]["retry-after"]) >= 1
        assert spent["headers"]["x-ratelimit-remaining-requests"] == "0"
        large = page.evaluate(ASK, [url, {**BODY, "x": "x" * (5 << 20)}, heads, False])
        assert (large["status"], large["body"]["error"]["code"]) == (413, "too_long")
    found = statuses(server)
    assert ("OPTIONS", 204, None) in found
    assert ("POST", 200, "cancelled") in found
    # what the preflight told is remembered
    assert [method for method, _, _ in found].count("OPTIONS") == 1


def test_a_page_whose_origin_is_everybody(page: Any, tiny_q8: Path, tmp_path: Path) -> None:
    with serving(tiny_q8, tmp_path, "--origins", "*") as server:
        told = page.evaluate(ASK, [server.url + CHAT, BODY, {"Authorization": "Bearer x"}, False])
        assert told["status"] == 200
        assert told["headers"]["x-request-id"].startswith("req_")
