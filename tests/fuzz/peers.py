"""Servers of one store: what a hostile peer answers, and requests that claim to come from one.

An input is JSON: `answer`, what the owner of an agent says to a request that was passed on, as
bytes in Latin-1; or `path`, `headers` and `body` of a request that was not passed on by anybody.
"""

from __future__ import annotations

import asyncio
import json
import random
import socketserver
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import h11

from isthmus.server.cluster.named import agent_of_body, agent_of_path, is_told_by_body
from isthmus.server.cluster.passing import NotThere, pass_on
from isthmus.server.http.errors import HttpError
from isthmus.server.keys.admission import KEY, TOKEN, Admission
from isthmus.server.keys.keys import Keys, new_key
from isthmus.server.settings import ServerSettings
from isthmus.server.storage.node import Peer
from tests.fuzz.surface import MIB, Surface
from tests.fuzz.web import _Server as Answering

_ENDLESS = "\u2026"
_HEADS = (
    "Content-Length: 5",
    "Content-Length: -1",
    "Content-Length: 5\r\nContent-Length: 6",
    f"Content-Length: {'9' * 5000}",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: gzip, chunked",
    "X-Request-ID: another",
    "Set-Cookie: a=b; \xff",
    "X-RateLimit-Limit-Requests: 0",
    "X: " + "y" * 70_000,
    "A b: c",
    ": c",
    "X: a\r\n b",
)
_BODIES = (
    *("", "x", "hello", "x" * 5000, "5\r\nhello\r\n0\r\n\r\n", "-5\r\nx", "fffffffffffffffff\r\nx"),
    *("0\r\n" + "A: b\r\n" * 500 + "\r\n", "5\r\nhello\r\n0\r\nX: " + "y" * 70_000, "x" + _ENDLESS),
)
_STARTS = ("HTTP/1.1 200 OK", "HTTP/1.1 421 X", "HTTP/1.1 500 X", "HTTP/1.1 101 X", "HTTP/1.0 200")
_ODD = ("HTTP/1.1 999 X", "HTTP/1.1 20 X", "HTTP/9.9 200 X", "\x00" * 99, "HTTP/1.1 100 X\r\n\r\n")
_NAMES = ("", "a", "%", "%ff", "%00", "a%0d%0ab", "..%2f", "\xff", "x" * 9000, "%F0%9F", "*", "a b")
_IDS = ("a" * 12, "0" * 12, "resp_", "resp_x", "conv_", "%2e%2e", "..", "\xff", "x" * 5000, "")
_ASKED: tuple[Any, ...] = (
    *(
        None,
        "",
        "resp_" + "a" * 40,
        "conv_" + "a" * 12,
        {"id": "conv_x"},
        {"id": None},
        [],
        10**400,
    ),
    *("\ud800", "\x00", "x" * 100_000, {"id": {"id": {}}}),
)


def answered(text: str) -> Callable[[], bytes]:
    """An input: what the owner says."""
    return lambda: json.dumps({"answer": text}).encode()


class Fuzz(Surface):
    """Passes a request on to that owner, or takes that request; neither fools this server."""

    corpus: ClassVar = {
        "good": answered("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
        "switching": answered("HTTP/1.1 101 X\r\nUpgrade: x\r\n\r\n"),
        "two-lengths": answered(f"HTTP/1.1 200 OK\r\n{_HEADS[2]}\r\n\r\nhello"),
        "endless-head": answered("HTTP/1.1 200 OK\r\nX: " + _ENDLESS),
        "endless-body": answered("HTTP/1.1 200 OK\r\n\r\n" + _ENDLESS),
        "negative-chunk": answered(f"HTTP/1.1 200 OK\r\n{_HEADS[4]}\r\n\r\n-5\r\nx"),
        "continued-for-ever": answered("HTTP/1.1 100 X\r\n\r\n" * 1000 + _ENDLESS),
    }
    cpu_s = 20.0
    wall_s = 60.0
    memory_nbytes = 400 * MIB
    n_short = 60

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.server: socketserver.BaseServer = Answering()
        port = self.server.server_address[1]
        self.peer = Peer(2, f"http://127.0.0.1:{port}", "secret", "there")
        new_key(folder / "keys", "ada")
        self.admission = Admission(ServerSettings(), Keys(folder / "keys"), "ours")

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def make(self, rng: random.Random) -> bytes:
        if rng.random() < 0.6:
            start = rng.choice([*_STARTS, *_STARTS, *_ODD])
            heads = rng.sample(_HEADS, rng.choice([0, 1, 1, 2]))
            text = "\r\n".join([start, *heads, "", rng.choice(_BODIES)])
            if rng.random() < 0.2:
                at = rng.randrange(len(text) + 1)
                text = text[:at] + rng.choice(["\0", "\r\n", "\xff", _ENDLESS]) + text[at:]
            return answered(text)()
        kind = rng.choice(["agents", "responses", "conversations"])
        path = rng.choice(["/v1/responses", f"/v1/{kind}/{rng.choice(_IDS)}", "/metrics"])
        names = [TOKEN.decode(), KEY.decode(), "authorization", "x-api-key", "host"]
        values = [*_NAMES, "ours", "ada", "ourt", "127.0.0.1"]
        headers = [(rng.choice(names), rng.choice(values)) for _ in range(rng.choice([1, 2, 4]))]
        body = {"previous_response_id": rng.choice(_ASKED), "conversation": rng.choice(_ASKED)}
        return json.dumps({"path": path, "headers": headers, "body": json.dumps(body)}).encode()

    def run(self, data: bytes) -> str:
        said = json.loads(data)
        if "answer" in said:
            self.server.answers = {"all": said["answer"].encode()}  # type: ignore[attr-defined]
            return asyncio.run(self._pass_on())
        return self._admit(said)

    async def _pass_on(self) -> str:
        sent: list[dict[str, Any]] = []

        async def send(message: Any) -> None:
            if len(sent) < 3:
                sent.append(message)
            else:  # a body without an end is not kept
                sent[-1] = message

        scope = {"method": "GET", "raw_path": b"/v1/agents/x", "query_string": b"", "headers": []}
        try:
            await pass_on(self.peer, scope, b"", send, lambda _: False)
            done = "whole"
        except NotThere:
            done = "not there"
        except (OSError, EOFError, h11.ProtocolError):
            assert sent, "an error of the wire, before anything was answered"
            done = "cut off"
        if sent:
            head, *rest = sent
            assert head["type"] == "http.response.start"
            assert 200 <= head["status"] <= 999
            for name, value in head["headers"]:
                assert not {*b"\r\n\0"} & {*name, *value}, "a header that makes another one"
            assert all(it["type"] == "http.response.body" for it in rest)
            assert (done == "whole") == (bool(rest) and not rest[-1]["more_body"])
        return done

    def _admit(self, said: dict[str, Any]) -> str:
        """Only this server's own token lets a request in without a key of its own."""
        path, body = said["path"], said["body"].encode()
        headers = [(name.encode(), value.encode("latin-1")) for name, value in said["headers"]]
        agent = agent_of_path(path)
        if is_told_by_body("POST", path):
            agent = agent_of_body(body)
        assert agent is None or (len(agent) == 12 and agent.isascii() and agent.isalnum())
        scope = {"path": path, "method": "POST", "headers": headers, "type": "http"}
        try:
            key = self.admission.admit(scope)
        except HttpError as error:
            if error.status not in (400, 401, 403, 421):
                raise
            return str(error.status)
        tokens = [value for name, value in headers if name == TOKEN]
        assert tokens == [b"ours"], "let in without a key"
        assert key is not None
        assert key.name == "ada"
        return "let in"
