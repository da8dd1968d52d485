"""The keeper of a command: a body for each message, and none between two.

A command (`_start`) ends with the message that it handles, so nothing of its memory can be kept.
What goes on from message to message is the actor's: its clock, its random numbers and its log.
"""

from __future__ import annotations

from dataclasses import replace

from isthmus.actor.ask import Aside
from isthmus.actor.beginning import Frozen, Spawned
from isthmus.actor.body import Body
from isthmus.actor.keeper import Keeper
from isthmus.actor.message import Message
from isthmus.errors import SettingsError


class CommandKeeper(Keeper):
    """See the module. One for each actor whose guest is a command."""

    _next: Spawned
    """How the next body begins."""

    def require_lasting(self) -> None:
        """SettingsError, always."""
        raise SettingsError(
            f"{self._guest.name} is a command: it begins anew with each message and keeps nothing, "
            "so there is nothing to look at, save or fork; spawn another one, or build it as a "
            "reactor, with on_message"
        )

    async def handle(self, message: Message) -> None:
        """Runs the command on one message. If it fails, the next message begins anew, as ever;
        with `on_failure="close"` there is none."""
        try:
            body = await Aside(message, self.present)
            self.n_messages += 1
            await body.handle(message)
        except BaseException as error:
            if self._granted.limits.on_failure == "close":
                self._life.end(f"its last message ended with: {error}")
            raise
        finally:
            await Aside(message, self._put_away)

    def present(self) -> Body:
        """The body of the message that is handled, made now if there is none."""
        if self.body is None:
            self.body = self._new_body(self._next)
        return self.body

    def _put_away(self) -> None:
        """Gives the body back once its message has ended; RegionBusy while somebody looks at it."""
        body = self.body
        if body is None:
            return
        context = body.context
        self._next = replace(
            self._next,
            clock_ns=context.clock.now_ns,
            n_random_blocks=context.random.n_blocks,
            log_position=context.log_position,
        )
        self.drop()

    def _begin(self, beginning: Spawned | Frozen) -> Body | None:
        assert isinstance(beginning, Spawned), "no snapshot has a command in it"
        self._next = beginning
        return None
