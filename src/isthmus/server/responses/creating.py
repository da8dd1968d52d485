"""From a request to a response: whole, as a stream, or in the background."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from starlette.requests import Request as HttpRequest

from isthmus.server.generation.prepared import Prepared
from isthmus.server.generation.writer import Writer
from isthmus.server.http.entry import Entry, begin, current, in_thread
from isthmus.server.http.fair import Room
from isthmus.server.keys.guard import Room as Bodies
from isthmus.server.responses.archive import Archive, Basis
from isthmus.server.responses.chain import Answered, Begun, Ended
from isthmus.server.responses.draft import Draft, Drafts
from isthmus.server.responses.frame import conversation_id, frame_of
from isthmus.server.responses.ids import Nowhere
from isthmus.server.responses.items import Item, MakeId, items_of, with_ids
from isthmus.server.responses.jobs import Job, Jobs
from isthmus.server.responses.making import Event, Made, make, telling_logprobs, tokens_of
from isthmus.server.responses.output import Telling
from isthmus.server.responses.replies import ModelResponse
from isthmus.server.responses.requests import CountRequest, ResponseRequest
from isthmus.server.responses.translate import ENCRYPTED, Plan, plan_of, require_sensible
from isthmus.server.settings import ServerSettings

_log = logging.getLogger("isthmus.server")


@dataclass(frozen=True)
class Order:
    """A request that can be computed."""

    asked: ResponseRequest
    basis: Basis
    items: Sequence[Item]
    """Its own items, without those of what it goes on from."""
    plan: Plan
    prepared: Prepared

    def frame(self, id_: str) -> ModelResponse:
        """The response when it begins."""
        warnings = (*self.plan.warnings, *self.prepared.warnings)
        return frame_of(self.asked, id_, warnings)

    def telling(self, make_id: MakeId) -> Telling:
        """How the answer is told."""
        reasoning, reading = self.asked.reasoning, self.prepared.reading
        summary = None if reasoning is None else reasoning.summary or reasoning.generate_summary
        return Telling(
            make_id,
            self.plan.offer,
            self.plan.input_of,
            in_summary=summary is not None,
            sealed=ENCRYPTED in (self.asked.include or ()),
            in_thought=reading is not None and reading.in_thought,
            logprob=telling_logprobs(self.prepared),
        )


class Creating:
    """See the module. Used by one event loop. `charge` counts tokens of background responses;
    `added` is called after a response was kept."""

    def __init__(
        self,
        writer: Writer,
        archive: Archive,
        drafts: Drafts,
        settings: ServerSettings,
        charge: Callable[[Entry], None],
        added: Callable[[str | None], None],
    ) -> None:
        self._writer = writer
        self._archive = archive
        self._drafts = drafts
        self._settings = settings
        self._charge = charge
        self._added = added
        self._room = Room(settings.slots, settings.waiting)
        """For stored responses: stateless requests wait for none of them."""
        self._bodies = Bodies(settings.bodies_nbytes)
        """Those of requests in the background, which wait after their callers were answered."""
        self.jobs = Jobs()

    # ------------------------------------------------------------------ what is asked

    async def planned(self, asked: CountRequest) -> tuple[Basis, list[Item], Plan]:
        """What a request goes on from, its own items, and what it wants. HttpError 400, 404."""
        own = await asyncio.to_thread(items_of, asked.input or "")
        basis = await self._basis(asked)
        own = await self._archive.resolved(own, basis.items)
        plan = await asyncio.to_thread(plan_of, asked, [*basis.items, *own])
        return basis, own, plan

    async def order(self, http: HttpRequest, asked: ResponseRequest) -> Order:
        """What is asked, ready to be computed. Raises as `Writer.prepare`."""
        require_sensible(asked)
        if asked.store is not False:
            await self._archive.shelf.allowances.require_disk(current().key)
        basis, own, plan = await self.planned(asked)
        current().warn(plan.warnings)
        prepared = await self._writer.prepare(http, asked.model, plan.wanted)
        if asked.store is not False:
            self._room.require(current().owner)
        return Order(asked, basis, own, plan, prepared)

    async def _basis(self, asked: CountRequest) -> Basis:
        if asked.conversation is not None:
            return await self._archive.within(conversation_id(asked.conversation))
        if asked.previous_response_id is not None:
            return await self._archive.before(asked.previous_response_id)
        return Basis()

    # ------------------------------------------------------------------ in the foreground

    async def events(self, order: Order, made: Made) -> AsyncGenerator[Event, None]:
        """All events of a response. What it raises before the first one is no response."""
        parts = self._stateless if order.asked.store is False else self._stored
        async with aclosing(parts(order, made)) as events:
            async for event in events:
                yield event

    async def _stateless(self, order: Order, made: Made) -> AsyncGenerator[Event, None]:
        async def keep_nothing(_response: ModelResponse, _last_event: int) -> None:
            pass

        ids = Nowhere()
        made.response = order.frame(ids.response)
        for event in made.begins("in_progress"):
            yield event
        steps, telling = order.prepared.steps(), order.telling(ids.output)
        async with aclosing(make(made, order.prepared, telling, steps, keep_nothing)) as events:
            async for event in events:
                yield event

    async def _stored(self, order: Order, made: Made) -> AsyncGenerator[Event, None]:
        completer = order.prepared.completer
        recipe = await in_thread(completer.recipe)
        async with (
            self._room.place(current().owner),
            self._drafts.begun(order.basis, completer.name, recipe) as draft,
        ):
            made.response = order.frame(draft.place.response)
            own = with_ids(order.items, draft.place.input, order.basis.items)

            async def keep(response: ModelResponse, last_event: int) -> None:
                await draft.commit(Answered(own, {**response}, last_event))

            async with aclosing(self._computed(order, made, draft, keep)) as events:
                async for event in events:
                    yield event

    async def _computed(
        self,
        order: Order,
        made: Made,
        draft: Draft,
        keep: Callable[[ModelResponse, int], Awaitable[None]],
    ) -> AsyncGenerator[Event, None]:
        """The events of a response that the draft's agent computes, and that is kept."""
        prompt = order.prepared.request.known_by()
        actor = await draft.actor(self._drafts.like(draft.record, prompt))
        current().agent = draft.record.id
        if made.n_events == 0:
            for event in made.begins("in_progress"):
                yield event
        tokens = tokens_of(actor, order.prepared, self._settings.deadline_s)
        steps = order.prepared.steps_of(tokens)
        telling = order.telling(draft.place.output)

        async def keep_and_note(response: ModelResponse, last_event: int) -> None:
            await keep(response, last_event)
            self._drafts.note(draft.record, prompt)
            self._added(draft.record.owner)

        async with aclosing(make(made, order.prepared, telling, steps, keep_and_note)) as events:
            async for event in events:
                yield event

    # ------------------------------------------------------------------ in the background

    async def start(self, order: Order) -> Job:
        """A response that goes on by itself, once it is kept that it has begun. HttpError 503."""
        job = Job(current().owner)
        nbytes = current().nbytes_in
        self._bodies.take(job.owner, nbytes)
        with contextlib.ExitStack() as stack:  # what the request uses stays until the job ends
            entry = replace(current(), tokens_in=0, tokens_out=0, prompts={})
            stack.enter_context(entry.working(current()))
            task = self.jobs.run(job, self._work(order, job, entry))
            release = stack.pop_all().close
        task.add_done_callback(lambda _: release())
        task.add_done_callback(lambda _: self._bodies.give_back(job.owner, nbytes))
        await job.begun()
        return job

    async def _work(self, order: Order, job: Job, entry: Entry) -> None:
        """The whole work of a job. What fails before it has begun is told to its request."""
        begin(entry)
        completer = order.prepared.completer
        try:
            recipe = await in_thread(completer.recipe)
            async with self._drafts.begun(order.basis, completer.name, recipe) as draft:
                await self._begin(order, job, draft)
                await self._run(order, job, draft)
        except Exception as error:
            if job.has_begun:
                _log.error("response %s: %s", job.id, error)
            job.fail(error)
        finally:
            job.end()
            self._charge(entry)

    async def _begin(self, order: Order, job: Job, draft: Draft) -> None:
        made = job.made
        made.response = order.frame(draft.place.response)
        events = list(made.begins("queued"))
        own = with_ids(order.items, draft.place.input, order.basis.items)
        await draft.commit(Begun(own, {**made.response}))
        self.jobs.add(job)
        for event in events:
            job.tell(event)

    async def _run(self, order: Order, job: Job, draft: Draft) -> None:
        made = job.made
        id_ = made.response["id"]

        async def keep(response: ModelResponse, last_event: int) -> None:
            job.is_keeping = True
            await draft.commit(Ended(id_, {**response}, last_event))

        try:
            async with (
                self._room.place(current().owner),
                aclosing(self._computed(order, made, draft, keep)) as events,
            ):
                async for event in events:
                    job.tell(event)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and not job.is_unwanted:
                raise
            job.is_keeping = True
            last = made.is_cancelled() if job.is_unwanted else made.fails(error)
            await draft.give_up()
            await draft.commit(Ended(id_, {**made.response}, made.n_events - 1))
            job.tell(last)
