"""What every request passes: who may ask, how often, how much they may send, and the log."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from isthmus.printable import printable
from isthmus.server.http.entry import Entry, Shape, begin
from isthmus.server.http.errors import HttpError, respond_to
from isthmus.server.http.measures import Measures
from isthmus.server.http.origins import Origins, answer_preflight, is_preflight
from isthmus.server.keys.admission import (
    ACTIVITY,
    METRICS,
    OPEN,
    Admission,
    claimed_nbytes,
    is_open,
    is_passed_on,
)
from isthmus.server.keys.keys import Keys
from isthmus.server.keys.quota import Quotas
from isthmus.server.settings import ServerSettings

RESTORE = "/v1/agents/restore"
"""Takes bodies that are not kept in memory."""
BRING = "/v1/guests"
"""Takes modules; all other bodies are JSON."""
FREE = (*OPEN, METRICS, ACTIVITY)
"""Paths whose requests do not count for their key's limits; those of all APIs do."""
_MAX_WARNED = 2000
"""Characters of the header that tells warnings; the body has all of them."""
_BODY_S = 30.0
_BODY_PACE = 16_384
"""A body has so many seconds, and one more for each so many bytes that have come."""

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]


class Guard:
    """See the module; an ASGI middleware around `app`. `keys` and `quotas` come together.
    `shape_of` says how a request's errors are told; None for OpenAI's shape. `token` is what other
    servers show that pass requests on to this one."""

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        settings: ServerSettings,
        keys: Keys | None,
        quotas: Quotas,
        measures: Measures,
        shape_of: Callable[[_Message], Shape | None] = lambda _: None,
        token: str | None = None,
    ) -> None:
        self._app = app
        self._settings = settings
        self._admission = Admission(settings, keys, token)
        self._origins = Origins(settings.origins)
        self._quotas = quotas
        self._measures = measures
        self._shape_of = shape_of
        self._room = Room(settings.bodies_nbytes)

    async def __call__(self, scope: _Message, receive: _Receive, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        entry = Entry.of(scope)
        entry.shape = self._shape_of(scope)
        entry.silent_s = self._settings.silent_s
        begin(entry)
        body = _Body(receive, entry, *self._body_limits(scope["path"]))
        answer = _Answer(send, entry, self._headers)
        try:
            with body, entry.working():
                entry.key = self._admission.admit(scope)
                entry.passed_on = is_passed_on(scope)
                body.require(claimed_nbytes(scope))
                if is_preflight(scope):
                    await answer_preflight(scope)(scope, receive, answer.send)
                    return
                with self._spending(entry, scope["path"]):
                    await self._app(scope, body.receive, answer.send)
        except Exception as error:
            if answer.begun:
                entry.error = type(error.__cause__ or error).__name__  # Starlette wraps it
                raise
            await respond_to(error)(scope, receive, answer.send)
        finally:
            entry.write()
            self._measures.note(entry, scope)

    def _body_limits(self, path: str) -> tuple[int, Room | None]:
        """The largest body, and where its bytes are counted if they stay in memory."""
        if path == RESTORE:
            return self._settings.upload_nbytes, None
        if path == BRING:
            return self._settings.body_nbytes, self._room
        return min(self._settings.body_nbytes, self._settings.json_nbytes), self._room

    def _spending(self, entry: Entry, path: str) -> contextlib.AbstractContextManager[None]:
        if entry.key is None or path in FREE or is_open(path):
            return contextlib.nullcontext()
        return self._quotas.spending(entry.key, entry)

    def _headers(self, entry: Entry, named: list[str]) -> dict[str, str]:
        """What is added to an answer that has headers of these names."""
        left = {} if entry.key is None else self._quotas.headers(entry.key)
        warned = {"x-isthmus-warning": in_header(entry.warnings)} if entry.warnings else {}
        found = {"x-request-id": entry.id, "request-id": entry.id, **warned, **left}
        return {**found, **self._origins.headers(entry.origin, [*named, *found])}


def in_header(warnings: Iterable[str]) -> str:
    """Warnings as one line of printable ASCII, cut where it becomes long for a header."""
    said = "; ".join(map(printable, warnings)).encode("ascii", "backslashreplace").decode()
    return said if len(said) <= _MAX_WARNED else said[:_MAX_WARNED] + "..."


class _Answer:
    """Sends an answer, and notes what it was."""

    def __init__(
        self, send: Any, entry: Entry, headers: Callable[[Entry, list[str]], dict[str, str]]
    ) -> None:
        self._send = send
        self._entry = entry
        self._headers = headers
        self.begun = False

    async def send(self, message: _Message) -> None:
        """For ASGI."""
        if message["type"] == "http.response.start":
            self.begun = True
            self._entry.status = message["status"]
            headers = list(message.get("headers", ()))
            more = self._headers(self._entry, [name.decode() for name, _ in headers])
            headers += [(name.encode(), value.encode("latin-1")) for name, value in more.items()]
            message = {**message, "headers": headers}
        else:
            self._entry.answered = not message.get("more_body", False)
        self._entry.nbytes_out += len(message.get("body", b""))
        await self._send(message)


class Room:
    """Bytes that all bodies may have in memory together; those of one key half of that."""

    def __init__(self, nbytes: int) -> None:
        self._left = nbytes
        self._most_of_one = nbytes // 2
        self._taken: Counter[str] = Counter()
        """By the names of keys."""

    def take(self, owner: str | None, nbytes: int) -> None:
        """HttpError 503 if there are no more, or the owner has its share already."""
        too_many = owner is not None and self._taken[owner] + nbytes > self._most_of_one
        if too_many or nbytes > self._left:
            raise HttpError(503, "too many requests are being read; try again later", code="busy")
        self._left -= nbytes
        if owner is not None:
            self._taken[owner] += nbytes

    def give_back(self, owner: str | None, nbytes: int) -> None:
        """Frees the bytes of a request that has ended."""
        self._left += nbytes
        if owner is not None:
            self._taken[owner] -= nbytes


class _Body:
    """A request's body as it comes. One that is longer than it may be, does not come, or is one
    too many ends the request, whatever length it claims."""

    def __init__(self, receive: _Receive, entry: Entry, most: int, room: Room | None) -> None:
        self._receive = receive
        self._entry = entry
        self._most = most
        self._room = room
        self._owner: str | None = None
        self._held = 0
        """Bytes of the room that it has."""
        self._complete = False

    def __enter__(self) -> None: ...

    def __exit__(self, *exc: object) -> None:
        if self._room is not None:
            self._room.give_back(self._owner, self._held)
            self._room = None

    def require(self, nbytes: int) -> None:
        """HttpError 413 if so many bytes are too many."""
        if nbytes > self._most:
            raise HttpError(413, f"a body may have {self._most} bytes", code="too_long")

    async def receive(self) -> _Message:
        """For ASGI."""
        try:
            message = await asyncio.wait_for(self._receive(), self._patience())
        except asyncio.TimeoutError:
            raise HttpError(408, "the body did not come in time", code="timeout") from None
        if message["type"] == "http.disconnect":
            if not self._entry.answered:
                self._entry.error = "cancelled"
            return message
        self._complete = not message.get("more_body", False)
        self._count(len(message.get("body", b"")))
        return message

    def _patience(self) -> float | None:
        """Seconds until the next piece must be there; None for what comes after the body."""
        if self._complete:
            return None
        due = self._entry.began + _BODY_S + self._entry.nbytes_in / _BODY_PACE
        return max(0.0, due - time.monotonic())

    def _count(self, nbytes: int) -> None:
        if self._room is not None:
            self._owner = self._entry.owner
            self._room.take(self._owner, nbytes)
            self._held += nbytes
        self._entry.nbytes_in += nbytes
        self.require(self._entry.nbytes_in)
