"""One response while it is made: its events, in order, until it is kept.

::

    response.created   response.in_progress   items …   response.completed
                                                        response.incomplete

A response is kept before its last event is told. What fails before raises, and is not kept.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from isthmus.actor import Actor
from isthmus.server.generation.answering import Answer
from isthmus.server.generation.prepared import Prepared, Step
from isthmus.server.generation.request import Began, End, read_tokens
from isthmus.server.generation.tokens import Token
from isthmus.server.http.entry import current
from isthmus.server.openai.choices import logprob_of
from isthmus.server.openai.replies import ChatLogprob
from isthmus.server.responses.frame import failed, said, usage_of
from isthmus.server.responses.output import Output, Telling
from isthmus.server.responses.replies import ModelResponse

Event: TypeAlias = "dict[str, Any]"


@dataclass
class Made:
    """What is known of a response."""

    response: ModelResponse = field(default_factory=ModelResponse)  # type: ignore[arg-type]
    """Empty until it has an id."""
    n_events: int = 0
    """Events that were told."""

    def begins(self, status: Literal["queued", "in_progress"]) -> Iterator[Event]:
        """Events before it is computed."""
        yield self.becomes("response.created", {**self.response, "status": status})
        if status == "queued":
            yield self.becomes("response.queued", self.response)

    def event(self, kind: str, **fields: Any) -> Event:
        """The next event."""
        number = self.n_events
        self.n_events += 1
        return {"type": kind, "sequence_number": number, **fields}

    def becomes(self, kind: str, response: ModelResponse) -> Event:
        """The event that tells what has become of the response."""
        self.response = response
        return self.event(kind, response=response)

    def fails(self, error: BaseException) -> Event:
        """The event that tells of an error, which is the last."""
        return self.becomes("response.failed", failed(self.response, error))

    def is_cancelled(self) -> Event:
        """The event that tells that its caller wants it no more, which is the last. OpenAI's API
        has none of its own for that."""
        return self.becomes("response.failed", {**self.response, "status": "cancelled"})


Keep: TypeAlias = "Callable[[ModelResponse, int], Awaitable[None]]"
"""Keeps a response that is done, and the number of the event that will tell so."""


async def make(
    made: Made,
    prepared: Prepared,
    telling: Telling,
    steps: AsyncGenerator[Step | End, None],
    keep: Keep,
) -> AsyncGenerator[Event, None]:
    """The events of a response from when it is in progress; its answer has these steps. Raises
    what they raise."""
    output = Output(telling)
    yield made.becomes("response.in_progress", {**made.response, "status": "in_progress"})
    end: End | None = None
    async with aclosing(steps) as items:
        async for item in items:
            if isinstance(item, End):
                end = item
            for event in _told(made, output, item):
                yield event
    if end is None:
        raise AssertionError("an answer without an end")
    n_prompt = len(prepared.request.prompt) + end.n_media
    usage = usage_of(n_prompt, end.n_cached, end.n_tokens, output.n_thought)
    response = said(made.response, output.items, usage, end.reason)
    await keep(response, made.n_events)
    yield made.becomes(f"response.{response['status']}", response)


def _told(made: Made, output: Output, item: Step | End) -> Iterator[Event]:
    events = output.end(item) if isinstance(item, End) else output.feed(item)
    for kind, fields in events:
        yield made.event(f"response.{kind}", **fields)


async def tokens_of(
    actor: Actor, prepared: Prepared, deadline_s: float
) -> AsyncGenerator[Began | Token | End, None]:
    """The tokens of an answer by an actor, which is idle again after the last. Raises
    IsthmusError."""
    request, entry = prepared.request, current()
    answer = Answer(actor, request.message(), deadline_s)
    entry.count_prompt(request.prompt)
    try:
        async for item in read_tokens(prepared.completer.model, answer, request):
            if isinstance(item, Began):
                entry.count_prompt(request.prompt, item.n_media)
                entry.tokens_cached += item.n_cached
            elif isinstance(item, Token):
                entry.count_tokens(item.id >= 0)
            else:
                await answer.finish()
            yield item
    finally:
        await answer.close()


def telling_logprobs(prepared: Prepared) -> Callable[[Token], ChatLogprob] | None:
    """How tokens' logarithms of the probability are told, if they are wanted."""
    model = prepared.completer.model
    return None if prepared.request.logprobs is None else lambda token: logprob_of(model, token)


async def whole(events: AsyncIterator[Event]) -> ModelResponse:
    """The response that the last of its events has."""
    last: Event | None = None
    async for event in events:
        last = event
    if last is None:
        raise AssertionError("a response without events")
    response: ModelResponse = last["response"]
    return response
