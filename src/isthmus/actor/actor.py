"""An agent: a guest with its sessions and its life, whether or not it is in memory now.

What takes memory is its `Body`, which may be evicted and brought back. `life.py` has its states.
"""

from __future__ import annotations

import contextlib
import queue
import time
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from isthmus.actor.beginning import Frozen, Spawned
from isthmus.actor.body import Body
from isthmus.actor.command import CommandKeeper
from isthmus.actor.host_api import Granted
from isthmus.actor.keeper import FILE_CHANGED, Keeper, Notes
from isthmus.actor.life import Life, State
from isthmus.actor.message import AGAIN_S, Content, Message, content_of, time_after
from isthmus.actor.platform import Platform
from isthmus.actor.recipient import Recipient
from isthmus.actor.reply import Deliver, Piece, Reply
from isthmus.actor.shares import Share
from isthmus.actor.stream import Stream
from isthmus.actor.usage import Usage
from isthmus.config import require_deadline
from isthmus.counters import Counters
from isthmus.device.buffer import Binding
from isthmus.errors import ActorBusy, GuestExited, SettingsError
from isthmus.memory import Region
from isthmus.model import Model, Session
from isthmus.snapshot import Saved, Store
from isthmus.snapshot.store import target_of
from isthmus.wasm import Guest, Instance


