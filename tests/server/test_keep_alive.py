"""Streams that are silent for a while say that they go on."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from isthmus.errors import Overloaded
from isthmus.server.http.entry import Entry, begin
from isthmus.server.http.events import EVENTS, GOES_ON, LINES, respond
from tests.server.conftest import Serving

SILENT_S = 0.05
LONG_S = 4 * SILENT_S
PING = b'event: ping\ndata: {"type":"ping"}\n\n'


class Play:
    """Events with waits before them, and a caller."""

    def __init__(self, *items: bytes | float | Exception) -> None:
        self.items = items
        self.sent: list[Any] = []
        self.left = asyncio.Event()
        self.closed = False

    async def events(self) -> AsyncIterator[bytes]:
        try:
            for it in self.items:
                if isinstance(it, Exception):
                    raise it
                if isinstance(it, float):
                    await asyncio.sleep(it)
                else:
                    yield it
        finally:
            self.closed = True

    async def receive(self) -> Any:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def __call__(self, kind: str = EVENTS, **more: Any) -> bytes:
        """The bytes of the answer's body."""
        begin(Entry("id", "POST", "/", silent_s=SILENT_S))
        scope = {"type": "http", "headers": [], "method": "POST"}
        response = await respond(Request(scope, self.receive), self.events(), kind, **more)
        await response(scope, self.receive, self.send)
        assert self.closed
        assert [it["type"] for it in self.sent].count("http.response.start") == 1
        return b"".join(it.get("body", b"") for it in self.sent)


def play(*items: bytes | float | Exception, kind: str = EVENTS, **more: Any) -> bytes:
    async def run() -> bytes:
        return await Play(*items)(kind, **more)

    return asyncio.run(run())


def test_who_is_never_silent_says_nothing_more() -> None:
    assert play(b"a", b"b", 0.0, b"c") == b"abc"


def test_silences_are_filled() -> None:
    before = play(LONG_S, b"a", b"b")
    assert before.endswith(b"ab")
    assert before.startswith(GOES_ON * 2)
    between = play(b"a", LONG_S, b"b", LONG_S)
    assert between.startswith(b"a" + GOES_ON * 2)
    assert between.endswith(GOES_ON * 2)
    assert play(LONG_S, b"a", goes_on=PING).startswith(PING * 2)


def test_a_comment_is_no_event() -> None:
    assert GOES_ON.startswith(b":")
    assert GOES_ON.endswith(b"\n\n")
    assert GOES_ON.count(b"\n") == 2


def test_lines_have_nothing_that_fills() -> None:
    assert play(LONG_S, b"a\n", LONG_S, b"b\n", kind=LINES) == b"a\nb\n"


def test_an_early_error_has_a_status_and_a_late_one_is_an_event() -> None:
    with pytest.raises(Overloaded):
        play(Overloaded("early"))
    late = play(LONG_S, Overloaded("late"))
    assert late.startswith(GOES_ON)
    name, data = late.decode().rpartition("event: error\n")[1:]
    assert name
    assert json.loads(data.removeprefix("data: "))["error"]["code"] == "overloaded"
    with pytest.raises(Overloaded):
        play(LONG_S, Overloaded("early for lines"), kind=LINES)


def test_headers_for_caches_and_proxies() -> None:
    async def run() -> dict[bytes, bytes]:
        made = Play(b"a")
        await made()
        return dict(made.sent[0]["headers"])

    heads = asyncio.run(run())
    assert b"no-cache" in heads[b"cache-control"]
    assert heads[b"x-accel-buffering"] == b"no"


@pytest.mark.parametrize("after", [0.0, 2 * SILENT_S])
@pytest.mark.parametrize("before", [(), (b"a",)])
def test_who_leaves_ends_the_events(after: float, before: tuple[bytes, ...]) -> None:
    async def run() -> None:
        made = Play(*before, 60.0, b"never")
        answering = asyncio.ensure_future(made())
        await asyncio.sleep(after)
        made.left.set()
        try:
            await asyncio.wait_for(answering, 20)
        except ClientDisconnect:
            assert not made.sent
        assert made.closed or not (after or before)  # it may not have begun
        assert not any(b"never" in it.get("body", b"") for it in made.sent)

    asyncio.run(run())


def test_an_answer_that_nobody_takes_ends_its_events() -> None:
    async def run() -> None:
        made = Play(b"a", 60.0)
        begin(Entry("id", "POST", "/", silent_s=SILENT_S))
        scope = {"type": "http", "headers": [], "method": "POST"}
        response = await respond(Request(scope, made.receive), made.events())

        async def broken(message: Any) -> None:
            raise OSError("gone")

        with pytest.raises(OSError, match="gone"):
            await response(scope, made.receive, broken)
        assert made.closed

    asyncio.run(run())


# ---------------------------------------------------------------------------- over HTTP


@pytest.fixture(scope="module")
def narrow(tiny_long: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server that computes one request at a time."""
    folder = tmp_path_factory.mktemp("narrow")
    config = folder / "server.toml"
    config.write_text("silent_s = 0.1\nslots = 1\nn_ctx = 65536\n")
    serving = Serving(folder / "data", "--model", f"tiny={tiny_long}", "--config", str(config))
    yield serving
    assert serving.stop() == 0


MESSAGES = [{"role": "user", "content": "hello"}]
ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 8},
    "/v1/completions": {"prompt": "hello", "max_tokens": 8},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 8},
    "/v1/responses": {"input": "hello", "store": False, "max_output_tokens": 8},
    "/api/chat": {"messages": MESSAGES, "options": {"num_predict": 8}},
}


@pytest.mark.parametrize("path", ASKED)
def test_who_waits_for_a_slot_hears_that_it_goes_on(narrow: Serving, path: str) -> None:
    with _Asking(narrow, "/v1/completions", {**ASKED["/v1/completions"], **_ENDLESS}) as busy:
        assert b"data: {" in busy.until(b"data: {")
        with _Asking(narrow, path, ASKED[path]) as waiting:
            if path == "/api/chat":
                said = b""
            else:
                filler = PING if path == "/v1/messages" else GOES_ON
                said = waiting.until(filler * 3)
                assert said.startswith(b"HTTP/1.1 200 ")
                assert b"text/event-stream" in said
            busy.close()
            said += waiting.until(b"0\r\n\r\n")
    assert b"event: error" not in said
    assert b"\ndata: {" in said or path == "/api/chat"


_ENDLESS = {"max_tokens": 64000, "ignore_eos": True}


class _Asking:
    """A request for a stream, and what came of it without the chunks' sizes."""

    def __init__(self, serving: Serving, path: str, body: dict[str, Any]) -> None:
        host, _, port = serving.url.removeprefix("http://").partition(":")
        self._socket = socket.create_connection((host, int(port)), 30)
        data = json.dumps({"model": "tiny", "stream": True, **body}).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
        self._socket.sendall(head.encode() + data)

    def __enter__(self) -> _Asking:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def until(self, wanted: bytes) -> bytes:
        """What comes, until that is in it, whole or in chunks."""
        data, end = b"", time.monotonic() + 30
        while wanted not in data and wanted not in _joined(data):
            piece = self._socket.recv(65536)
            assert piece, data
            assert time.monotonic() < end, data
            data += piece
        return _joined(data) if wanted in _joined(data) else data

    def close(self) -> None:
        self._socket.close()


def _joined(data: bytes) -> bytes:
    """The head and the body without the lines of chunks."""
    head, found, body = data.partition(b"\r\n\r\n")
    return head + found + b"".join(body.split(b"\r\n")[1::2])
