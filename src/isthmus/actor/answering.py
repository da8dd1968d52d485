"""How an actor answers: one message at a time, driven by the loop, from pause to pause.

A message that is paused between two tokens is no message any more, but a part of the actor's state
(`Paused`). `resume` makes another one of it, here or in whatever actor has that state by then: a
fork, a restored one, one that was evicted.
"""

from __future__ import annotations

import codecs
import contextlib
import queue
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TypeVar

from isthmus.actor.content import Content, content_of
from isthmus.actor.host_api import Granted
from isthmus.actor.keeper import Keeper
from isthmus.actor.life import Life, State
from isthmus.actor.message import Message, time_after
from isthmus.actor.pauses import take_up
from isthmus.actor.platform import Platform
from isthmus.actor.recipient import Recipient
from isthmus.actor.reply import Deliver, Piece, Reply
from isthmus.actor.shares import Share
from isthmus.actor.stream import Stream
from isthmus.actor.usage import Usage
from isthmus.actor.visit import Visit
from isthmus.config import Limits, require_deadline
from isthmus.errors import ActorBusy, GuestExited
from isthmus.wasm import Guest

_Result = TypeVar("_Result")


class Answering(Recipient):
    """See the module. The base of Actor, which sets what is declared here."""

    guest: Guest
    limits: Limits
    last_used: float
    """When its last message ended, on the clock of time.monotonic."""
    _platform: Platform
    _granted: Granted
    _usage: Usage
    _life: Life
    _share: Share
    _keeper: Keeper
    _message: Message | None

    @property
    def is_paused(self) -> bool:
        """Whether it is in the middle of an answer that nothing goes on with: `resume` does."""
        return self._keeper.paused is not None and self._life.state is not State.RUNNING

    @property
    def answer_so_far(self) -> str | None:
        """What was said of that answer, without a character that is not whole; None if there is
        none."""
        paused = self._keeper.paused if self.is_paused else None
        if paused is None:
            return None
        return codecs.getincrementaldecoder("utf-8")("replace").decode(paused.emitted)

    def pause(self) -> bool:
        """Stops the answer that it works on at the next token; whoever listens to it gets
        AnswerPaused. Whether there is an answer that `resume` goes on with then.

        Raises ActorBusy if its guest is not resumable, or while a tool works for it; ActorClosed.
        """
        message = self._message
        if message is None:
            return self.is_paused
        if not self.guest.is_resumable:
            raise ActorBusy(
                f"{self.guest.name} cannot be paused in the middle of an answer: isthmus build "
                "--resumable makes a guest that can"
            )
        if self._visit(message, Visit(lambda: None, ends=True)):
            message.ended.wait()
        return self.is_paused

    def resume(
        self,
        *,
        deadline_s: float | None = None,
        deliver: Deliver | None = None,
        errors: str = "replace",
    ) -> Stream:
        """Goes on with the answer in whose middle it is: a stream of the rest, as of `stream`.

        Its reply is the whole answer, and its counts are of all of it. `deadline_s` is by default
        what was left when it was paused, which time that passed meanwhile does not use up. Raises
        what `stream` does, and ActorBusy if there is no such answer.
        """
        require_deadline(deadline_s)
        self._life.take(State.RUNNING, waits=not self._platform.loop.is_current)
        try:
            paused = self._keeper.paused
            if paused is None:
                raise ActorBusy("the actor is in the middle of no answer: send it a message")
            if deadline_s is None:
                allowed = (paused.seconds_left, self.limits.deadline_s)
                deadline_s = min((it for it in allowed if it is not None), default=None)
            sent = Message(b"", self.guest.name, self._share, time_after(deadline_s), errors=errors)
            take_up(sent, paused, self._granted.models)
        except BaseException:
            self._leave()
            raise
        return self._begin(sent, deliver)

    def stop(self) -> None:
        """Asks the guest to finish its answer soon: its next host calls say ECANCELED."""
        if (message := self._message) is not None:
            message.stopping = True
            self._platform.loop.look_at(message)

    def cancel(self) -> None:
        """Cuts the running message off, as a failure: see `Limits.on_failure`."""
        if (message := self._message) is not None:
            message.is_cut_off = True
            self._platform.loop.look_at(message)

    # ------------------------------------------------------------------ parts

    def _submit(
        self,
        message: Content,
        deadline_s: float | None,
        deliver: Deliver | None = None,
        *,
        whole: bool = False,
        errors: str = "replace",
    ) -> Stream:
        loop = self._platform.loop
        if whole and deliver is None:
            loop.require_elsewhere()
        require_deadline(deadline_s)
        data, file = content_of(message, takes_files=self.guest.is_command)
        deadline = time_after(self.limits.deadline_s if deadline_s is None else deadline_s)
        self._life.take(State.RUNNING, waits=not loop.is_current)
        if self._keeper.paused is not None:
            self._leave()
            raise ActorBusy("the actor is in the middle of an answer: resume() goes on with it")
        sent = Message(data, self.guest.name, self._share, deadline, file=file, errors=errors)
        sent.wants_text, sent.finishes = not whole, not self.guest.is_command
        return self._begin(sent, deliver)

    def _begin(self, sent: Message, deliver: Deliver | None) -> Stream:
        """Has the loop drive a message of the actor, which was taken for it."""
        loop = self._platform.loop
        pieces: queue.SimpleQueue[Piece] = queue.SimpleQueue()
        sent.tell = deliver or pieces.put
        self._message = sent
        sent.work = work = self._work(sent)
        try:
            loop.send(sent)
        except BaseException:
            if not sent.is_counted:
                self._message = None
                sent.visits.close()
                self._leave()
                work.close()
            raise
        stream = Stream(sent, pieces, loop.look_at, loop.require_elsewhere)
        if deliver is None:
            stream.abandon_if_dropped()
        return stream

    async def _work(self, message: Message) -> None:
        """Handles a message; the loop drives it."""
        start, metrics = time.monotonic(), self._platform.metrics
        outcome: Reply | BaseException
        try:
            message.require_begin()
            await self._keeper.handle(message)
            message.finish()
            outcome = message.as_reply(time.monotonic() - start)
        except GuestExited as exited:
            if self.guest.is_command:
                message.finish()
                exited.reply = message.as_reply(time.monotonic() - start)
            outcome = exited
        except BaseException as error:  # carried to whoever sent it
            outcome = error
        end = time.monotonic()
        self._usage.seconds += end - start
        metrics.message_wait.observe(start - message.sent)
        metrics.message.observe(end - start)
        message.note_outcome(outcome)
        self._usage.messages += 1
        self._charge(message)
        how = "answered" if isinstance(outcome, Reply) else type(outcome).__name__
        metrics.messages.labels(how).inc()
        self._message = None
        self.last_used = end
        self._leave()
        message.visits.close()
        message.end(outcome)

    def _charge(self, message: Message) -> None:
        """Counts what a message, or the actor's beginning, has used here."""
        self._usage.charge(message)
        had = message.inherited
        errors = [it.error for it in message.tool_calls[len(had.tool_calls) if had else 0 :]]
        reached = Counter(message.limits_reached)
        reached.subtract(dict(had.limits_reached) if had else {})
        self._platform.metrics.count(+reached, errors)

    def _between_tokens(self, work: Callable[[], _Result]) -> _Result:
        """What `work` returns, done while nothing runs in the actor: between two messages, or, if
        it answers now and its guest is resumable, at its next token.

        Raises ActorBusy, ActorClosed.
        """
        while True:
            message = self._message
            if message is None or not self.guest.is_resumable:
                with self._held():
                    return work()
            visit = Visit(lambda: self._keeper.while_paused(work))
            if found := self._visit(message, visit):
                return found[0]

    def _visit(self, message: Message, visit: Visit[_Result]) -> list[_Result]:
        """What came of a visit; nothing if the message ended before."""
        self._platform.loop.require_elsewhere()
        body = self._keeper.body
        if body is not None:
            body.pauses.require_no_tool()
        message.visits.add(visit)
        if body is not None:
            body.pauses.request()
        return visit.try_result()

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """While open nothing runs in the actor, and its memory stays as it is."""
        self._life.take(State.HELD)
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        """Lets others take it."""
        self._life.leave(evicted=self._keeper.is_evicted)
