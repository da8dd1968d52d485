"""The web: pages that guests fetch, hubs and package indexes, all of which say what they like.

An input is JSON: who asks, the URL if it is a guest, and the answers by a part of their paths, as
bytes in Latin-1. An answer that ends with "…" never ends.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from isthmus import download
from isthmus.config import Environment
from isthmus.download import transfer
from isthmus.errors import IsthmusError
from isthmus.printable import printable
from isthmus.tools import ToolLimits, fetch_tool
from isthmus.tools.hosts import AllowedHosts
from tests.fuzz.surface import MIB, Surface

FILE = b"x" * 1000
_SHA256 = hashlib.sha256(FILE).hexdigest()
_COMMIT = "0" * 40
_ENDLESS = "\u2026"
_ENDLESS_S = 3.0
"""Seconds that an answer without an end goes on: at loopback's speed, gigabytes."""
_MAX_ERROR = 1500
"""Characters of an error, which names a URL, a reason and what to try."""
_LINK = download.SMOLLM2.wheel.sha256
_SIBLING = {"rfilename": "a.gguf", "lfs": {"sha256": _SHA256, "size": len(FILE)}}
_LISTING: dict[str, Any] = {"sha": _COMMIT, "siblings": [_SIBLING]}
_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**31, 2**63, 10**400, 0.5, "", "\x1b[2J", "x" * 100_000, [], {}),
)
_HEADS = (
    "Content-Length: 5",
    "Content-Length: -1",
    f"Content-Length: {'9' * 5000}",
    "Transfer-Encoding: chunked",
    "Content-Range: bytes 0-999/1000",
    f"Content-Range: bytes {'9' * 5000}-1/1000",
    "Content-Encoding: gzip",
    "Content-Type: text/plain; charset=punycode",
    "Content-Type: text/plain; charset=utf-16",
    "Content-Type: text/html" + '; "' * 5000,
    "Content-Type: application/vnd.pypi.simple.v1+json",
    'ETag: "\xff\x00"\r\n b',
    "X: " + "y" * 70_000,
    "Set-Cookie: a=b",
)
_PLACES = (
    *("/", "/to", "http://[::1/", "http://a..b/", "file:///etc/passwd", "http://2130706433/", ""),
    *("http://[::ffff:7f00:1]/", "http://0x7f.1:80/", "//\xe9/", "http://u@127.0.0.1/", "?" * 9000),
    *("http://127.0.0.1:99999/", "http://a\x01b/", "gopher://x/", "http://xn--/", "http:///x"),
)
_STATUSES = (200, 206, 204, 301, 302, 303, 307, 308, 304, 401, 403, 404, 416, 429, 500, 999)
_BODIES = (
    *("", "-5\r\n" + _ENDLESS, "fffffffffffffffff\r\nx", "0\r\n" + "A: b\r\n" * 500, "x" * 5000),
    *("x" + _ENDLESS, '{"x":' * 100_000, "[" * 100_000, "\xff\xfe\x00", "abc-" + "e9zab8d" * 5000),
    *("<![" * 1000, "<a " * 20_000, f'<a href="http://[x#sha256={_LINK}">', FILE.decode()),
)


def asked(by: str, url: str = "/", **answers: str) -> Callable[[], bytes]:
    """An input. `hub`, `index` and `file` are the paths that are answered; `all` is any."""
    return lambda: json.dumps({"by": by, "url": url, "answers": answers}).encode()


def answer(body: str, *heads: str, status: int = 200) -> str:
    """An answer as it is sent."""
    return "\r\n".join([f"HTTP/1.1 {status} X", *heads, "Connection: close", "", body])


_GOOD = answer(json.dumps(_LISTING))


def _to(place: str) -> str:
    return answer("", f"Location: {place}", "Content-Length: 0", status=302)


