"""An HTTP server in front of a bucket, which passes requests on as it is told to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

_NOT_SENT = {"host", "connection", "transfer-encoding"}
_NOT_TOLD = {"connection", "transfer-encoding", "date", "server", "content-encoding"}


def refusal(status: int, code: str) -> tuple[int, bytes]:
    """What S3 says when it does not do something."""
    return status, f"<Error><Code>{code}</Code><Message>of a test</Message></Error>".encode()


class Front:
    """See the module. Requests pass unless `rule` has another answer; by method, path and query."""

    def __init__(self, port: int) -> None:
        self.rule: Callable[[str, str], tuple[int, bytes] | None] = lambda _method, _path: None
        self.is_stale = False
        """Whether what was read or listed once is shown for ever."""
        self.delay_s = 0.0
        self.size: int | None = None
        """Bytes that each object is said to have, in answers that have a part of it."""
        self.asked: list[tuple[str, str]] = []
        self._shown: dict[str, httpx.Response] = {}
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        front = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def __getattr__(self, name: str) -> Any:
                if name.startswith("do_"):
                    return lambda: front._answer(self)
                raise AttributeError(name)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._client.close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        method, path = handler.command, handler.path
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        self.asked.append((method, path))
        time.sleep(self.delay_s)
        refused = self.rule(method, path)
        if refused is not None:
            handler.send_response(refused[0])
            handler.send_header("Content-Length", str(len(refused[1])))
            handler.send_header("ETag", '"of a test"')
            handler.end_headers()
            handler.wfile.write(refused[1])
            return
        answer = self._passed_on(method, path, body, handler)
        handler.send_response(answer.status_code)
        headers = {**answer.headers}
        if self.size is not None and (part := headers.get("content-range")):
            headers["content-range"] = f"{part.partition('/')[0]}/{self.size}"
        for name, value in headers.items():
            if name.lower() not in _NOT_TOLD | {"content-length"}:
                handler.send_header(name, value)
        length = answer.headers.get("content-length", "0") if method == "HEAD" else None
        handler.send_header("Content-Length", length or str(len(answer.content)))
        handler.end_headers()
        if method != "HEAD":
            handler.wfile.write(answer.content)

    def _passed_on(
        self, method: str, path: str, body: bytes, handler: BaseHTTPRequestHandler
    ) -> httpx.Response:
        if self.is_stale and method == "GET" and path in self._shown:
            return self._shown[path]
        headers = [(k, v) for k, v in handler.headers.items() if k.lower() not in _NOT_SENT]
        answer = self._client.request(method, path, headers=headers, content=body)
        if method == "GET" and answer.status_code < 300:
            self._shown.setdefault(path, answer)
        return answer
