"""`/v1/responses`: answers that are kept, and can be gone on from."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from types import MappingProxyType

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from isthmus.server.generation.writer import Writer
from isthmus.server.http.endpoint import Endpoint, as_json, read_query
from isthmus.server.http.entry import current
from isthmus.server.http.errors import HttpError, body_of, note
from isthmus.server.http.events import EVENTS, event, respond, unless_left
from isthmus.server.responses.archive import Archive
from isthmus.server.responses.chain import Stored
from isthmus.server.responses.creating import Creating, Order
from isthmus.server.responses.fields import FIELDS
from isthmus.server.responses.jobs import Job
from isthmus.server.responses.making import Event, Made, whole
from isthmus.server.responses.pages import page_of
from isthmus.server.responses.replies import (
    DeletedResponse,
    InputTokens,
    ItemList,
    ModelResponse,
)
from isthmus.server.responses.requests import (
    CountRequest,
    Page,
    ResponseRequest,
    Retrieval,
    read,
)

_INTERRUPTED = "the server ended while this response was made; ask again"


class _Endpoint(Endpoint):
    tables = MappingProxyType({ResponseRequest: FIELDS, CountRequest: FIELDS})


class Responses:
    """The routes."""

    def __init__(self, writer: Writer, archive: Archive, creating: Creating) -> None:
        self._writer = writer
        self._archive = archive
        self._creating = creating
        self._jobs = creating.jobs

    def routes(self) -> list[Endpoint]:
        """For Starlette."""
        all_, one, gives = "/v1/responses", "/v1/responses/{id}", (ModelResponse, EVENTS)
        count, counted = f"{all_}/input_tokens", (InputTokens,)
        items = f"{one}/input_items"
        return [
            _Endpoint("POST", all_, self.create, takes=ResponseRequest, gives=gives),
            _Endpoint("POST", count, self.count, takes=CountRequest, gives=counted),
            Endpoint("GET", one, self.get, query=Retrieval, gives=gives),
            Endpoint("DELETE", one, self.delete, gives=(DeletedResponse,)),
            Endpoint("POST", f"{one}/cancel", self.cancel, gives=(ModelResponse,)),
            Endpoint("GET", items, self.input_items, query=Page, gives=(ItemList,)),
        ]

    async def create(self, http: HttpRequest) -> Response:
        """An answer to items, which is kept unless the request says otherwise."""
        asked = await read(http, ResponseRequest, most=self._writer.most_nbytes)
        order = await self._creating.order(http, asked)
        if asked.background:
            job = await self._creating.start(order)
            if asked.stream:
                return await respond(http, job.follow())
            return as_json(job.made.response)
        made = Made()
        if asked.stream:
            return await respond(http, _streamed(made, self._creating.events(order, made)))
        return as_json(await unless_left(http, self._whole(order, made)))

    async def _whole(self, order: Order, made: Made) -> ModelResponse:
        async with aclosing(self._creating.events(order, made)) as events:
            return await whole(events)

    async def count(self, http: HttpRequest) -> Response:
        """How many tokens a prompt would have."""
        asked = await read(http, CountRequest, most=self._writer.most_nbytes)
        _, _, plan = await self._creating.planned(asked)
        n_tokens = await self._writer.count(http, asked.model, plan.wanted)
        counted: InputTokens = {"object": "response.input_tokens", "input_tokens": n_tokens}
        return as_json(counted)

    # ------------------------------------------------------------------ one response

    async def get(self, http: HttpRequest) -> Response:
        """A response that is kept: whole, or the events that made it."""
        asked = read_query(http, Retrieval)
        await http.body()  # none: but only after it is heard that a caller leaves
        stored = await self._find(http)
        job = self._jobs.find(stored.response["id"])
        if not asked.stream:
            return as_json(self._response(stored, job))
        if job is not None:
            return await respond(http, job.follow(asked.starting_after))
        return await respond(http, _last_event(self._response(stored, job), stored))

    async def delete(self, http: HttpRequest) -> Response:
        """Removes a response. What goes on from it stays."""
        stored = await self._find(http)
        id_: str = stored.response["id"]
        job = self._jobs.find(id_)
        if job is not None:
            await job.cancel()
        await self._archive.delete(id_)
        self._jobs.forget(id_)
        deleted: DeletedResponse = {"id": id_, "object": "response", "deleted": True}
        return as_json(deleted)

    async def cancel(self, http: HttpRequest) -> Response:
        """Ends a response that runs in the background.

        Raises HttpError for any other.
        """
        stored = await self._find(http)
        if not stored.response["background"]:
            said = "only responses of the background can be cancelled: leave, to end another"
            raise HttpError(400, said, code="not_in_background")
        job = self._jobs.find(stored.response["id"])
        if job is not None:
            await job.cancel()
        return as_json(self._response(await self._find(http), job))

    async def input_items(self, http: HttpRequest) -> Response:
        """The items of a response's input, those of responses before it among them."""
        stored = await self._find(http)
        return as_json(page_of([*stored.before, *stored.input], read_query(http, Page)))

    async def _find(self, http: HttpRequest) -> Stored:
        record, stored = await self._archive.find(http.path_params["id"])
        current().agent = record.id
        return stored

    def _response(self, stored: Stored, job: Job | None) -> ModelResponse:
        """The response as it is now."""
        if stored.last_event is None:
            if job is not None:
                return job.made.response
            error = {"code": "server_error", "message": _INTERRUPTED}
            stored.response |= {"status": "failed", "error": error}
        response: ModelResponse = stored.response  # type: ignore[assignment]
        return response


# ---------------------------------------------------------------------------------- streams


async def _streamed(made: Made, events: AsyncGenerator[Event, None]) -> AsyncIterator[bytes]:
    """The events of a response; an error after the first is the last one."""
    async with aclosing(events):
        try:
            async for each in events:
                yield event(each, each["type"])
        except Exception as error:
            if not made.n_events:
                raise
            note(body_of(error)[1])
            last = made.fails(error)
            yield event(last, last["type"])


async def _last_event(response: ModelResponse, stored: Stored) -> AsyncIterator[bytes]:
    """What has become of a response whose other events are forgotten."""
    status = response["status"]
    kind = f"response.{'failed' if status == 'cancelled' else status}"
    number = stored.last_event or 0
    yield event({"type": kind, "sequence_number": number, "response": response}, kind)
