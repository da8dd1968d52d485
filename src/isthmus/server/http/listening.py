"""Runs the application on a socket until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import cast

import anyio.lowlevel
import uvicorn
from starlette.applications import Starlette

from isthmus.errors import SettingsError
from isthmus.server.http.connection import Connection
from isthmus.server.http.log import tell
from isthmus.server.http.origins import Origins
from isthmus.server.settings import ServerSettings

_log = logging.getLogger("isthmus.server")
_GRACE_S = 8
"""Seconds for what is being answered when the server is told to stop. Then it is cut off, which
costs an agent its unfinished message and nothing else. Supervisors that kill what does not stop
wait for 10 seconds or more."""
_DRAIN_STEP_S = 0.1
_OTHER_FILES = 512
"""Descriptors for all that is no connection: libraries, models, agents' memory, packs."""


def serve(app: Starlette, settings: ServerSettings, ready: Callable[[str, int], None]) -> int:
    """Serves until SIGINT or SIGTERM; `ready` is told where, once it listens. An exit code.

    SettingsError where it cannot listen there.
    """
    raise_open_files(settings.connections)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=cast(
            "type[asyncio.Protocol]", partial(Connection, settings, Origins(settings.origins))
        ),
        proxy_headers=bool(settings.proxies),
        forwarded_allow_ips=list(settings.proxies),
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_GRACE_S,
        timeout_keep_alive=cast("int", settings.idle_s),  # any number will do
    )
    server = _Server(config, app, settings.drain_s, ready)
    uvicorn_log = logging.getLogger("uvicorn.error")
    uvicorn_log.addFilter(_is_said_once)
    try:
        server.run()
    finally:
        uvicorn_log.removeFilter(_is_said_once)
        gc.unfreeze()
    tell("stopped", "stopped")
    return 0 if server.started else 1


def raise_open_files(connections: int) -> int:
    """Lets this process open as many files as it may; says where that is too few. The number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_FILES
    most = wanted if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(ValueError, OSError):  # macOS has a limit that it does not tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    if soft != resource.RLIM_INFINITY and soft < wanted:
        _log.warning(
            "this process may open %d files, and %d connections need %d: raise the limit "
            "(ulimit -Hn, LimitNOFILE= of systemd), or lower the setting connections",
            soft, connections, wanted,
        )  # fmt: skip
    return soft


def is_stopping(app: Starlette) -> bool:
    """Whether the server of an application was told to stop."""
    return getattr(app.state, "is_stopping", False)


def _is_said_once(record: logging.LogRecord) -> bool:
    """False for uvicorn's line about an address in use, which SettingsError tells."""
    return not isinstance(record.msg, OSError)


class _Server(uvicorn.Server):
    def __init__(
        self,
        config: uvicorn.Config,
        app: Starlette,
        drain_s: float,
        ready: Callable[[str, int], None],
    ) -> None:
        super().__init__(config)
        self._app = app
        self._drain_s = drain_s
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
        try:
            await super().startup(sockets=sockets)
        except SystemExit as end:  # uvicorn's way to say that it cannot listen
            where = f"{self.config.host}:{self.config.port}"
            raise SettingsError(
                f"cannot listen on {where} ({end.__context__}): another program may do so already; "
                "choose another --port, or 0 for any that is free"
            ) from None
        if self.started:
            await anyio.lowlevel.checkpoint()  # it imports its half of asyncio's when first used
            gc.collect()
            gc.freeze()  # a full collection would stop every thread to look at all that stays
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            if (listening := getattr(self._app.state, "listening", None)) is not None:
                await listening(host, port)
            self._ready(host, port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.state.is_stopping = True
        tell("stopping", f"stopping, within {_GRACE_S} seconds", grace_s=_GRACE_S)
        await self._drain()
        if (draining := getattr(self._app.state, "draining", None)) is not None:
            await draining()
        await super().shutdown(sockets=sockets)

    async def _drain(self) -> None:
        """Goes on to answer, so that balancers see by /readyz that no more should come here; a
        second signal ends it."""
        end = time.monotonic() + self._drain_s
        while time.monotonic() < end and not self.force_exit:
            await asyncio.sleep(min(_DRAIN_STEP_S, self._drain_s))