class Fuzz(Surface):
    """Fetches a page, or pulls a model. Errors are short and printable, and memory is bounded."""

    corpus: ClassVar = {
        "good-page": asked("guest", all=answer("words")),
        "good-file": asked("hub", hub=_GOOD, file=answer(FILE.decode())),
        "negative-chunk": asked("guest", all=answer(_BODIES[1], "Transfer-Encoding: chunked")),
        "negative-chunk-hub": asked("hub", hub=answer(_BODIES[1], "Transfer-Encoding: chunked")),
        "negative-chunk-file": asked(
            "hub", hub=_GOOD, file=answer(_BODIES[1], "Transfer-Encoding: chunked")
        ),
        "5000-digit-length": asked("hub", hub=_GOOD, file=answer("", _HEADS[2])),
        "5000-digit-range": asked("hub", hub=_GOOD, file=answer("", _HEADS[5], status=206)),
        "endless-redirect": asked(
            "hub", hub=_GOOD, file=answer(_ENDLESS, "Location: /x", status=302)
        ),
        "endless-listing": asked("hub", hub=answer(_ENDLESS)),
        "100000-braces": asked("hub", hub=answer('{"x":' * 100_000)),
        "100000-braces-index": asked("index", index=answer('{"x":' * 100_000, _HEADS[10])),
        "long-words": asked("hub", hub=answer(json.dumps({**_LISTING, "sha": "z" * 1_000_000}))),
        "escapes": asked("hub", hub=_GOOD, file="HTTP/1.1 418 \x1b[2J\x07\r\n\r\n"),
        "no-link": asked("index", index=answer(_BODIES[-2], "Content-Type: text/html")),
        "no-declaration": asked("index", index=answer("<![<![", "Content-Type: text/html")),
        "punycode": asked("guest", all=answer("abc-" + "e9zab8d" * 40_000, _HEADS[7])),
        "no-place": asked("guest", all=_to("http://[::1/")),
        "long-place": asked("guest", all=_to("/" + "x" * 9000)),
        "100-continue": asked("guest", all="HTTP/1.1 100 X\r\n\r\n" * 1000 + _ENDLESS),
    }
    cpu_s = 10.0
    wall_s = 60.0
    memory_nbytes = 400 * MIB
    n_short = 60

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        transfer._WAIT_S = 0.0
        self.server = _Server()
        self.port = self.server.server_address[1]
        hosts = AllowedHosts([f"127.0.0.1:{self.port}"])
        self.tool = fetch_tool(hosts, limits=ToolLimits(deadline_s=2.0, output_nbytes=MIB))

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def make(self, rng: random.Random) -> bytes:
        by = rng.choice(["guest", "hub", "index"])
        answers = {"all": _made(rng, by)}
        if by == "hub" and rng.random() < 0.7:
            answers = {"hub": _listing(rng), "file": _made(rng, by)}
        return asked(by, rng.choice(["/", *_PLACES]), **answers)()

    def run(self, data: bytes) -> str:
        said = json.loads(data)
        self.server.answers = {path: it.encode("utf-8") for path, it in said["answers"].items()}
        try:
            if said["by"] == "guest":
                return f"{len(self._fetch(said['url'])) > 0}"
            return self._pull("hf:org/repo" if said["by"] == "hub" else "smollm2")
        except IsthmusError as error:
            text = str(error)
            assert len(text) <= _MAX_ERROR, f"an error of {len(text)} characters"
            assert said["by"] == "guest" or text == printable(text), "an error that is obeyed"
            return type(error).__name__

    def _fetch(self, url: str) -> bytes:
        if url.startswith("/") and not url.startswith("//"):
            url = f"http://127.0.0.1:{self.port}{url}"
        return self.tool.run(json.dumps({"url": url}).encode(), lambda: None)

    def _pull(self, name: str) -> str:
        here = f"http://127.0.0.1:{self.port}"
        cache = self.folder / "cache"
        environment = Environment(cache=cache, hub_url=here, index_url=f"{here}/simple")
        try:
            path = download.pull(name, environment, lambda _: None)
            assert path.read_bytes() == FILE, "another file than its hash says"
            return "pulled"
        finally:
            shutil.rmtree(cache, ignore_errors=True)

    def smaller(self, data: bytes) -> Iterator[bytes]:
        said = json.loads(data)
        for path, text in said["answers"].items():
            size = len(text) // 2
            while size > len(text) // 64:
                for begin in range(0, len(text), size):
                    shorter = {**said["answers"], path: text[:begin] + text[begin + size :]}
                    yield json.dumps({**said, "answers": shorter}).encode()
                size //= 2


def _made(rng: random.Random, by: str) -> str:
    """An answer of anything."""
    heads = rng.sample(_HEADS, rng.choice([0, 1, 1, 2]))
    status = rng.choice([200, 200, 200, *_STATUSES])
    if 300 < status < 400:
        heads.append(f"Location: {rng.choice(_PLACES)}")
    made = answer(_listing(rng) if by == "hub" and rng.random() < 0.1 else rng.choice(_BODIES),
                  *heads, status=status)  # fmt: skip
    if rng.random() < 0.2:
        at = rng.randrange(len(made) + 1)
        made = made[:at] + rng.choice(["\0", "\r\n", "\xff", "\x1b[2J", _ENDLESS]) + made[at:]
    return made


def _listing(rng: random.Random) -> str:
    """What a hub says of a repository, with lies in it."""
    listing = json.loads(json.dumps(_LISTING))
    sibling = listing["siblings"][0]
    for holder in rng.sample([listing, sibling, sibling["lfs"]], rng.choice([0, 1, 2])):
        holder[rng.choice(list(holder))] = rng.choice(_VALUES)
    if rng.random() < 0.2:
        listing["siblings"] = [sibling] * rng.choice([0, 2, 100])
    return answer(json.dumps(listing))


class _Server(socketserver.ThreadingTCPServer):
    """Says to whoever asks what the case wants."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {}
        super().__init__(("127.0.0.1", 0), _Answering)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, path: str) -> bytes:
        """The answer to a request of a path."""
        known = {"/api/": "hub", "/resolve/": "file", "/simple": "index"}
        name = next((it for part, it in known.items() if part in path), "all")
        return self.answers.get(name) or self.answers.get("all") or answer("").encode()


class _Answering(socketserver.BaseRequestHandler):
    server: _Server
    request: socket.socket

    def handle(self) -> None:
        words = self.request.recv(65_536).split()
        data = self.server.answer(words[1].decode("latin-1") if len(words) > 1 else "")
        data, endless, _ = data.partition(_ENDLESS.encode())
        try:
            self.request.sendall(data.decode().encode("latin-1", "replace"))
            end = time.monotonic() + _ENDLESS_S
            while endless and time.monotonic() < end:
                self.request.sendall(b"x" * 65_536)
        except OSError:
            pass
