"""`/v1/models`: what requests may name, and whether it is in memory.

`/models`, `/models/load` and `/models/unload` are the same for clients of llama.cpp's router.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Literal

import msgspec
from msgspec import Struct
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from isthmus.server.http.endpoint import Endpoint, written
from isthmus.server.http.events import EVENTS, event, respond, unless_left
from isthmus.server.http.strict import read_strictly
from isthmus.server.models.card import Card
from isthmus.server.models.files import MANY
from isthmus.server.models.models import Models
from isthmus.server.models.pulls import Pulling, Pulls
from isthmus.server.models.resident import Resident, State
from isthmus.server.models.rights import require_manager
from isthmus.server.openai.replies import (
    ModelCard,
    ModelChanged,
    ModelList,
    ModelStatus,
)


class NamedModel(Struct, kw_only=True):
    """A model by its name."""

    model: str


class PullRequest(NamedModel, kw_only=True):
    """`/v1/models/pull`."""

    stream: bool = False


_VALUES: dict[State, Literal["loaded", "loading"]] = {
    State.LOADED: "loaded",
    State.LOADING: "loading",
}
_named = msgspec.json.Decoder(NamedModel)
_pull = msgspec.json.Decoder(PullRequest)


class ListedModels:
    """The routes, over the server's models."""

    def __init__(self, models: Models, pulls: Pulls) -> None:
        self._models = models
        self._pulls = pulls
        self._created = int(time.time())

    def routes(self) -> list[Endpoint]:
        """For Starlette."""
        named, changed, pulled = NamedModel, (ModelChanged,), (Pulling, EVENTS)
        load, unload = self.load, self.unload
        return [
            Endpoint("GET", "/v1/models", self.models, gives=(ModelList,)),
            Endpoint("POST", "/v1/models/load", load, takes=named, gives=changed),
            Endpoint("POST", "/v1/models/unload", unload, takes=named, gives=changed),
            Endpoint("POST", "/v1/models/pull", self.pull, takes=PullRequest, gives=pulled),
            Endpoint("GET", "/v1/models/{model:path}", self.model, gives=(ModelCard,)),
            Endpoint("GET", "/models", self.router_models, gives=(ModelList,)),
            Endpoint("POST", "/models/load", self.router_load, takes=named, gives=changed),
            Endpoint("POST", "/models/unload", self.router_unload, takes=named, gives=changed),
        ]

    async def models(self, _request: HttpRequest) -> Response:
        """The models that requests may name."""
        found = await self._models.files.cards()
        failed = [it for it in self._models.files.all() if it.card is None]

        def listed() -> ModelList:
            cards = [self._card(name, it, card) for it, card in found for name in it.source.names]
            return {"object": "list", "data": [*cards, *map(self._failed, failed)]}

        return await written(listed, is_long=len(found) + len(failed) > MANY)

    async def model(self, request: HttpRequest) -> Response:
        """A model that requests may name."""
        return JSONResponse(await self._told(request.path_params["model"]))

    async def load(self, request: HttpRequest) -> Response:
        """Loads a model; answers once it is in memory."""
        asked = await read_strictly(request, _named)
        require_manager()
        await self._models.use(asked.model, request)
        return JSONResponse(self._changed(self._models.files.known(asked.model)))

    async def unload(self, request: HttpRequest) -> Response:
        """Has a model leave, as soon as nobody uses it."""
        asked = await read_strictly(request, _named)
        require_manager()
        return JSONResponse(self._changed(await self._models.unload(asked.model)))

    async def pull(self, request: HttpRequest) -> Response:
        """Fetches a model by a name that `isthmus pull` takes, and tells how far that is."""
        asked = await read_strictly(request, _pull)
        require_manager()
        if asked.stream:
            return await respond(request, self._pulling(asked.model))
        return JSONResponse(await unless_left(request, self._pulled(asked.model)))

    async def router_models(self, request: HttpRequest) -> Response:
        """The models that requests may name, as llama.cpp's router has them."""
        return await self.models(request)

    async def router_load(self, request: HttpRequest) -> Response:
        """Loads a model, as llama.cpp's router does."""
        return await self.load(request)

    async def router_unload(self, request: HttpRequest) -> Response:
        """Has a model leave, as llama.cpp's router does."""
        return await self.unload(request)

    async def _pulling(self, name: str) -> AsyncIterator[bytes]:
        async for word in self._pulls.follow(name):
            yield event(word)

    async def _pulled(self, name: str) -> Pulling:
        last: Pulling = {}
        async for word in self._pulls.follow(name):
            last = word
        return last

    async def _told(self, name: str) -> ModelCard:
        """The card of a model. HttpError 404, 500."""
        resident = self._models.files.known(name)
        return self._card(name, resident, await self._models.files.card(resident))

    def _changed(self, resident: Resident) -> ModelChanged:
        return {"success": True, "model": resident.name, "status": status_of(resident)}

    def _card(self, name: str, resident: Resident, card: Card) -> ModelCard:
        aliases = self._models.files.aliases
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "isthmus",
            "n_ctx": resident.n_ctx,
            "makes_text": card.generates,
            "n_embd": card.hparams.n_embd if card.embeds else None,
            "media": list(card.media),
            "status": status_of(resident),
            "nbytes": resident.nbytes,
            "aliases": [alias for alias, model in aliases.items() if model == name],
        }

    def _failed(self, resident: Resident) -> ModelCard:
        """The card of a file that cannot be read."""
        return {
            "id": resident.name,
            "object": "model",
            "created": self._created,
            "owned_by": "isthmus",
            "n_ctx": 0,
            "makes_text": False,
            "n_embd": None,
            "media": [],
            "status": status_of(resident),
            "nbytes": 0,
            "aliases": [],
        }


def status_of(resident: Resident) -> ModelStatus:
    """Whether a model is in memory, as llama.cpp's router says it."""
    status: ModelStatus = {"value": _VALUES.get(resident.state, "unloaded")}
    if resident.error is None:
        return status
    return {**status, "failed": True, "error": resident.error}
