"""The answers of durable agents: made for a request, or beside all of them, and gone on with.

============  ==========================================================  ========================
an answer     lives as long as                                            is kept from
============  ==========================================================  ========================
of a request  its caller listens; if the server ends, it goes on          its first save
in the        needed, whoever listens and whether or not the server ends  its beginning
background
============  ==========================================================  ========================

What is kept is `Record.midway`. The next server that may have the agent takes it up without being
asked: from the snapshot of its middle, or from its beginning. Either way the same text comes again,
since agents are exact, so whoever comes back gets the rest by how many characters were told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

import msgspec

from isthmus.errors import ActorBusy, ActorClosed, IsthmusError, Overloaded, StorageError
from isthmus.server.agents import telling
from isthmus.server.agents.course import Course, Postponed, Stopping
from isthmus.server.agents.held import Held
from isthmus.server.agents.job import Job
from isthmus.server.agents.replies import Told, told
from isthmus.server.agents.requests import NewMessage
from isthmus.server.agents.shelf import Shelf
from isthmus.server.agents.telling import Place
from isthmus.server.generation.answering import Answer
from isthmus.server.http.entry import Entry, begin, current
from isthmus.server.http.errors import HttpError, body_of, not_found
from isthmus.server.http.fair import Room
from isthmus.server.http.ids import random_id
from isthmus.server.keys.keys import Keys
from isthmus.server.settings import ServerSettings
from isthmus.server.storage.record import Failure, Midway, Record, Turn, new_message

_log = logging.getLogger("isthmus.server")
_MAX_TRIES = 3
"""Servers that go on with an answer, one after another, without it being saved anew: it may be what
ends them."""
_DRAIN_S = 5.0
"""Seconds for running answers to reach their next token when the server stops; a prompt may take
longer, and is computed anew then."""
_AGAIN_S = 5.0
"""Seconds until an answer that could not be gone on with is tried again."""


class Answers:
    """See the module. Used by one event loop."""

    def __init__(
        self,
        shelf: Shelf,
        settings: ServerSettings,
        keys: Keys | None = None,
        charge: Callable[[Entry], object] = lambda _: None,
    ) -> None:
        """`charge` counts the tokens of what no request waits for."""
        self._shelf, self._settings = shelf, settings
        self._keys, self._charge = keys, charge
        self._room = Room(settings.live, settings.waiting)
        """For messages that are handled: stateless requests wait for none of them."""
        self.running: dict[str, Answer] = {}
        """The answers that are under way, by agent."""
        self._jobs: dict[str, Job] = {}
        """Those in the background, by message."""
        self._again: set[str] = set()
        """Agents whose answers could not go on, and are to be tried again."""
        self._is_stopping = False

    # ------------------------------------------------------------------ for a request

    async def tell(self, id_: str, asked: NewMessage) -> Told:
        """The whole answer to a message."""
        async with self._answering(id_, sent_of(asked), asked.previous) as (held, items):
            async for item in items:
                if isinstance(item, Turn):
                    return told(held.record, item)
        raise AssertionError("an answer without an end")

    async def stream(self, id_: str, asked: NewMessage) -> AsyncIterator[bytes]:
        """The events of the answer to a message."""
        sent, n = sent_of(asked), 0
        async with self._answering(id_, sent, asked.previous) as (held, items):
            async for item in items:
                if isinstance(item, Turn):
                    yield telling.done(told(held.record, item))
                else:
                    n += len(item)
                    yield telling.delta(sent.message, n, item)

    async def rest(self, record: Record, place: Place) -> AsyncIterator[bytes]:
        """The events of an answer after a place, wherever it is now. HttpError, and why it
        failed."""
        job = self._jobs.get(place.message)
        if job is None and record.midway is not None and record.midway.message == place.message:
            job = self.take_up(record)
        if job is not None:
            async for event in job.follow(place):
                yield event
            return
        failed = record.failed
        if failed is not None and failed.message == place.message:
            raise HttpError(failed.status, failed.reason, code=failed.code)
        for event in telling.rest_of(record, await self._shelf.turns(record), place):
            yield event

    async def under_way(self, record: Record) -> AsyncIterator[bytes]:
        """The events of the answer that goes on in the background, all of them. HttpError 404."""
        if record.midway is None:
            raise not_found(f"agent {record.id} is in the middle of no answer that is kept")
        async for event in self.rest(record, Place(record.midway.message, 0)):
            yield event

    def stop(self, id_: str) -> bool:
        """Ends the answer of an agent at its next token; whether one was under way."""
        answer = self.running.get(id_)
        if answer is not None:
            answer.stop()
        return answer is not None

    # ------------------------------------------------------------------ in the background

    def start(self, id_: str, asked: NewMessage) -> Job:
        """A message whose answer goes on by itself, from when it is kept that it has begun."""
        entry = replace(current(), tokens_in=0, tokens_out=0, prompts={})
        return self._run(id_, sent_of(asked), entry, asked.previous, current())

    def take_up(self, record: Record) -> Job:
        """Goes on with the answer in whose middle an agent is. HttpError 503 if that must be done
        by a server that computes alike; Stopping if this one stops."""
        midway, kind = record.midway, self._shelf.owning.kind
        if midway is None:
            raise AssertionError("an agent that is in the middle of no answer")
        if job := self._jobs.get(midway.message):
            return job
        self._again.discard(record.id)
        if self._is_stopping:
            raise Stopping
        if record.made_on not in ("", kind):
            said = f"agent {record.id} is in an answer that only servers end that compute alike"
            raise HttpError(503, said, code="no_equal", retry_s=1)
        key = None if self._keys is None else self._keys.named(record.owner or "")
        path = f"/v1/agents/{record.id}/messages"
        entry = Entry(random_id("req_", 32), "POST", path, key=key, agent=record.id)
        midway = msgspec.structs.replace(midway, n_tries=midway.n_tries + 1)
        return self._run(record.id, midway, entry)

    def _run(
        self,
        id_: str,
        sent: Midway,
        entry: Entry,
        previous: int | None = None,
        parent: Entry | None = None,
    ) -> Job:
        job = Job(sent.message)
        working = entry.working(parent)
        working.__enter__()
        job.task = asyncio.ensure_future(self._work(id_, job, sent, entry, previous))
        self._jobs[job.message] = job

        def end(_task: object) -> None:
            self._jobs.pop(job.message, None)
            working.__exit__(None, None, None)
            self._charge(entry)

        job.task.add_done_callback(end)
        return job

    async def _work(
        self, id_: str, job: Job, sent: Midway, entry: Entry, previous: int | None
    ) -> None:
        begin(entry)
        try:
            async with self._answering(id_, sent, previous, job) as (held, items):
                async for item in items:
                    job.tell(item if isinstance(item, str) else told(held.record, item))
        except asyncio.CancelledError:
            job.fail(Stopping())
            raise
        except Exception as error:
            if not isinstance(error, (HttpError, IsthmusError)):
                _log.error("agent %s: an unforeseen error", id_, exc_info=error)
            elif not isinstance(error, Stopping):
                _log.info("agent %s: message %s: %s", id_, sent.message, error)
            job.fail(error)

    # ------------------------------------------------------------------ both

    @asynccontextmanager
    async def _answering(
        self, id_: str, sent: Midway, previous: int | None = None, job: Job | None = None
    ) -> AsyncIterator[tuple[Held, AsyncGenerator[str | Turn]]]:
        """The agent, held, and its answer, once there is a place for one more message."""
        if not sent.n_tries:
            await self._shelf.allowances.require_disk(current().key)
        while True:
            async with self._shelf.holding(id_) as held:
                midway = held.record.midway
                if (midway.message if midway is not None else "") in ("", sent.message):
                    async with self._placed(held, sent, previous, job) as items:
                        yield held, items
                    return
            await self._finish(held.record)

    async def _finish(self, record: Record) -> None:
        """Returns once an agent is in the middle of its answer no more."""
        try:
            await self.take_up(record).ended()
        except (HttpError, IsthmusError):
            if self._shelf.record(record.id).midway is not None:
                raise

    @asynccontextmanager
    async def _placed(
        self, held: Held, sent: Midway, previous: int | None, job: Job | None
    ) -> AsyncIterator[AsyncGenerator[str | Turn]]:
        """The answer of an agent that is held. If it fails that is kept, if the answer was."""
        if sent.n_tries and held.record.midway is None:
            raise not_found(f"agent {held.record.id} is done with message {sent.message}")
        if previous is not None and previous != held.record.position:
            said = f"the agent is at {held.record.position}, not at {previous}"
            raise HttpError(409, said, code="position", param="previous")
        if self._is_stopping:
            raise Stopping
        try:
            await self._shelf.given(held.record)  # nobody waits for a model in a place
            async with self._room.place(current().owner):
                if job is not None:
                    await self._keep(held, sent, job)
                async with aclosing(self.items(held, sent)) as items:
                    yield items
        except BaseException as error:
            if held.record.midway is not None:
                if self._outlives(error, sent):
                    self._again.add(held.record.id)
                    await _try_again(held, sent)
                else:
                    await _give_up(held, sent, error)
            raise

    def items(self, held: Held, sent: Midway) -> AsyncGenerator[str | Turn]:
        """The pieces of the answer of an agent that is held, and its turn."""
        return Course(self._shelf, held, sent, self._settings, self.running).items()

    async def _keep(self, held: Held, sent: Midway, job: Job) -> None:
        """Keeps that an answer in the background is begun, or gone on with."""
        if sent.n_tries > _MAX_TRIES:
            raise HttpError(
                500, f"{_MAX_TRIES} servers ended one after another while they went on with the "
                "answer", code="quarantined")  # fmt: skip
        await held.note_midway(sent)
        position = held.record.position + 1
        job.begin({"agent": held.record.id, "message": sent.message, "position": position})

    def _outlives(self, error: BaseException, sent: Midway) -> bool:
        """Whether an answer that is kept is gone on with later, though it ends now."""
        if isinstance(error, (Stopping, Postponed, StorageError, Overloaded)):
            return True
        is_left = isinstance(error, (asyncio.CancelledError, GeneratorExit))
        return is_left and (sent.background or sent.n_tries > 0 or self._is_stopping)

    # ------------------------------------------------------------------ from start to end

    async def keep(self) -> None:
        """Takes up answers that nobody goes on with, until it is cancelled: at the start, and when
        another server has ended."""
        sharing = self._shelf.owning.sharing
        pause_s = _AGAIN_S if sharing is None else min(_AGAIN_S, self._settings.lease_s / 6)
        others: frozenset[int] = frozenset()
        looks = True
        while True:
            waiting = [it for it in list(self._shelf.records.values()) if it.midway is not None]
            for record in waiting:
                if looks or record.id in self._again:
                    await self._take_up_if_free(record)
            await asyncio.sleep(pause_s)
            looks = False  # what another server goes on with costs the store two requests
            if sharing is not None:
                before, others = others, sharing.others()
                if looks := bool(before - others):
                    await self._shelf.owning.refresh()

    async def _take_up_if_free(self, record: Record) -> None:
        if record.kind != "agent" or self._shelf.is_held(record.id):
            return
        try:
            if await self._shelf.owning.look(record.id) is None:
                found = self._shelf.records.get(record.id)
                if found is not None and found.midway is not None:
                    self.take_up(found)
        except (HttpError, IsthmusError) as error:
            self._again.add(record.id)
            _log.info("agent %s: its answer waits: %s", record.id, error)

    async def drain(self) -> None:
        """Has all answers that can be saved at their next token end there; no more begin."""
        self._is_stopping = True
        if self._settings.save_tokens or self._settings.save_s:
            pausing = [asyncio.ensure_future(self._pause(it)) for it in self.running.values()]
            if pausing:
                await asyncio.wait(pausing, timeout=_DRAIN_S)

    async def _pause(self, answer: Answer) -> None:
        try:
            await self._shelf.in_thread(answer.actor.pause)
        except (ActorBusy, ActorClosed) as error:
            _log.info("an answer is not saved as the server stops: %s", error)

    async def close(self) -> None:
        """Ends what runs in the background, as if the server were killed."""
        tasks = [it.task for it in self._jobs.values() if it.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=_DRAIN_S if self._is_stopping else 0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _try_again(held: Held, sent: Midway) -> None:
    """Notes that an answer was gone on with, and the server did not end by it."""
    midway = held.record.midway
    if midway is not None and midway.n_tries:
        with contextlib.suppress(IsthmusError):
            await held.note_midway(msgspec.structs.replace(midway, n_tries=sent.n_tries - 1))


async def _give_up(held: Held, sent: Midway, error: BaseException) -> None:
    """Keeps what has become of an answer that was kept, and is not gone on with."""
    failed = None
    if isinstance(error, Exception):
        status, body = body_of(error)
        code = body["error"]["code"] or body["error"]["type"]
        reason = f"the answer failed, and the agent is as before it: {body['error']['message']}"
        failed = Failure(message=sent.message, status=status, code=code, reason=reason)
    try:
        await held.note_midway(None, failed)
    except IsthmusError as second:
        _log.warning("agent %s is still to be in an answer: %s", held.record.id, second)


def sent_of(asked: NewMessage) -> Midway:
    """A message that has just come, as it is kept."""
    return Midway(
        message=new_message(),
        input=asked.input,
        n_files=len(asked.files),
        files=tuple(asked.files),
        background=asked.background,
    )
