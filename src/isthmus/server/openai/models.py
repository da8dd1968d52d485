"""`/v1/models`: what requests may name."""

from __future__ import annotations

import time

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from isthmus.server.generation.writer import Writer, chosen
from isthmus.server.http.endpoint import Endpoint
from isthmus.server.openai.replies import ModelCard, ModelList


class Models:
    """The routes, over the server's models."""

    def __init__(self, writer: Writer) -> None:
        self._completers = writer.completers
        self._created = int(time.time())

    def routes(self) -> list[Endpoint]:
        """For Starlette."""
        return [
            Endpoint("GET", "/v1/models", self.models, gives=(ModelList,)),
            Endpoint("GET", "/v1/models/{model:path}", self.model, gives=(ModelCard,)),
        ]

    async def models(self, _request: HttpRequest) -> Response:
        """The models that requests may name."""
        cards = [self._card(it) for it in self._completers]
        listed: ModelList = {"object": "list", "data": cards}
        return JSONResponse(listed)

    async def model(self, request: HttpRequest) -> Response:
        """A model that requests may name."""
        chosen(self._completers, request.path_params["model"])
        return JSONResponse(self._card(request.path_params["model"]))

    def _card(self, name: str) -> ModelCard:
        completer = self._completers[name]
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "isthmus",
            "n_ctx": completer.n_ctx,
            "makes_text": completer.model.generates,
            "n_embd": completer.model.hparams.n_embd if completer.model.embeds else None,
        }
