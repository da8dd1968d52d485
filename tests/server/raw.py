"""Bytes over a socket, as no HTTP library would send them."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

from tests.server.conftest import Serving


class Answer:
    """What came back: statuses of all answers, and the last one's body."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.status = int(data[9:12]) if data.startswith(b"HTTP/1.1 ") else 0
        self.head, _, self.body = data.partition(b"\r\n\r\n")

    def error(self) -> dict[str, Any]:
        """OpenAI's error; AssertionError for anything else."""
        told = json.loads(self.body)["error"]
        assert set(told) == {"message", "type", "param", "code"}
        return dict(told)


def exchange(serving: Serving, sent: bytes, seconds: float = 20) -> Answer:
    """Sends bytes and reads until the server closes, or has answered once."""
    host, _, port = serving.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), seconds) as made:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            made.sendall(sent)
        return Answer(_read(made))


def _read(made: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while not _is_whole(data) and (piece := made.recv(65536)):
            data += piece
    return data


def _is_whole(data: bytes) -> bool:
    head, found, body = data.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"content-length":
            return bool(found) and len(body) >= int(value)
    return False


def request(
    target: str | bytes,
    *heads: str | bytes,
    method: str = "GET",
    host: str | bytes | None = "localhost",
    key: str | None = None,
    body: bytes = b"",
    version: str = "HTTP/1.1",
) -> bytes:
    """A request's bytes, with nothing checked."""
    lines = [method.encode() + b" " + _bytes(target) + b" " + version.encode()]
    lines += [b"Host: " + _bytes(host)] if host is not None else []
    lines += [b"Authorization: Bearer " + key.encode()] if key is not None else []
    lines += [b"Content-Length: %d" % len(body)] if body else []
    lines += map(_bytes, heads)
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("latin-1")
