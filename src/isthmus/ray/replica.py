"""One replica of the Serve application: a server with its models and many agents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from isthmus.ray.routing import HOME
from isthmus.ray.server_process import ServerProcess

_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "expect"}
"""Headers that are about one connection."""
_LEFT_OUT = {*_HOP, HOME.decode()}
_BODIED = ("POST", "PUT", "PATCH", "DELETE")


class Replica:
    """See the module. Ray Serve makes one, asks it for answers, and deletes it at the end."""

    def __init__(self, settings: Mapping[str, Any], folder: str | None = None) -> None:
        self._server = ServerProcess({**settings, "host": _listens_at(settings)}, folder)
        self._session: Any = None
        self._name = _own_name()

    async def __call__(self, request: Request) -> Response:
        """The server's answer, as it comes. If the caller leaves, Serve cancels this, and the
        connection to the server ends."""
        import aiohttp  # noqa: PLC0415 - comes with Ray Serve
        from yarl import URL  # noqa: PLC0415

        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=10),
                auto_decompress=False,
            )
        scope = request.scope
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        target = (scope.get("raw_path") or scope["path"].encode()).partition(b"?")[0] + query
        headers = [(k, v) for k, v in request.headers.items() if k not in _LEFT_OUT]
        if request.headers.get(HOME.decode()) == self._name:
            headers.append((HOME.decode(), "1"))
        try:
            answer = await self._session.request(
                request.method,
                URL(self._server.url + target.decode("latin-1"), encoded=True),
                headers=headers,
                data=request.stream() if request.method in _BODIED else None,
                allow_redirects=False,
                skip_auto_headers=("User-Agent", "Content-Type", "Accept", "Accept-Encoding"),
            )
        except (aiohttp.ClientError, asyncio.TimeoutError):
            return _gone()
        response = StreamingResponse(_pieces(answer), answer.status)
        response.raw_headers = [
            (name, value) for name, value in answer.raw_headers if name.decode().lower() not in _HOP
        ]
        return response

    def check_health(self) -> None:
        """Raises RuntimeError if the server has ended: then Serve begins another replica."""
        if not self._server.lives:
            raise RuntimeError("the replica's server has ended")

    def server_pid(self) -> int:
        """The server's process, for whoever looks at it."""
        return self._server.pid

    def __del__(self) -> None:
        """Serve calls this, and waits, once nothing is being answered: the agents are released."""
        if self._session is not None:
            self._session.detach()
        self._server.stop()


async def _pieces(answer: Any) -> AsyncIterator[bytes]:
    """The body of an answer. If it breaks off, the client's breaks off too."""
    async with answer:
        async for piece in answer.content.iter_any():
            yield piece


def _gone() -> Response:
    said = {
        "message": "the replica's server ends or begins: ask what position the agent is at, and "
        "send the message again if it is not there",
        "type": "server_error",
        "param": None,
        "code": "owner_lost",
    }
    return JSONResponse({"error": said}, 502, {"Retry-After": "1"})


def _own_name() -> str:
    """This replica, as routers call it."""
    from ray import serve  # noqa: PLC0415

    return str(serve.get_replica_context().replica_id.unique_id)


def _listens_at(settings: Mapping[str, Any]) -> str:
    """This node's address, if the application may be reached from others."""
    import ray  # noqa: PLC0415

    host = str(settings.get("host", "127.0.0.1"))
    return host if host in ("127.0.0.1", "localhost", "::1") else ray.util.get_node_ip_address()
