"""The whole HTTP application, and the server that runs it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from importlib import resources
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from isthmus import __version__
from isthmus.errors import IsthmusError
from isthmus.model import Model
from isthmus.runtime import Runtime
from isthmus.server import errors
from isthmus.server.agents import Agents
from isthmus.server.completion import Completer
from isthmus.server.endpoint import Endpoint, document
from isthmus.server.errors import HttpError, body_of
from isthmus.server.keys import Keys
from isthmus.server.openai import OpenAi
from isthmus.server.replies import Health
from isthmus.server.settings import ServerSettings
from isthmus.server.shelf import Shelf

_log = logging.getLogger("isthmus.server")
_Scope = MutableMapping[str, Any]
_OPEN = ("/healthz", "/", "/openapi.json")
_BODY_S = 30.0
"""For each piece of a body."""


def create_app(runtime: Runtime, models: dict[str, Model], settings: ServerSettings) -> Starlette:
    """Everything that the server answers. `models` are those that requests may name."""
    shelf = Shelf(runtime, models, settings)
    agents = Agents(shelf, settings)

    @contextlib.asynccontextmanager
    async def life(_app: Starlette) -> AsyncIterator[None]:
        completers = {name: Completer(runtime, model, settings) for name, model in models.items()}
        app.router.routes.extend(OpenAi(completers, settings).routes())
        try:
            yield
        finally:
            await shelf.close()

    async def page(_request: Request) -> Response:
        """A page to look at."""
        file = resources.files("isthmus.server") / "page.html"
        return HTMLResponse(file.read_text(encoding="utf-8"), headers=_PAGE_HEADERS)

    async def metrics(_request: Request) -> Response:
        """Counters, gauges and histograms for Prometheus."""
        return PlainTextResponse(runtime.metrics(), media_type="text/plain; version=0.0.4")

    async def health(_request: Request) -> Response:
        """That the server answers."""
        said: Health = {"status": "ok", "models": list(models)}
        return JSONResponse(said)

    async def described(_request: Request) -> Response:
        """This document."""
        keyless = _OPEN if settings.keys is not None else None
        return JSONResponse(document(app.router.routes, __version__, keyless))

    app = Starlette(
        routes=[
            Endpoint("GET", "/", page, gives=("text/html",)),
            Endpoint("GET", "/healthz", health, gives=(Health,)),
            Endpoint("GET", "/metrics", metrics, gives=("text/plain",)),
            Endpoint("GET", "/openapi.json", described, gives=(dict[str, Any],)),
            *agents.routes(),
        ],
        lifespan=life,
        exception_handlers={
            Exception: errors.handle,
            404: _no_route,
            405: _no_method,
        },
    )
    for kind in _HANDLED:
        app.add_exception_handler(kind, errors.handle)
    app.add_middleware(_Guard, settings=settings)
    return app


_HANDLED = (HttpError, IsthmusError, msgspec.DecodeError, ClientDisconnect)
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; connect-src 'self'; img-src data:; form-action 'none'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


async def _no_route(request: Request, _error: Exception) -> Response:
    return await errors.handle(request, errors.not_found(f"there is nothing at {request.url.path}"))


async def _no_method(request: Request, _error: Exception) -> Response:
    said = f"{request.url.path} does not take {request.method}"
    return await errors.handle(request, HttpError(405, said))


class _Guard:
    """Who may ask, how much they may send, and one line of log for each request.

    A browser's page from elsewhere may not: it could reach a server on the user's own machine. So
    the Host must be ours where no keys are, and an Origin must be the Host.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], settings: ServerSettings) -> None:
        self._app = app
        self._settings = settings
        self._keys = Keys(settings.keys) if settings.keys is not None else None

    async def __call__(self, scope: _Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), 0

        async def told(message: _Scope) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            who = self._admit(Request(scope))
            await self._app(scope, _Bounded(receive, self._settings.body_nbytes), told)
        except HttpError as error:
            who = "-"
            code, body = body_of(error)
            headers = {"WWW-Authenticate": "Bearer"} if code == 401 else None
            await JSONResponse(body, code, headers=headers)(scope, receive, told)
        finally:
            seconds = time.monotonic() - start
            _log.info("%s %s %d %.3fs %s", scope["method"], scope["path"], status, seconds, who)

    def _admit(self, request: Request) -> str:
        origin, host = request.headers.get("origin"), request.headers.get("host", "")
        if origin is not None and origin.partition("://")[2] != host:
            raise HttpError(403, "pages of other sites may not use this server")
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._settings.body_nbytes:
            raise HttpError(413, f"a body may have {self._settings.body_nbytes} bytes")
        if self._keys is None:
            name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
            if name.strip("[]") not in ("localhost", "127.0.0.1", "::1", self._settings.host):
                raise HttpError(403, f"this server is not {name}")
            return "-"
        if request.url.path in _OPEN:
            return "-"
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        found = self._keys.name_of(key.strip()) if kind.lower() == "bearer" else None
        if found is None:
            raise HttpError(401, "give an API key of this server", code="invalid_api_key")
        return found


class _Bounded:
    """A body that is longer than it may be ends the request, whatever length it claims, and so does
    one that does not come."""

    def __init__(self, receive: Callable[[], Awaitable[_Scope]], most: int) -> None:
        self._receive = receive
        self._most = self._left = most
        self._complete = False

    async def __call__(self) -> _Scope:
        try:
            patience = None if self._complete else _BODY_S
            message = await asyncio.wait_for(self._receive(), patience)
        except asyncio.TimeoutError:
            raise HttpError(408, f"the body did not come within {_BODY_S} seconds") from None
        self._complete = not message.get("more_body", False)
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise HttpError(413, f"a body may have {self._most} bytes")
        return message
