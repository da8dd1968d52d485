"""Clients that dawdle, and more of them than there may be."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from isthmus.server.http.entry import Entry
from isthmus.server.http.errors import HttpError
from isthmus.server.http.listening import raise_open_files
from isthmus.server.keys import guard
from isthmus.units import MIB
from tests.patience import eventually
from tests.server.conftest import Serving
from tests.server.process import watching
from tests.server.test_agents import new_agent, tell

HEAD_S, IDLE_S, STALLED_S, CONNECTIONS = 0.5, 0.7, 1.0, 24
FLOOD = """(module (import "isthmus" "emit" (func $e (param i32 i32) (result i32)))
  (memory (export "memory") 1) (data (i32.const 8) "x")
  (func (export "on_message") (param i32) (result i32) (local $n i32)
    (loop $next
      (drop (call $e (i32.const 8) (i32.const 1)))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $n) (i32.mul (local.get 0) (i32.const 100000)))))
    (i32.const 0)))"""
"""Says 100,000 letters for each byte that it is told, one by one."""


@pytest.fixture(scope="module")
def hasty(tiny_q8: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("hasty")
    config = folder / "server.toml"
    config.write_text(
        f"head_s = {HEAD_S}\nidle_s = {IDLE_S}\nstalled_s = {STALLED_S}\n"
        f"connections = {CONNECTIONS}\nbodies_nbytes = 30000\nbody_nbytes = 20000\n"
    )
    options = ("--model", f"tiny={tiny_q8}", "--n-ctx", "1024", "--config", str(config))
    serving = Serving(folder / "data", *options)
    yield serving
    assert serving.stop() == 0


@pytest.fixture
def connect(hasty: Serving) -> Iterator[Callable[[bytes], socket.socket]]:
    """Opens a connection and sends something."""
    host, _, port = hasty.url.removeprefix("http://").partition(":")
    with ExitStack() as stack:

        def connect(data: bytes) -> socket.socket:
            made = stack.enter_context(socket.create_connection((host, int(port)), 10))
            made.sendall(data)
            return made

        yield connect
    time.sleep(0.1)  # the server hears of it


def answer(connection: socket.socket) -> tuple[bytes, float]:
    """All that comes until the end, and how long that took."""
    start, data = time.monotonic(), b""
    try:
        while piece := connection.recv(65536):
            data += piece
    except ConnectionResetError:
        pass
    return data, time.monotonic() - start


@pytest.mark.parametrize(
    "sent", [b"G", b"GET /healthz HTTP/1.1\r\n", b"GET /healthz HTTP/1.1\r\nHost: x"]
)
def test_half_a_head_is_not_waited_for(
    connect: Callable[[bytes], socket.socket], sent: bytes
) -> None:
    data, seconds = answer(connect(sent))
    assert data.startswith(b"HTTP/1.1 408 ")
    assert json.loads(data.partition(b"\r\n\r\n")[2])["error"]["code"] == "timeout"
    assert HEAD_S * 0.9 < seconds < 10


def test_a_head_that_drips_is_not_waited_for(connect: Callable[[bytes], socket.socket]) -> None:
    slow, start = connect(b"GET /healthz HTTP/1.1\r\nX: "), time.monotonic()
    with contextlib.suppress(OSError):
        while time.monotonic() - start < 10:
            slow.sendall(b"x")
            time.sleep(0.05)
    assert time.monotonic() - start < 5


def test_who_says_nothing_is_let_go(connect: Callable[[bytes], socket.socket]) -> None:
    assert answer(connect(b""))[0] == b""


def test_an_idle_connection_is_let_go(connect: Callable[[bytes], socket.socket]) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    kept = connect(request)
    assert kept.recv(65536).startswith(b"HTTP/1.1 200 ")
    time.sleep(IDLE_S * 0.4)
    kept.sendall(request)
    data, seconds = answer(kept)
    assert data.count(b"HTTP/1.1 200 ") == 1
    assert IDLE_S * 0.9 < seconds < 10
    stalled = connect(request + b"GET /hea")  # the beginning of a second one
    data, _ = answer(stalled)
    assert data.count(b"HTTP/1.1 200 ") == 1


def test_what_is_no_http_is_told_so(connect: Callable[[bytes], socket.socket]) -> None:
    data, _ = answer(connect(b"\x16\x03\x01 hello\r\n\r\n"))
    assert data.startswith(b"HTTP/1.1 400 ")
    assert json.loads(data.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"


def test_one_too_many_is_told_so(hasty: Serving, connect: Callable[[bytes], socket.socket]) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for _ in range(CONNECTIONS):
        connect(b"GET")
    refused = connect(request)
    data, seconds = answer(refused)
    assert data.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1" in data
    assert json.loads(data.partition(b"\r\n\r\n")[2])["error"]["code"] == "overloaded"
    assert seconds < HEAD_S
    time.sleep(HEAD_S + 0.5)
    assert answer(connect(request))[0].startswith(b"HTTP/1.1 200 ")


def test_a_body_that_drips_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_BODY_S", 0.2)
    entry = Entry("id", "POST", "/")

    async def drip() -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def read() -> None:
        body = guard._Body(drip, entry, 100_000, None)
        while True:
            await body.receive()

    with pytest.raises(HttpError) as caught:
        asyncio.run(asyncio.wait_for(read(), 20))
    assert caught.value.status == 408
    assert 0 < entry.nbytes_in < 1000


def test_bodies_are_bounded_together(connect: Callable[[bytes], socket.socket]) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20000\r\n\r\n"
    first = connect(head + b" " * 19_000)
    time.sleep(0.2)
    data, _ = answer(connect(head + b" " * 19_000))
    assert data.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1" in data
    first.sendall(b" " * 1000)
    assert first.recv(65536).startswith(b"HTTP/1.1 400 ")
    again = connect(head + b" " * 20_000)
    assert again.recv(65536).startswith(b"HTTP/1.1 400 ")  # the room was given back


def streaming(serving: Serving, path: str, body: dict[str, Any], room: int) -> socket.socket:
    """A request for a stream by somebody who reads nothing of it."""
    host, _, port = serving.url.removeprefix("http://").partition(":")
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    slow.connect((host, int(port)))
    data = json.dumps({**body, "stream": True}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    slow.sendall(head.encode() + data)
    return slow


def test_who_reads_nothing_holds_no_more_than_the_text(hasty: Serving) -> None:
    guest = hasty.client.post("/v1/guests", content=bytes(wasmtime.wat2wasm(FLOOD))).json()["id"]
    ids = [new_agent(hasty, guest=guest) for _ in range(2)]
    for id_ in ids:
        tell(hasty, id_, "x")
    with watching(hasty.process.pid) as peak, ExitStack() as stack:
        for id_ in ids:
            path = f"/v1/agents/{id_}/messages"
            stack.enter_context(streaming(hasty, path, {"input": "xxx"}, 4096))
        quick = {"model": "tiny", "prompt": "hello", "max_tokens": 4}
        for _ in range(3):
            assert hasty.client.post("/v1/completions", json=quick).status_code == 200
        for id_ in ids:
            tell(hasty, id_, "x")
    assert peak.grown < 24 * MIB, peak.grown / MIB


def test_who_reads_nothing_is_cut_off(
    hasty: Serving, connect: Callable[[bytes], socket.socket]
) -> None:
    wasm = bytes(wasmtime.wat2wasm(FLOOD.replace('"memory") 1)', '"memory") 1024)')))
    id_ = new_agent(hasty, guest=hasty.client.post("/v1/guests", content=wasm).json()["id"])
    slow = connect(f"GET /v1/agents/{id_}/snapshot HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    time.sleep(2.5 * STALLED_S)
    data, _ = answer(slow)
    assert data.startswith(b"HTTP/1.1 200 ")
    assert len(data) < 60 * MIB  # of 64


def test_whoever_leaves_while_he_waits_is_not_answered(hasty: Serving) -> None:
    body = {"model": "tiny", "prompt": "a", "max_tokens": 900, "ignore_eos": True}
    before = decoded(hasty)
    for stream in (True, False):
        for _ in range(8):
            slow = streaming(hasty, "/v1/completions", {**body, "stream": stream}, 4096)
            slow.close()
    assert eventually(lambda: "isthmus_actors_running 0.0" in hasty.client.get("/metrics").text)
    assert decoded(hasty) - before < 8 * 900


def decoded(serving: Serving) -> float:
    text = serving.client.get("/metrics").text
    line = next(it for it in text.splitlines() if it.startswith("isthmus_tokens_decoded_total "))
    return float(line.split()[1])


def test_limits_of_a_guest_that_would_fill_the_memory(hasty: Serving) -> None:
    for limit in (None, 2**40):
        done = hasty.client.post("/v1/agents", json={"limits": {"output_nbytes": limit}})
        assert (done.status_code, "give 16777216 or less" in done.text) == (400, True)


def test_too_few_files_are_complained_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = [(256, 1024)]

    def change(_kind: int, new: tuple[int, int]) -> None:
        limits.append(new)

    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", change)
    assert raise_open_files(100) == 1024
    assert limits[-1] == (1024, 1024)
    assert caplog.text == ""
    assert raise_open_files(4096) == 1024
    assert "may open 1024 files, and 4096 connections need 4608" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING
