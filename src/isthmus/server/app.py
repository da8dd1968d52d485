"""The whole HTTP application, and the server that runs it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypedDict

import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Match, Route

from isthmus.errors import IsthmusError
from isthmus.server.agents.answers import Answers
from isthmus.server.agents.guest_logs import GuestLogs
from isthmus.server.agents.held import hand_over
from isthmus.server.agents.looking import Looking
from isthmus.server.agents.routes import Agents
from isthmus.server.agents.shelf import Shelf
from isthmus.server.agents.tools import AgentTools
from isthmus.server.agents.transfer import Transfer
from isthmus.server.anthropic import errors as anthropic_errors
from isthmus.server.anthropic.messages import Messages
from isthmus.server.anthropic.models import ListedModels
from isthmus.server.cluster import listing
from isthmus.server.cluster.placing import Placing, advertise
from isthmus.server.generation.embedders import Embedders
from isthmus.server.generation.writer import Writer
from isthmus.server.http import errors
from isthmus.server.http.endpoint import Endpoint, document, written
from isthmus.server.http.entry import Shape
from isthmus.server.http.errors import HttpError
from isthmus.server.http.listening import is_stopping
from isthmus.server.http.measures import Measures
from isthmus.server.http.texts import Texts
from isthmus.server.keys.admission import is_open
from isthmus.server.keys.guard import Guard
from isthmus.server.keys.keys import Keys
from isthmus.server.keys.quota import Quotas
from isthmus.server.llamacpp import errors as llamacpp_errors
from isthmus.server.llamacpp.rerank import Reranking
from isthmus.server.llamacpp.routes import LlamaCpp
from isthmus.server.models.models import Models
from isthmus.server.models.pulls import Pulls
from isthmus.server.ollama import errors as ollama_errors
from isthmus.server.ollama.routes import Ollama
from isthmus.server.openai.chat import Chat
from isthmus.server.openai.completions import Completions
from isthmus.server.openai.embeddings import Embeddings
from isthmus.server.page import page
from isthmus.server.responses.room import open_responses
from isthmus.server.settings import ServerSettings
from isthmus.server.traces import measures_of
from isthmus.spelling import suggestion
from isthmus.tools.spec import Toolbox
from isthmus.version import VERSION


class Readiness(TypedDict):
    """Whether the server takes requests."""

    status: Literal["ready", "stopping"]


class Health(TypedDict):
    """That the server answers."""

    status: Literal["ok"]
    models: list[str]


def create_app(
    models: Models, settings: ServerSettings, toolbox: Toolbox | None = None
) -> Starlette:
    """Everything that the server answers. `models` are those that requests may name, `toolbox` has
    those tools that agents may be given."""
    keys = Keys(settings.keys) if settings.keys is not None else None
    shelf = Shelf(models, settings, AgentTools(toolbox))
    quotas = Quotas(shelf.folder / "usage.json", concurrent=settings.concurrent)
    answers = Answers(shelf, settings, keys, quotas.charge)
    agents = Agents(shelf, answers, settings)
    logs = GuestLogs()
    measures = measures_of(models.runtime.registry, models.runtime.device.name, settings.traces)
    served = _Served(models, settings, shelf, quotas, answers, logs, measures)
    app = Starlette(
        routes=[
            *page.routes(),
            *[*_about(models, settings), *listing.routes(shelf)],
            *Transfer(shelf, agents).routes(),
            *agents.routes(),
            *Looking(shelf, agents, logs).routes(),
        ],
        lifespan=served.life,
        exception_handlers={404: _no_route, 405: _no_method},
    )
    app.router.redirect_slashes = False  # the address would be made of the Host header
    for kind in _HANDLED:
        app.add_exception_handler(kind, errors.handle)
    app.state.listening = partial(advertise, shelf.owning, settings)
    app.add_middleware(Placing, shelf.owning, settings, partial(hand_over, shelf))
    sharing = shelf.owning.sharing
    app.add_middleware(
        Guard,
        settings=settings,
        keys=keys,
        quotas=quotas,
        measures=measures,
        shape_of=_shape_of,
        token=None if sharing is None else sharing.token,
    )
    return app


@dataclass(frozen=True)
class _Served:
    """What is there from the server's start to its end."""

    models: Models
    settings: ServerSettings
    shelf: Shelf
    quotas: Quotas
    answers: Answers
    logs: GuestLogs
    measures: Measures

    @contextlib.asynccontextmanager
    async def life(self, app: Starlette) -> AsyncIterator[None]:
        """Adds the routes that need models, and closes what they use at the end."""
        models, settings, texts = self.models, self.settings, Texts()
        writer = Writer(models, settings, texts)
        embedders = Embedders(models, settings, texts)
        pulls = Pulls(models)
        for api in (Chat, Completions, Messages):
            app.router.routes.extend(api(writer).routes())
        for embedding in (Embeddings, Reranking):
            app.router.routes.extend(embedding(embedders).routes())
        app.router.routes.extend(ListedModels(models, pulls).routes())
        app.router.routes.extend(Ollama(writer, embedders, pulls).routes())
        app.router.routes.extend(LlamaCpp(writer, settings).routes())
        responses = open_responses(writer, self.shelf, settings, self.quotas.charge)
        app.router.routes.extend(responses.routes())
        kept = (self.quotas.keep(), responses.keep(), models.keep(), self.answers.keep())
        keeping = [asyncio.ensure_future(it) for it in kept]
        app.state.draining = self.answers.drain
        self.logs.open()
        try:
            yield
        finally:
            self.logs.close()
            for task in keeping:
                task.cancel()
            await self.answers.close()
            await responses.close()
            await pulls.close()
            await asyncio.to_thread(writer.close)
            await asyncio.to_thread(texts.close)
            await self.quotas.save()
            await self.shelf.close()
            await models.close()
            await asyncio.to_thread(self.measures.close)


