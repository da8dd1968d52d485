"""What a message waits for: host functions await these, and the loop answers.

============  ==================================================================================
ask           who answers
============  ==================================================================================
Decode        a step of its model, together with all others that ask for one
Prompt        passes of its model's prefill, one job at a time, maybe together with others
Jobs          the device, one job at a time, in turns with the jobs of others
Aside         a thread of a pool: what may take long and needs no device
============  ==================================================================================
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from isthmus.actor.message import Message
from isthmus.model import Model
from isthmus.model.step import Chunk, Step

_Result = TypeVar("_Result")


class Ask:
    """One thing that a message waits for. `await` gives what came of it, or raises."""

    __slots__ = ("message",)

    def __init__(self, message: Message) -> None:
        self.message = message

    def __await__(self) -> Generator[Ask, Any, Any]:
        return (yield self)


class Decode(Ask):
    """A step of one session, of up to `plan.MAX_STEP_TOKENS` tokens; or as many steps of one token
    each, of different sessions with one batch key. Token ids were checked."""

    __slots__ = ("answer", "key", "model", "n_tokens", "share", "steps")

    def __init__(self, message: Message, *steps: Step) -> None:
        session = steps[0].session
        self.message = message
        self.share = message.share
        self.steps = steps
        self.n_tokens = len(steps) if len(steps) > 1 else len(steps[0].tokens)
        self.model = Model.of(session)
        """The model that computes it."""
        self.key = self.model.executor.batch_key(session)
        """The batch key of its sessions."""
        self.answer = Answer(message)
        """Says that it is computed."""


class Prompt(Ask):
    """One chunk of a session's prompt, or a text to embed; `plan.pack` says when it is computed.

    `begin` gives the jobs that compute it alone. `chunk` is None if it must be computed alone.
    """

    __slots__ = ("begin", "chunk", "model", "n_tokens", "share", "since")

    def __init__(
        self,
        message: Message,
        model: Model,
        n_tokens: int,
        begin: Callable[[], Generator[None, None, None]],
        chunk: Chunk | None = None,
    ) -> None:
        self.message = message
        self.share = message.share
        self.model = model
        self.n_tokens = n_tokens
        self.begin = begin
        self.chunk = chunk
        self.since = time.perf_counter()


class Jobs(Ask):
    """Jobs of the device, each at most some milliseconds long: `next` computes one of them."""

    __slots__ = ("jobs",)

    def __init__(self, message: Message, jobs: Iterator[None]) -> None:
        self.message = message
        self.jobs = jobs


class Aside(Ask, Generic[_Result]):
    """Work on a thread of a pool. The message is not ended before it has returned.

    `blocks`: it may wait for the world, and even for other agents, as tools do. It then has a
    thread of its own, and the message takes nobody's place meanwhile (`Capacity.running`).
    """

    __slots__ = ("blocks", "work")

    def __init__(
        self, message: Message, work: Callable[[], _Result], *, blocks: bool = False
    ) -> None:
        self.message = message
        self.work = work
        self.blocks = blocks

    def __await__(self) -> Generator[Ask, Any, _Result]:
        return (yield self)  # type: ignore[no-any-return]


class Answer(NamedTuple):
    """The answer to what a message waits for: a value, or an error."""

    message: Message
    value: object = None
    error: BaseException | None = None
