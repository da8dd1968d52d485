"""A client's connection: how long it may dawdle, and what one too many is told.

=========================  =================================================================
what a client does         what happens
=========================  =================================================================
begins a head and stalls   408 and the end, `head_s` after the head's first byte
connects and says nothing  the end, after `head_s`
keeps it between requests  the end, after `idle_s`
reads nothing              the end, once it took nothing of its answer for `stalled_s`
sends what is no HTTP      400 and the end
is one too many            503 with Retry-After, and the end a second later at the most
=========================  =================================================================

These answers have the headers that a page needs to read them, if `origins` names its origin and its
head came that far.

How long a body may take is judged where bodies are read, in `guard`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import H11Protocol

from isthmus.server.http.errors import RETRY_S, HttpError, body_of
from isthmus.server.http.origins import Origins
from isthmus.server.settings import ServerSettings

_LINGER_S = 1.0
"""For a client that was refused, to read why."""


class Connection(H11Protocol):
    """See the module. Lives in the event loop, which owns it."""

    def __init__(
        self, settings: ServerSettings, origins: Origins, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._settings = settings
        self._origins = origins
        self._came = b""
        """The bytes that came last of a head; kept only where what is told depends on them."""
        self._refused = self._was_told = False
        """Whether it is one too many, and has heard so."""
        self._head_timer = _Timer(self.loop)
        self._stall_timer = _Timer(self.loop)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for a head; refuses where there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self._settings.connections:
            self._refuse()
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends all waiting."""
        self._head_timer.stop()
        self._stall_timer.stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Takes what came; a head that is complete is not waited for any more."""
        if self._refused:
            if not self._was_told:
                self._tell_refused(data)
            return
        self._came = data if self._origins.given else b""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._came = b""
            self._head_timer.stop()
        elif not self._head_timer.runs:
            self._await_head()

    def send_400_response(self, msg: str) -> None:
        """In the shape of all other errors."""
        self._end_with(HttpError(400, msg, code="invalid_http"))

    # ------------------------------------------------------------------ heads

    def _await_head(self) -> None:
        self._head_timer.start(self._settings.head_s, self._head_is_late)

    def _head_is_late(self) -> None:
        if self.conn.trailing_data[0]:
            self._came = bytes(self.conn.trailing_data[0])
            said = f"the request's head did not come within {self._settings.head_s:g} seconds"
            self._end_with(HttpError(408, said, code="timeout"))
        else:
            self.transport.close()

    def _refuse(self) -> None:
        """Closing at once would lose the answer: what the client sends meanwhile must be read."""
        self._refused = True
        self.connections.discard(self)
        if self._origins.given:  # what is answered depends on a head that has not come yet
            self._head_timer.start(_LINGER_S, self._tell_refused, b"")
        else:
            self._tell_refused(b"")

    def _tell_refused(self, head: bytes) -> None:
        """Answers, by what came of a head."""
        self._was_told = True
        said = f"the server has {self._settings.connections} connections already; try again later"
        self._write(HttpError(503, said, code="overloaded"), head)
        self.transport.write_eof()
        self._head_timer.start(_LINGER_S, self.transport.abort)

    def _end_with(self, error: HttpError) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self._write(error, self._came)
        self.transport.close()

    def _write(self, error: HttpError, head: bytes) -> None:
        self.transport.write(_response(error, self._origins.headers_for(head)))

    # ------------------------------------------------------------------ readers

    def pause_writing(self) -> None:
        """The client is slower than its answer: whoever writes waits, but not for ever."""
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._stall_timer.stop()
        super().resume_writing()

    def _await_reader(self) -> None:
        held = self.transport.get_write_buffer_size()
        self._stall_timer.start(self._settings.stalled_s, self._judge_reader, held)

    def _judge_reader(self, held_before: int) -> None:
        if self.transport.get_write_buffer_size() < held_before:
            self._await_reader()
        else:
            self.transport.abort()


class _Timer:
    """Calls something once, unless it is stopped before."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._handle: asyncio.TimerHandle | None = None

    @property
    def runs(self) -> bool:
        """Whether it will call."""
        return self._handle is not None

    def start(self, seconds: float, call: Callable[..., object], *args: object) -> None:
        """Begins, anew where it runs already."""
        self.stop()
        self._handle = self._loop.call_later(seconds, call, *args)

    def stop(self) -> None:
        """Calls nothing any more."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


def _response(error: HttpError, headers: Mapping[str, str]) -> bytes:
    """An answer to a request that was not read, with further headers."""
    status, body = body_of(error)
    data = msgspec.json.encode(body)
    head = [
        f"HTTP/1.1 {status} -",
        "content-type: application/json",
        f"content-length: {len(data)}",
        "connection: close",
        *([f"retry-after: {RETRY_S}"] if status == 503 else []),
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + data
