"""The whole HTTP application, and the server that runs it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
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
from isthmus.server.admission import OPEN
from isthmus.server.agents import Agents
from isthmus.server.completion import Completer
from isthmus.server.embeddings import Embeddings
from isthmus.server.endpoint import Endpoint, document
from isthmus.server.errors import HttpError
from isthmus.server.guard import Guard
from isthmus.server.keys import Keys
from isthmus.server.openai import OpenAi
from isthmus.server.quota import Quotas
from isthmus.server.replies import Health
from isthmus.server.settings import ServerSettings
from isthmus.server.shelf import Shelf
from isthmus.server.texts import Texts
from isthmus.server.transfer import Transfer


def create_app(runtime: Runtime, models: dict[str, Model], settings: ServerSettings) -> Starlette:
    """Everything that the server answers. `models` are those that requests may name."""
    keys = Keys(settings.keys) if settings.keys is not None else None
    shelf = Shelf(runtime, models, settings)
    quotas = Quotas(shelf.folder / "usage.json", concurrent=settings.concurrent)
    agents = Agents(shelf, settings)

    @contextlib.asynccontextmanager
    async def life(_app: Starlette) -> AsyncIterator[None]:
        completers = {name: Completer(runtime, model, settings) for name, model in models.items()}
        texts = Texts()
        openai = OpenAi(completers, settings, texts)
        app.router.routes.extend(openai.routes())
        app.router.routes.extend(Embeddings(runtime, models, settings, texts).routes())
        keeping = asyncio.ensure_future(quotas.keep())
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.to_thread(openai.close)
            await asyncio.to_thread(texts.close)
            await quotas.save()
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
        keyless = OPEN if settings.keys is not None else None
        return JSONResponse(document(app.router.routes, __version__, keyless))

    app = Starlette(
        routes=[
            Endpoint("GET", "/", page, gives=("text/html",)),
            Endpoint("GET", "/healthz", health, gives=(Health,)),
            Endpoint("GET", "/metrics", metrics, gives=("text/plain",)),
            Endpoint("GET", "/openapi.json", described, gives=(dict[str, Any],)),
            *Transfer(shelf, agents).routes(),
            *agents.routes(),
        ],
        lifespan=life,
        exception_handlers={404: _no_route, 405: _no_method},
    )
    app.router.redirect_slashes = False  # the address would be made of the Host header
    for kind in _HANDLED:
        app.add_exception_handler(kind, errors.handle)
    app.add_middleware(Guard, settings=settings, keys=keys, quotas=quotas)
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
    return await errors.handle(
        request, errors.not_found(f"there is nothing at {request.scope['path']}")
    )


async def _no_method(request: Request, _error: Exception) -> Response:
    said = f"{request.scope['path']} does not take {request.method}"
    return await errors.handle(request, HttpError(405, said))
