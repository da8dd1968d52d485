"""Responses that run in the background: their events, for whoever looks, now or later.

Events are in memory while a response runs, and those of the last that have ended for a while.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from isthmus.server.http.events import event as encoded
from isthmus.server.http.fair import Owner
from isthmus.server.responses.making import Event, Made
from isthmus.units import MIB

_MAX_ENDED = 64
"""Jobs that have ended, whose events are remembered."""
_ENDED_NBYTES = 64 * MIB
"""Bytes of those events, as they are told."""


class Job:
    """One response. Used by one event loop."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.made = Made()
        self.task: asyncio.Future[None] | None = None
        self.is_unwanted = False
        """Whether somebody has cancelled it."""
        self.is_keeping = False
        """Whether it is done, and being kept: it cannot be cancelled any more."""
        self.has_ended = False
        self.nbytes = 0
        """Bytes of its events."""
        self._events: list[bytes] = []
        self._changed = asyncio.Event()
        self._failure: BaseException | None = None

    @property
    def id(self) -> str:
        """The id of the response."""
        return self.made.response["id"]

    @property
    def has_begun(self) -> bool:
        """Whether it is kept that it has."""
        return bool(self._events)

    def tell(self, event: Event) -> None:
        """One more event has happened."""
        self._events.append(encoded(event, event["type"]))
        self.nbytes += len(self._events[-1])
        self._wake()

    def fail(self, error: BaseException) -> None:
        """Nothing more happens, since something went wrong."""
        self._failure = error

    def end(self) -> None:
        """Nothing more happens."""
        self.has_ended = True
        self._wake()

    async def begun(self) -> None:
        """Returns once it is kept that the response has begun; raises why that cannot be."""
        while not self._events:
            if self.has_ended and self._failure is not None:
                raise self._failure
            await self._changed.wait()

    async def cancel(self) -> None:
        """Ends it, unless it is done. Returns once what has become of it is kept."""
        if self.task is not None and not self.has_ended:
            if not self.is_keeping:
                self.is_unwanted = True
                self.task.cancel()
            await asyncio.wait([self.task])

    async def follow(self, after: int | None = None) -> AsyncIterator[bytes]:
        """Its events as they are sent, those that were and those to come, after the one of that
        number."""
        at = 0 if after is None else after + 1
        while True:
            changed = self._changed
            while at < len(self._events):
                yield self._events[at]
                at += 1
            if self.has_ended:
                return
            await changed.wait()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class Jobs:
    """All of a server. Used by one event loop."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        """By the ids of the responses, the one begun last at the end."""
        self._running: set[Job] = set()

    def run(self, job: Job, work: Coroutine[Any, Any, None]) -> asyncio.Future[None]:
        """Begins the work of a job."""
        job.task = asyncio.ensure_future(work)
        self._running.add(job)
        job.task.add_done_callback(lambda _: self._running.discard(job))
        return job.task

    def add(self, job: Job) -> None:
        """A job whose response has an id."""
        self._jobs[job.id] = job
        ended = [(id_, it.nbytes) for id_, it in self._jobs.items() if it.has_ended]
        nbytes = sum(it for _, it in ended)
        for n, (id_, its) in enumerate(ended):
            if len(ended) - n <= _MAX_ENDED and nbytes <= _ENDED_NBYTES:
                return
            del self._jobs[id_]
            nbytes -= its

    def find(self, id_: str) -> Job | None:
        """The job of a response; None if there is none, or its events are forgotten."""
        return self._jobs.get(id_)

    def forget(self, id_: str) -> None:
        """Remembers nothing of a response."""
        self._jobs.pop(id_, None)

    async def close(self) -> None:
        """Ends all that run, as if the server were killed: they are told to have failed."""
        running = [(it, it.task) for it in self._running if it.task is not None]
        for job, task in running:
            if not job.is_keeping:
                task.cancel()
        await asyncio.gather(*(task for _, task in running), return_exceptions=True)