def _about(models: Models, settings: ServerSettings) -> list[Endpoint]:
    """Routes about the server itself."""

    async def health(_request: Request) -> Response:
        """That the server answers."""
        said: Health = {"status": "ok", "models": models.files.names()}
        return JSONResponse(said)

    async def readiness(request: Request) -> Response:
        """Whether requests should come: 503 once the server was told to stop."""
        stopping = is_stopping(request.app)
        said: Readiness = {"status": "stopping" if stopping else "ready"}
        return JSONResponse(said, status_code=503 if stopping else 200)

    async def metrics(_request: Request) -> Response:
        """Counters, gauges and histograms for Prometheus."""
        return PlainTextResponse(models.runtime.metrics(), media_type="text/plain; version=0.0.4")

    async def described(request: Request) -> Response:
        """This document."""
        keyless = is_open if settings.keys is not None else None
        routes = request.app.router.routes
        return await written(lambda: document(routes, VERSION, keyless), is_long=True)

    return [
        Endpoint("GET", "/healthz", health, gives=(Health,)),
        Endpoint("GET", "/readyz", readiness, gives=(Readiness,)),
        Endpoint("GET", "/metrics", metrics, gives=("text/plain",)),
        Endpoint("GET", "/openapi.json", described, gives=(dict[str, Any],)),
    ]


def _shape_of(scope: MutableMapping[str, Any]) -> Shape | None:
    """How errors of a request are told: as the API tells them that it asks; None for OpenAI's."""
    apis = (anthropic_errors, ollama_errors, llamacpp_errors)
    return next((it for api in apis if (it := api.shape_of(scope)) is not None), None)


_HANDLED = (HttpError, IsthmusError, msgspec.DecodeError, ClientDisconnect)


async def _no_route(request: Request, _error: Exception) -> Response:
    path = request.scope["path"]
    known = [it.path for it in request.app.routes if isinstance(it, Route)]
    meant = suggestion(path, (it for it in known if "{" not in it))
    return await errors.handle(request, errors.not_found(f"there is nothing at {path}{meant}"))


async def _no_method(request: Request, _error: Exception) -> Response:
    routes = (it for it in request.app.routes if isinstance(it, Route))
    found = (it.methods or () for it in routes if it.matches(request.scope)[0] is not Match.NONE)
    allowed = ", ".join(sorted({method for methods in found for method in methods}))
    said = f"{request.scope['path']} does not take {request.method}; it takes {allowed}"
    response = await errors.handle(request, HttpError(405, said))
    response.headers["Allow"] = allowed
    return response
