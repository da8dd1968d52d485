"""An agent: a guest with its sessions and its life, whether or not it is in memory now.

What takes memory is its `Body`, which may be evicted and brought back. `life.py` has its states.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from isthmus.actor.answering import Answering
from isthmus.actor.beginning import Frozen, Spawned
from isthmus.actor.body import Body
from isthmus.actor.command import CommandKeeper
from isthmus.actor.host_api import Granted
from isthmus.actor.keeper import FILE_CHANGED, Keeper, Notes
from isthmus.actor.life import Life, State
from isthmus.actor.message import AGAIN_S, Message
from isthmus.actor.platform import Platform
from isthmus.actor.shares import Share
from isthmus.actor.usage import Usage
from isthmus.actor.visit import Visit
from isthmus.counters import Counters
from isthmus.device.buffer import Binding
from isthmus.errors import ActorBusy, SettingsError
from isthmus.memory import Region
from isthmus.model import Model, Session
from isthmus.snapshot import Saved, Store
from isthmus.snapshot.store import target_of
from isthmus.wasm import Guest, Instance


class Actor(Answering):
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

    # ------------------------------------------------------------------ its end

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

    def fork(self, n: int = 1, *, args: Sequence[str] | None = None) -> list[Actor]:
        """`n` more actors that are what this one is now: memory, sessions, clock, random numbers.

        The first fork copies the memory in use once, into an image that parent and children share;
        further ones copy nothing until this actor handles a message. On a device whose pages cannot
        be mapped twice each fork is one copy, made by the device where it has the bytes. Given the
        same message, all of them answer the same. While a resumable guest answers, they are what it
        is at its next token, and `resume` goes on with the answer in each; it goes on by itself.
        `args` are the forks' options, by default its own. Raises ActorBusy, ActorClosed,
        Overloaded, RegionError, and SettingsError if `n` is less than 1.
        """
        if n < 1:
            raise SettingsError(f"cannot make {n} forks")
        return self._between_tokens(partial(self._children, n, args))

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
        name is replaced once everything is on the disk. While a resumable guest answers, it is
        saved at its next token, and goes on. Raises ActorBusy, ActorClosed, SnapshotError.
        """
        return self._between_tokens(partial(self._keeper.save, target_of(path), name, base))

    def try_checkpoint(self, store: Store, name: str) -> Saved | None:
        """As `snapshot` into a store, at the next token of the answer that it works on, or of the
        one that is paused; None if it works on none, or its guest is not resumable.

        Raises ActorBusy while a tool works for it, ActorClosed, SnapshotError.
        """
        save = partial(self._keeper.save, store, name)
        message = self._message
        if message is None:
            with self._held():
                return save() if self._keeper.paused is not None else None
        if not self.guest.is_resumable:
            return None
        found = self._visit(message, Visit(lambda: self._keeper.while_paused(save)))
        return found[0] if found else None

    def evict(self) -> int:
        """Saves it to a file of the runtime's and gives its memory back until it is next used.

        An answer that it works on is paused first, see `pause`. Returns how many bytes of linear
        memory that were; 0 where it was evicted already. Raises ActorBusy, ActorClosed,
        SnapshotError; it stays in memory then.
        """
        self.pause()
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

    def _children(self, n: int, args: Sequence[str] | None) -> list[Actor]:
        """Forks of what it is now."""
        children: list[Actor] = []
        frozen = self._keeper.origin()
        if args is not None:
            frozen = frozen.with_args(tuple(args))
        try:
            for _ in range(n):
                children.append(Actor(self._platform, self.guest, self._granted, frozen))
        except BaseException:
            for child in children:
                child.close()
            raise
        return children

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


def _leave_files(actor: weakref.ref[Actor], at_once: bool) -> None:
    found = actor()
    if found is not None:
        found._leave_files(at_once=at_once)
