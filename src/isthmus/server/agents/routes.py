"""`/v1/agents`: sandboxed agents that are durable, forkable and looked at.

An agent's state is its id: a client sends only what is new, and may say by `previous` which
position it believes the agent to be at, so that nothing happens twice.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from isthmus.config import Limits
from isthmus.errors import SettingsError
from isthmus.runtime.arguments import option_texts
from isthmus.server.agents.answers import Answers
from isthmus.server.agents.job import Job
from isthmus.server.agents.owning import AnotherAgent
from isthmus.server.agents.replies import (
    Agent,
    AgentList,
    Deleted,
    GuestCard,
    GuestList,
    Stopped,
    Told,
    summary,
    whole,
)
from isthmus.server.agents.requests import NewAgent, NewFork, NewGuest, NewMessage, NewName
from isthmus.server.agents.shelf import Shelf
from isthmus.server.agents.telling import HEADER, Place, begun
from isthmus.server.http.endpoint import BINARY, Endpoint, read_query
from isthmus.server.http.entry import current
from isthmus.server.http.errors import HttpError
from isthmus.server.http.events import EVENTS, respond, unless_left
from isthmus.server.http.strict import read_strictly
from isthmus.server.settings import ServerSettings
from isthmus.server.storage.record import Record, new_id
from isthmus.units import MAX_NBYTES_32

_JSON = "application/json"
_new_agent = msgspec.json.Decoder(NewAgent)
_new_message = msgspec.json.Decoder(NewMessage)
_new_fork = msgspec.json.Decoder(NewFork)
_new_name = msgspec.json.Decoder(NewName)


class Agents:
    """The routes, over a shelf."""

    def __init__(self, shelf: Shelf, answers: Answers, settings: ServerSettings) -> None:
        self._shelf = shelf
        self._settings = settings
        self.answers = answers

    def routes(self) -> list[Endpoint]:
        """For Starlette."""
        one = "/v1/agents/{id}"
        return [
            Endpoint("GET", "/v1/agents", self.list_all, gives=(AgentList,)),
            Endpoint("POST", "/v1/agents", self.create, takes=NewAgent, gives=(Agent,), status=201),
            Endpoint("GET", one, self.get, gives=(Agent,)),
            Endpoint("DELETE", one, self.delete, gives=(Deleted,)),
            Endpoint("PATCH", one, self.rename, takes=NewName, gives=(Agent,)),
            Endpoint("POST", f"{one}/messages", self.send, takes=NewMessage, gives=(Told, EVENTS)),
            Endpoint("GET", f"{one}/messages", self.listen, gives=(EVENTS,)),
            Endpoint("POST", f"{one}/stop", self.stop, gives=(Stopped,)),
            Endpoint("POST", f"{one}/readmit", self.readmit, gives=(Agent,)),
            Endpoint("POST", f"{one}/fork", self.fork, takes=NewFork, gives=(Agent,), status=201),
            *self._shelf.tools.routes(),
            Endpoint("GET", "/v1/guests", self.guests, gives=(GuestList,)),
            Endpoint(
                "POST",
                "/v1/guests",
                self.bring,
                query=NewGuest,
                takes=BINARY,
                gives=(GuestCard,),
                status=201,
            ),
            Endpoint("DELETE", "/v1/guests/{id}", self.remove, gives=(Deleted,)),
        ]

    # ------------------------------------------------------------------ agents

    async def list_all(self, _request: Request) -> Response:
        """All agents, newest first."""
        await self._shelf.owning.refresh()
        records = list(self._shelf.visible().values())

        def tell() -> bytes:
            newest = sorted(records, key=lambda it: -it.created)
            listed: AgentList = {"object": "list", "data": [summary(it) for it in newest]}
            return msgspec.json.encode(listed)

        return Response(await self._shelf.in_thread(tell), media_type=_JSON)

    async def create(self, request: Request) -> Response:
        """A new agent."""
        asked = await read_strictly(request, _new_agent, empty=b"{}")
        models, files = dict(asked.models), self._shelf.models.files
        model = asked.model or (None if models else next(iter(files.names()), None))
        if model is not None:
            models.setdefault("default", model)
        models = {name: files.real_name(it) for name, it in models.items()}
        found = [files.known(it) for it in models.values()]
        for it in found:
            await files.card(it)
        limits = {"output_nbytes": self._settings.output_nbytes, **asked.limits}
        _require_limits(limits, self._settings.output_nbytes)
        guest = await self._shelf.made(lambda: self._shelf.guests.load(asked.guest))
        n_ctx = None if guest.is_command else min((it.n_ctx for it in found), default=None)
        args = option_texts({"n_ctx": n_ctx}) | option_texts(asked.args)
        record = Record(
            id=new_id(),
            name=asked.name,
            guest=asked.guest,
            models=models,
            args=args,
            argv=tuple(asked.argv),
            limits=limits,
            seed=secrets.randbits(63) if asked.seed is None else asked.seed,
            created=time.time(),
            tools=tuple(dict.fromkeys(asked.tools)),
            require=asked.require,
        )
        return JSONResponse(whole(await self._shelf.create(record), []), 201)

    async def get(self, request: Request) -> Response:
        """An agent and its turns."""
        return await self._tell_all(self.record(request), 200)

    async def _tell_all(self, record: Record, status: int) -> Response:
        """An agent and its turns: some MiB of JSON, which are made beside the event loop."""
        turns = await self._shelf.turns(record)
        text = await self._shelf.in_thread(lambda: msgspec.json.encode(whole(record, turns)))
        return Response(text, status, media_type=_JSON)

    async def delete(self, request: Request) -> Response:
        """Removes an agent and its snapshots; an answer that is under way ends before."""
        record = self._own(request)
        self.answers.stop(record.id)  # one in the background might go on for hours
        await self._shelf.delete(record.id)
        deleted: Deleted = {"id": record.id, "deleted": True}
        return JSONResponse(deleted)

    async def fork(self, request: Request) -> Response:
        """A new agent that is what this one is, or was.

        Raises AnotherAgent if an ancestor has to make it.
        """
        asked = await read_strictly(request, _new_fork, empty=b"{}")
        record = self._own(request)
        position = record.position if asked.position is None else asked.position
        source = await self._who_was_at(record, position)
        changes = await self._changes(record, asked)
        if source is not record and await self._shelf.owning.look(source.id) is not None:
            raise AnotherAgent(source.id, f"/v1/agents/{source.id}/fork",
                               _fork_of(source, position, changes))  # fmt: skip
        async with self._shelf.holding(source.id) as held:
            _require_position(held.record, position)
            made = await self._shelf.fork(held.record, position, changes)
        return await self._tell_all(made, 201)

    async def readmit(self, request: Request) -> Response:
        """Lets an agent be used again that is quarantined."""
        async with self._shelf.holding(self._own(request).id) as held:
            record = msgspec.structs.replace(held.record, deaths=0)
            await self._shelf.in_thread(lambda: self._shelf.write(record, []))
        return await self._tell_all(record, 200)

    async def _changes(self, record: Record, asked: NewFork) -> dict[str, Any]:
        """What a fork of an agent has of its own."""
        args = option_texts({**record.args, **asked.args})
        models, files = record.models, self._shelf.models.files
        if asked.model is not None:
            await files.card(files.known(asked.model))
            models = {**models, "default": files.real_name(asked.model)}
        name = asked.name or f"{record.name or record.id}, forked"
        require = asked.require or record.require
        return {"name": name, "models": models, "args": args, "require": require}

    async def rename(self, request: Request) -> Response:
        """Gives an agent another name; an answer that is under way ends before."""
        asked = await read_strictly(request, _new_name)
        async with self._shelf.holding(self._own(request).id) as held:
            record = msgspec.structs.replace(held.record, name=asked.name)
            await self._shelf.in_thread(lambda: self._shelf.write(record, []))
        return await self._tell_all(record, 200)

    async def _who_was_at(self, record: Record, position: int) -> Record:
        """The agent itself, or of those that it was forked from the one that was there."""
        while record.origin is not None and position < record.origin.position:
            await self._shelf.owning.look(record.origin.id)  # another server may have made it
            if record.origin.id not in self._shelf.visible():
                break
            record = self._shelf.record(record.origin.id)
        return record

    # ------------------------------------------------------------------ messages

    async def send(self, request: Request) -> Response:
        """Has the agent answer; the answer is told as done once it is on the disk."""
        asked = await read_strictly(request, _new_message)
        record, answers = self._own(request), self.answers
        if HEADER in request.headers:  # a client that comes back as it came, and sends nothing anew
            return await self._rest(request, record)
        if asked.background:
            return await self._start(request, record, asked)
        if asked.stream:
            return await respond(request, answers.stream(record.id, asked))
        return JSONResponse(await unless_left(request, answers.tell(record.id, asked)))

    async def _start(self, request: Request, record: Record, asked: NewMessage) -> Response:
        job = self.answers.start(record.id, asked)
        try:
            card = await unless_left(request, job.begun())
        except ClientDisconnect:
            await job.leave()
            raise
        if not asked.stream:
            return JSONResponse(card, 202)
        return await respond(request, _from_beginning(job))

    async def listen(self, request: Request) -> Response:
        """The rest of an answer, after Last-Event-ID; or all of what goes on in the background."""
        await request.body()  # none: but only after it is heard that a caller leaves
        record = self._own(request)
        if HEADER in request.headers:
            return await self._rest(request, record)
        return await respond(request, self.answers.under_way(record))

    async def _rest(self, request: Request, record: Record) -> Response:
        place = Place.of(request.headers[HEADER])
        return await respond(request, self.answers.rest(record, place))

    async def stop(self, request: Request) -> Response:
        """Ends the answer that is under way: what was said until then is the turn."""
        record = self._own(request)
        stopped: Stopped = {"id": record.id, "stopped": self.answers.stop(record.id)}
        return JSONResponse(stopped)

    # ------------------------------------------------------------------ guests

    async def guests(self, _request: Request) -> Response:
        """The guests that agents can be made from."""
        cards = await self._shelf.in_thread(self._shelf.guests.cards)
        listed: GuestList = {"object": "list", "data": cards}
        return JSONResponse(listed)

    async def bring(self, request: Request) -> Response:
        """A WebAssembly module or a script as the body: kept by its hash."""
        name = read_query(request, NewGuest).name
        contents = await request.body()
        digest = await self._shelf.made(lambda: self._shelf.guests.add(contents, name))
        return JSONResponse(self._shelf.guests.card(digest), 201)

    async def remove(self, request: Request) -> Response:
        """Removes a guest that was brought, unless agents use it."""
        digest = request.path_params["id"]
        await self._shelf.in_thread(lambda: self._shelf.guests.remove(digest))
        deleted: Deleted = {"id": digest, "deleted": True}
        return JSONResponse(deleted)

    def find(self, request: Request, position: int | None) -> tuple[Record, int]:
        """The agent of the path, and which of its positions is meant. SnapshotNotFound,
        SettingsError."""
        record = self.record(request)
        return record, position_of(record, position)

    def _own(self, request: Request) -> Record:
        """The agent of the path, to be changed. HttpError 409 for one that responses are."""
        record = self.record(request)
        if record.kind != "agent":
            said = f"agent {record.id} is a {record.kind}: use the routes of those"
            raise HttpError(409, said, code="not_an_agent")
        return record

    def record(self, request: Request) -> Record:
        """The agent of the path. SnapshotNotFound."""
        record = self._shelf.record(request.path_params["id"])
        current().agent = record.id
        return record


def _fork_of(source: Record, position: int, changes: dict[str, Any]) -> bytes:
    """The body that makes the same fork of an ancestor: `changes` are all that it differs in."""
    model = changes["models"].get("default")
    fork = NewFork(
        name=changes["name"],
        position=position,
        require=changes["require"],
        model=None if model == source.models.get("default") else model,
        args={**dict.fromkeys(source.args), **changes["args"]},
    )
    return msgspec.json.encode(fork)


def _require_limits(asked: dict[str, Any], most: int) -> None:
    """SettingsError where they are none, or would let an answer fill the server's memory."""
    try:
        limits = Limits(**asked)
    except TypeError as error:
        raise SettingsError(f"limits: {error}") from None
    if limits.output_nbytes is None or limits.output_nbytes > most:
        raise SettingsError(f"output_nbytes is {limits.output_nbytes}: give {most} or less")
    if limits.weight > 1 and current().key is not None:
        raise SettingsError(f"weight is {limits.weight}: agents of a key have 1 at most")
    if limits.memory_nbytes > MAX_NBYTES_32:
        raise SettingsError(
            f"memory_nbytes is {limits.memory_nbytes}: give {MAX_NBYTES_32} or less; agents of a "
            "server have 4 GiB at most"
        )


def position_of(record: Record, asked: int | None) -> int:
    """The position that is meant: by default the last. SettingsError for one that is none."""
    if asked is None:
        return record.position
    _require_position(record, asked)
    return asked


def _require_position(record: Record, position: int) -> None:
    first = record.origin.position if record.origin is not None else 0
    if not first <= position <= record.position:
        raise SettingsError(f"the agent has positions {first} to {record.position}, not {position}")


async def _from_beginning(job: Job) -> AsyncIterator[bytes]:
    """All events of an answer in the background."""
    yield begun(await job.begun())
    async for event in job.follow(Place(job.message, 0)):
        yield event