class Actor(Recipient):
    """See the module. Made by `Runtime.spawn`; its methods may be called from any thread."""

    def __init__(
        self, platform: Platform, guest: Guest, granted: Granted, beginning: Spawned | Frozen
    ) -> None:
        state = beginning.state
        self.guest = guest
        self.device = platform.device
        self.limits = granted.limits
        self.seed = state.seed
        self.args = state.args
        self.counters = Counters()
        self.last_used = time.monotonic()
        """When its last message ended, on the clock of time.monotonic."""
        self.restored = beginning.restoration if isinstance(beginning, Frozen) else None
        """How exactly it was restored from a snapshot; None if it was not."""
        self._platform = platform
        self._granted = granted
        self._usage = Usage()
        self._life = Life()
        self._share = Share(granted.limits.weight)
        self._message: Message | None = None
        keeper = CommandKeeper if guest.is_command else Keeper
        self._keeper: Keeper = keeper(
            platform,
            guest,
            granted,
            beginning,
            Notes(self._life, self._usage, self.counters),
            partial(_leave_files, weakref.ref(self)),
        )
        try:
            if self._keeper.body is not None:
                self._charge(self._keeper.body.message)
            platform.adopt(self)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<Actor of {self.guest.name}: {self.state}>"

    # ------------------------------------------------------------------ state

    @property
    def state(self) -> str:
        """`idle`, `running`, `held`, `evicting`, `evicted` or `closed`; see `life.py`."""
        return self._life.state.value

    def uses(self, model: Model) -> bool:
        """Whether it was given this model."""
        return model in self._granted.models.values()

    @property
    def n_messages(self) -> int:
        """Messages that were begun in all its life, but for those that were undone."""
        return self._keeper.n_messages

    @property
    def context_is_full(self) -> bool:
        """Whether one of its open sessions has no room for another token."""
        body = self._keeper.body
        return body is not None and any(it.is_full for it in body.sessions)

    @property
    def usage(self) -> Usage:
        """What it has used so far and has now: a copy."""
        body = self._keeper.body
        if body is None:
            return self._usage.now(0, 0, 0)
        sessions = body.sessions
        kv_nbytes = sum(session.layout.kv_nbytes for session in sessions)
        return self._usage.now(body.region.nbytes, kv_nbytes, len(sessions))

    @property
    def body(self) -> Body:
        """Its instance, memory and sessions, brought back if it is evicted. ActorClosed;
        SettingsError for a command, which has none of these between two messages."""
        self._keeper.require_lasting()
        body = self._keeper.body
        if body is None or self._life.closed_because is not None:
            with self._held():
                return self._keeper.present()
        return body

    @property
    def instance(self) -> Instance:
        """The instance of its guest."""
        return self.body.instance

    @property
    def region(self) -> Region:
        """The guest's linear memory."""
        return self.body.region

    @property
    def binding(self) -> Binding:
        """The device's view of that memory."""
        return self.body.binding

    @property
    def sessions(self) -> list[Session]:
        """Its open sessions, oldest first."""
        return self.body.sessions

    @property
    def log_position(self) -> int:
        """How many records its guest has logged in all its life."""
        return self.body.log_position

    # ------------------------------------------------------------------ messages

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
        pieces: queue.SimpleQueue[Piece] = queue.SimpleQueue()
        self._life.take(State.RUNNING, waits=not loop.is_current)
        tell = deliver or pieces.put
        sent = Message(data, self.guest.name, self._share, deadline, tell, file=file, errors=errors)
        sent.wants_text, sent.finishes = not whole, not self.guest.is_command
        self._message = sent
        sent.work = work = self._work(sent)
        try:
            loop.send(sent)
        except BaseException:
            if not sent.is_counted:
                self._message = None
                self._leave()
                work.close()
            raise
        stream = Stream(sent, pieces, loop.look_at, loop.require_elsewhere)
        if deliver is None:
            stream.abandon_if_dropped()
        return stream

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

    def close(self) -> None:
        """Ends what is running and gives everything back; a second call does nothing.

        Raises RegionBusy while somebody looks at its memory: it is closed then, and a second call
        gives the memory back. ActorBusy from a tool that its own message called.
        """
        body = self._keeper.body
        if body is not None and body.in_own_tool:
            raise ActorBusy("a tool cannot close the actor that calls it; let it return first")
        self._life.end("close() was called")
        while not self._life.take_last(0.0):
            self._platform.loop.require_elsewhere()
            self.cancel()
            if self._life.take_last(AGAIN_S):
                break
        try:
            self._keeper.drop()
        finally:
            self._leave()

    def __enter__(self) -> Actor:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ------------------------------------------------------------------ copies of it

    def fork(self, n: int = 1) -> list[Actor]:
        """`n` more actors that are what this one is now: memory, sessions, clock, random numbers.

        The first fork copies the memory in use once, into an image that parent and children share;
        further ones copy nothing until this actor handles a message. On a device whose pages cannot
        be mapped twice each fork is one copy, made by the device where it has the bytes. Given the
        same message, all of them answer the same. Raises ActorBusy, ActorClosed, Overloaded,
        RegionError.
        """
        if n < 1:
            raise SettingsError(f"cannot make {n} forks")
        children: list[Actor] = []
        with self._held():
            frozen = self._keeper.origin()
            try:
                for _ in range(n):
                    children.append(Actor(self._platform, self.guest, self._granted, frozen))
            except BaseException:
                for child in children:
                    child.close()
                raise
        return children

    def snapshot(
        self,
        path: str | Path | Store,
        *,
        name: str | None = None,
        base: Saved | str | None = None,
    ) -> Saved:
        """Saves the actor whole: as one file, or in a store (a folder that exists, or a Store).

        In a store only chunks are written that it does not have; it is saved there as `name`, by
        default by its hash. `base` says which snapshot of the store, by name or as it was
        returned, this one succeeds, by default the actor's last. What was there under the same
        name is replaced once everything is on the disk. Raises ActorBusy, ActorClosed,
        SnapshotError.
        """
        target = target_of(path)
        with self._held():
            return self._keeper.save(target, name, base)

    def evict(self) -> int:
        """Saves it to a file of the runtime's and gives its memory back until it is next used.

        Returns how many bytes of linear memory that were; 0 where it was evicted already. Raises
        ActorBusy, ActorClosed, SnapshotError; it stays in memory then.
        """
        self._life.take(State.EVICTING)
        return self._evict_and_leave()

    def try_evict(self) -> int:
        """As `evict`, without waiting for anybody; 0 if something runs in it, or looks at it."""
        return self._evict_and_leave() if self._life.try_take(State.EVICTING) else 0

    @contextlib.contextmanager
    def pinned(self) -> Iterator[Body]:
        """Keeps it idle and in memory while open, so that its memory can be looked at.

        Without it, what `region` and `sessions` show may be evicted by another actor's need.
        Raises ActorBusy, ActorClosed, Overloaded, SettingsError for a command.
        """
        self._keeper.require_lasting()
        with self._held():
            yield self._keeper.present()

    @contextlib.contextmanager
    def inheriting(self, other: Actor) -> Iterator[None]:
        """While open, its prompts take over what they begin with in common with a session of
        `other`, which is idle and stays so: copied, and not computed, where the device can do that.
        For another build of the same guest, which is sent what was said before."""
        with other.pinned() as donor:
            context = self.body.context
            context.donors = donor.sessions
            try:
                yield
            finally:
                context.donors = ()

    # ------------------------------------------------------------------ parts

    def _evict_and_leave(self) -> int:
        try:
            return self._keeper.evict()
        finally:
            self._leave()

    def _leave_files(self, *, at_once: bool) -> None:
        """Has its memory leave the files that it maps, if nothing runs in it; `at_once`: what runs
        is cut off, and the actor closed. Waits for nobody."""
        if self._life.try_take(State.HELD):
            try:
                self._keeper.leave_files()
            finally:
                self._leave()
        elif at_once and self._life.state is not State.EVICTING:
            self._life.end(FILE_CHANGED)
            self.cancel()

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
        message.end(outcome)

    def _charge(self, message: Message) -> None:
        """Counts what a message, or the actor's beginning, has used."""
        self._usage.charge(message)
        errors = [it.error for it in message.tool_calls]
        self._platform.metrics.count(message.limits_reached, errors)


def _leave_files(actor: weakref.ref[Actor], at_once: bool) -> None:
    found = actor()
    if found is not None:
        found._leave_files(at_once=at_once)
