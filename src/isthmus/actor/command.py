"""The keeper of a command: a body for each message, and none between two.

A command (`_start`) ends with the message that it handles, so nothing of its memory can be kept.
What goes on from message to message is the actor's: its clock, its random numbers and its log. That
is all that a snapshot or a fork has of it: an empty memory.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from isthmus.actor.ask import Aside
from isthmus.actor.beginning import Frozen, Spawned
from isthmus.actor.body import Body
from isthmus.actor.keeper import Keeper
from isthmus.actor.message import Message
from isthmus.actor.state import ActorState
from isthmus.errors import GuestExited, SettingsError, SnapshotInvalid
from isthmus.memory import Image
from isthmus.snapshot import MemorySource, Saved, Store
from isthmus.units import HostAddr

_NOTHING = MemorySource(HostAddr(0), 0, {})


class CommandKeeper(Keeper):
    """See the module. One for each actor whose guest is a command."""

    _next: Spawned
    """How the next body begins."""

    def require_lasting(self) -> None:
        """SettingsError, always."""
        raise SettingsError(
            f"{self._guest.name} is a command: it begins anew with each message and keeps nothing, "
            "so there is no memory to look at; build it as a reactor, with on_message"
        )

    async def handle(self, message: Message) -> None:
        """Runs the command on one message. If it fails, the next message begins anew, as ever;
        with `on_failure="close"` there is none. An exit, with whatever status, is no failure."""
        on_failure, failure = self._granted.limits.on_failure, None
        self.n_messages += 1
        try:
            body = await Aside(message, self.present)
            await body.handle(message)
        except GuestExited:
            raise
        except BaseException as error:
            failure = error
            if on_failure == "close":
                self._life.end(f"its last message ended with: {error}")
            raise
        finally:
            undoes = failure is not None and on_failure == "undo"
            await Aside(message, partial(self._put_away, undoes=undoes))
            if undoes:
                await Aside(message, message.take_back, blocks=True)

    def present(self) -> Body:
        """The body of the message that is handled, made now if there is none."""
        if self.body is None:
            self.body = self._new_body(self._next)
        return self.body

    def origin(self) -> Frozen:
        """The state that forks which are made now begin from."""
        return Frozen(self._state(), Image(0, (), ()), snapshot_id=self._snapshot_id)

    def save(
        self, target: Path | Store, name: str | None = None, base: Saved | str | None = None
    ) -> Saved:
        """Saves it whole; see `Actor.snapshot`."""
        return self._save(self._state(), _NOTHING, target, name, base)

    def _state(self) -> ActorState:
        return replace(self._next.state, n_messages=self.n_messages)

    def _put_away(self, *, undoes: bool) -> None:
        """Gives the body back once its message has ended; RegionBusy while somebody looks at it.
        `undoes`: as if the message had never been."""
        body = self.body
        if undoes:
            self.n_messages -= 1
            self._count_undone()
        elif body is not None:
            context = body.context
            self._next = replace(
                self._next,
                clock_ns=context.clock.now_ns,
                n_random_blocks=context.random.n_blocks,
                log_position=context.log_position,
            )
        self.drop()

    def _begin(self, beginning: Spawned | Frozen) -> Body | None:
        self._next = beginning if isinstance(beginning, Spawned) else _spawned(beginning)
        return None


def _spawned(frozen: Frozen) -> Spawned:
    """How a command's bodies begin that was saved or forked. SnapshotInvalid if it has a memory."""
    state = frozen.state
    if frozen.image.nbytes or state.globals or state.opened or state.nn:
        raise SnapshotInvalid("the snapshot is of a command, and has what no command keeps")
    return Spawned(
        args=state.args,
        seed=state.seed,
        clock_ns=state.clock_ns,
        argv=state.argv,
        n_random_blocks=state.n_random_blocks,
        log_position=state.log_position,
    )
