"""`/v1/models` for clients of both APIs: in Anthropic's shape for those that send
`anthropic-version`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Annotated

from msgspec import Meta, Struct
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from isthmus.server.anthropic.errors import speaks_anthropic
from isthmus.server.anthropic.replies import MessagesErrorReply, ModelInfo, ModelPage
from isthmus.server.http.endpoint import Endpoint, read_query
from isthmus.server.http.errors import ErrorReply, not_found
from isthmus.server.models.models import Models
from isthmus.server.models.pulls import Pulls
from isthmus.server.openai import models
from isthmus.server.openai.replies import ModelCard, ModelList


class PageQuery(Struct):
    """Which models are listed, for clients of Anthropic's API."""

    limit: Annotated[int, Meta(ge=1, le=1000)] = 20
    after_id: str | None = None
    before_id: str | None = None


class _Endpoint(Endpoint):
    fails = (ErrorReply, MessagesErrorReply)


class ListedModels(models.ListedModels):
    """The routes, over the server's models."""

    def __init__(self, models: Models, pulls: Pulls) -> None:
        super().__init__(models, pulls)
        self._began = datetime.now(timezone.utc).isoformat(timespec="seconds")

    def routes(self) -> list[Endpoint]:
        """For Starlette."""
        path, listed, one = "/v1/models", (ModelList, ModelPage), (ModelCard, ModelInfo)
        both = [
            _Endpoint("GET", path, self.models, query=PageQuery, gives=listed),
            _Endpoint("GET", path + "/{model:path}", self.model, gives=one),
        ]
        told = [it.path for it in both]
        return [*(it for it in super().routes() if it.path not in told), *both]

    async def models(self, request: HttpRequest) -> Response:
        """The models that requests may name."""
        query = read_query(request, PageQuery)
        if not speaks_anthropic(request.scope):
            return await super().models(request)
        found = await self._models.files.cards()
        n_ctx = {name: it.n_ctx for it, _ in found for name in it.source.names}
        shown, has_more = page_of(list(n_ctx), query)
        page: ModelPage = {
            "data": [self._info(name, n_ctx[name]) for name in shown],
            "has_more": has_more,
            "first_id": shown[0] if shown else None,
            "last_id": shown[-1] if shown else None,
        }
        return JSONResponse(page)

    async def model(self, request: HttpRequest) -> Response:
        """A model that requests may name."""
        if not speaks_anthropic(request.scope):
            return await super().model(request)
        name = request.path_params["model"]
        resident = self._models.files.known(name)
        await self._models.files.card(resident)
        return JSONResponse(self._info(name, resident.n_ctx))

    def _info(self, name: str, n_ctx: int) -> ModelInfo:
        return {
            "type": "model",
            "id": name,
            "display_name": name,
            "created_at": self._began,
            "lifecycle": "active",
            "max_input_tokens": n_ctx,
            "max_tokens": n_ctx,
        }


def page_of(names: Sequence[str], query: PageQuery) -> tuple[Sequence[str], bool]:
    """The names that a query asks for, and whether there are more in its direction.

    HttpError 404 for a query that begins at a name which is not there.
    """
    for name in (query.after_id, query.before_id):
        if name is not None and name not in names:
            raise not_found(f"there is no model {name!r}")
    if query.before_id is not None:
        before = names[: names.index(query.before_id)]
        return before[-query.limit :], len(before) > query.limit
    after = names if query.after_id is None else names[names.index(query.after_id) + 1 :]
    return after[: query.limit], len(after) > query.limit
