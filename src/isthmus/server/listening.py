"""Runs the application on a socket until it is told to stop."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.applications import Starlette

from isthmus.server.settings import ServerSettings

_GRACE_S = 30
"""For what is being answered when the server is told to stop; then it is cut off, which costs an
agent its unfinished message and nothing else."""


def serve(app: Starlette, settings: ServerSettings, ready: Callable[[str, int], None]) -> int:
    """Serves until SIGINT or SIGTERM; `ready` is told where, once it listens. An exit code."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_GRACE_S,
        limit_concurrency=settings.connections,
    )
    server = _Server(config, ready)
    server.run()
    return 0 if server.started else 1


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[str, int], None]) -> None:
        super().__init__(config)
        self._ready = ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's own, but that the signal does not end the process afterwards: agents and
        models are closed by whoever opened them."""
        stopping = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in stopping}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self._ready(host, port)
