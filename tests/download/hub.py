"""A hub and a package index of the tests' own, which may cut off, lie and refuse."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_LISTING = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/revision/(?P<revision>[^/]+)")
_FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


@dataclass
class Asked:
    """A request that came."""

    path: str
    headers: dict[str, str]


@dataclass
class Reply:
    """What is answered instead of what should be."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    declared_nbytes: int | None = None
    """Content-Length, where that is another one."""


Lie = Callable[[Asked, Reply], Reply]


@dataclass
class FakeHub:
    """Files by repository, and what goes wrong."""

    url: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    token: str | None = None
    """Who asks must have it."""
    cuts: list[int] = field(default_factory=list)
    """Bytes after which an answer of a file breaks off, for one answer after another."""
    lie: Lie = lambda _asked, reply: reply
    """Changes an answer of a file."""
    listed: Callable[[dict[str, Any]], object] = lambda listing: None
    """Changes a listing."""
    to: str = ""
    """Another server that files are fetched from."""
    ranges: bool = True
    asked: list[Asked] = field(default_factory=list)
    pages: dict[str, Reply] = field(default_factory=dict)
    """Answers of other paths."""

    def add(self, repo: str, **files: bytes) -> None:
        """Has a repository; `_` in a name stands for `.`."""
        self.repos[repo] = {name.replace("__", "."): data for name, data in files.items()}

    def reply(self, asked: Asked) -> Reply:
        """The answer to a request."""
        self.asked.append(asked)
        path = unquote(urlsplit(asked.path).path)
        if path in self.pages:
            return self.pages[path]
        if self.token and asked.headers.get("authorization") != f"Bearer {self.token}":
            return Reply(401)
        if found := _LISTING.fullmatch(path):
            return self._listing(found["repo"], found["revision"])
        if (found := _FILE.fullmatch(path)) and found["file"] in self.repos.get(found["repo"], {}):
            if self.to:
                return Reply(302, {"Location": f"{self.to}{asked.path}?signature=secret"})
            data = self.repos[found["repo"]][found["file"]]
            return self.lie(asked, self._file(asked, data))
        return Reply(404)

    def files_asked(self) -> list[Asked]:
        """The requests of files."""
        return [it for it in self.asked if "/resolve/" in it.path]

    def _listing(self, repo: str, revision: str) -> Reply:
        if repo not in self.repos or revision not in ("main", "v1", COMMIT):
            return Reply(404)
        siblings = [
            {
                "rfilename": name,
                "size": len(data),
                "lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)},
            }
            for name, data in self.repos[repo].items()
        ]
        listing = {"id": repo, "sha": COMMIT, "siblings": siblings}
        self.listed(listing)
        return Reply(200, {"Content-Type": "application/json"}, json.dumps(listing).encode())

    def _file(self, asked: Asked, data: bytes) -> Reply:
        tag = f'"{hashlib.md5(data).hexdigest()}"'
        begin = asked.headers.get("range", "")
        same = asked.headers.get("if-range", tag) == tag
        if not (begin and self.ranges and same):
            return Reply(200, {"ETag": tag}, data)
        at = int(begin.removeprefix("bytes=").removesuffix("-"))
        if at >= len(data):
            return Reply(416)
        place = f"bytes {at}-{len(data) - 1}/{len(data)}"
        return Reply(206, {"ETag": tag, "Content-Range": place}, data[at:])


@contextmanager
def served(hub: FakeHub) -> Iterator[FakeHub]:
    """Has a hub listen until the end."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(self.path, headers)
            reply = hub.reply(asked)
            body = reply.body
            declared = len(body) if reply.declared_nbytes is None else reply.declared_nbytes
            if "/resolve/" in self.path and reply.status in (200, 206) and hub.cuts:
                body = body[: hub.cuts.pop(0)]
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(declared))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
