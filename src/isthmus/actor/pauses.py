"""The pauses of one body: between two tokens of an answer, for whoever wants to visit it.

::

    Visit ──► request ──► the guest pauses ──► `paused` says what the message is
                             ▲                      │ visits are let in: save, fork
                             └── goes on ◄──────────┴──► AnswerPaused, if one of them ends it
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from isthmus.actor.ask import Aside
from isthmus.actor.host_api import Context
from isthmus.actor.message import Message
from isthmus.actor.paused import Paused
from isthmus.actor.reading import ReadAnswer
from isthmus.errors import ActorBusy, AnswerPaused, SnapshotInvalid
from isthmus.model import Model
from isthmus.model.media.medium import Medium
from isthmus.wasm import Instance
from isthmus.wasm.pausing import ROOM_NBYTES, Pauser, PendingCall


class Pauses:
    """See the module. One for each body; used as its body is, but for `request`."""

    def __init__(
        self,
        instance: Instance,
        context: Context,
        grow: Callable[[int], int],
        paused: Paused | None,
    ) -> None:
        """`grow` makes the memory so many bytes longer and says where they begin; `paused` is the
        message that its memory is in the middle of. SnapshotInvalid if that cannot be."""
        self._context = context
        self._instance = instance
        self._grow = grow
        self.paused = paused
        """What its message is while its guest is paused."""
        self._pauser = Pauser(instance, self._prepare) if instance.guest.is_resumable else None
        if paused is not None:
            if self._pauser is None:
                raise SnapshotInvalid(f"{instance.guest.name} cannot have paused in an answer")
            self._pauser.resume_from(paused.pending)

    def request(self) -> None:
        """Has the guest pause before its next host call that waits; from any thread."""
        if self._pauser is not None:
            self._pauser.request()

    def end(self) -> None:
        """The guest's function has ended: nothing is wanted of it any more."""
        if self._pauser is not None:
            self._pauser.withdraw()

    def require_no_tool(self) -> None:
        """ActorBusy while a tool works for its message."""
        if self._context.tool_call is not None:
            raise ActorBusy(
                "a tool works for the actor now, and would do its work twice: try again when it "
                "has returned"
            )

    async def run(self, once: Callable[[], Coroutine[Any, Any, int]]) -> int:
        """What a function of the guest returns. `once()` calls it, and is called again after each
        pause. Raises AnswerPaused."""
        pauser, message = self._pauser, self._context.message
        if pauser is None:
            return await once()
        if self.paused is not None:
            self.paused = None
            pauser.go_on()
        if message.visits:
            pauser.request()
        while True:
            code = await once()
            paused = pauser.end_pause()
            if (refusal := pauser.take_refusal()) is not None:
                for visit in message.visits.take():
                    visit.refuse(refusal)
            if not paused:
                return code
            await self._let_in(message, pauser)
            pauser.go_on()

    async def _let_in(self, message: Message, pauser: Pauser) -> None:
        """Has all visits done. Raises AnswerPaused if one of them ends the message."""
        assert pauser.pending is not None, "it has paused"
        used, instance = 0, self._instance
        if self._context.limits.fuel is not None:
            used = self._context.limits.fuel - instance.fuel
        self.paused = paused_of(message, pauser.pending, used)
        ends = False
        for visit in message.visits.take():
            await Aside(message, visit.run)
            ends = ends or visit.ends
        if ends:
            raise AnswerPaused("the answer was paused between two tokens; Actor.resume() goes on")
        self.paused = None

    def _prepare(self, room: int) -> int:
        """Where the guest's stack is written; see `Pauser`."""
        if self._context.handles.all(Medium):
            raise ActorBusy("a picture or a sound is being read: try again in a moment")
        return room or self._grow(ROOM_NBYTES)


def paused_of(message: Message, pending: PendingCall, fuel: int) -> Paused:
    """What a message is now, whose guest has paused before a host call."""
    now, had = time.monotonic(), message.inherited
    answer, deadline = message.answer_in, message.deadline
    return Paused(
        pending,
        message.data,
        message.emitted,
        message.reply,
        message.n_outputs,
        message.output_nbytes,
        message.tokens_in,
        message.tokens_out,
        fuel,
        now - message.begun_at + (had.seconds if had else 0.0),
        None if deadline is None else max(deadline - now, 0.0),
        tuple(message.limits_reached.items()),
        message.last_limit,
        message.last_warning,
        message.tool_result,
        tuple(message.tool_calls),
        answer.state() if answer else None,
    )


def take_up(message: Message, paused: Paused, models: Mapping[str, Model]) -> None:
    """Has a new message go on where a paused one was. IsthmusError if its answer cannot be read."""
    message.inherited = paused
    message.data, message.reply = paused.data, paused.reply
    message.take_emitted(paused.emitted)
    message.n_outputs, message.output_nbytes = paused.n_outputs, paused.output_nbytes
    message.tokens_in, message.tokens_out = paused.tokens_in, paused.tokens_out
    message.limits_reached = dict(paused.limits_reached)
    message.last_limit, message.last_warning = paused.last_limit, paused.last_warning
    message.tool_result, message.tool_calls = paused.tool_result, list(paused.tool_calls)
    if paused.answer is not None:
        model = models[paused.answer.model]
        message.answer_in = ReadAnswer.resumed(model, paused.answer)
