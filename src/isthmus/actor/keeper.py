"""Where an actor's body is: in memory, or in the file that it was evicted to.

========  ====================================================================================
it is     what there is
========  ====================================================================================
present   a Body; maybe also a Frozen, which is what the body was at some message
evicted   its memory in a file, which `present` makes a Body of
gone      nothing: the actor is closed
========  ====================================================================================

The caller has taken the actor (`Life.take`). Nothing here looks at its `Life`, except to end it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from isthmus.actor.ask import Aside
from isthmus.actor.beginning import Frozen, Spawned
from isthmus.actor.body import Body
from isthmus.actor.eviction import Evicted
from isthmus.actor.host_api import Granted
from isthmus.actor.life import Life
from isthmus.actor.message import Message
from isthmus.actor.paused import Paused
from isthmus.actor.platform import Platform
from isthmus.actor.snapshot import describe
from isthmus.actor.state import ActorState
from isthmus.actor.usage import Usage
from isthmus.counters import Counters
from isthmus.errors import (
    ActorBusy,
    AnswerPaused,
    Cancelled,
    IsthmusError,
    ModelFileError,
    RegionError,
    SettingsError,
    SnapshotError,
)
from isthmus.memory import Image, LiveImage
from isthmus.snapshot import Draft, MemorySource, Saved, Store, save_file
from isthmus.wasm import Guest

_Result = TypeVar("_Result")
FILE_CHANGED = (
    "another process writes to the file that it was restored from, and its memory could not be "
    "copied in time; restore it again, and replace such files by renaming others"
)


class Notes(NamedTuple):
    """The parts of an actor that its Keeper writes to."""

    life: Life
    usage: Usage
    counters: Counters


class Keeper:
    """See the module. One for each actor; used by one thread at a time."""

    def __init__(
        self,
        platform: Platform,
        guest: Guest,
        granted: Granted,
        beginning: Spawned | Frozen,
        notes: Notes,
        leave: Callable[..., None],
    ) -> None:
        """`leave(at_once=…)` is called by another thread when somebody wants to write to a file
        that the body maps. It must have `leave_files` called."""
        self._platform = platform
        self._guest = guest
        self._granted = granted
        self._life, self._usage, self._counters = notes
        self._leave = leave
        self.n_messages = beginning.state.n_messages
        """Messages that were begun in all its life, but for those that were undone."""
        self._evicted: Evicted | None = None
        self._frozen: Frozen | None = None
        self._frozen_at = (-1, -1)
        how = beginning.restoration if isinstance(beginning, Frozen) else None
        self._snapshot_id = beginning.snapshot_id if isinstance(beginning, Frozen) else None
        self._account = platform.budget.account()
        self.body: Body | None = self._begin(beginning)
        """The body, while there is one in memory."""
        if self.body is not None and isinstance(beginning, Frozen) and not (how and how.replayed):
            self._remember(beginning.plain(), self.body)

    def require_lasting(self) -> None:
        """SettingsError unless there is something of it between two messages."""

    @property
    def is_evicted(self) -> bool:
        """Whether the body is a file."""
        return self._evicted is not None

    @property
    def paused(self) -> Paused | None:
        """The message in whose middle it is, while nothing runs in it."""
        if self._evicted is not None:
            return self._evicted.state.message
        return self.body.pauses.paused if self.body is not None else None

    def while_paused(self, work: Callable[[], _Result]) -> _Result:
        """What `work` returns, done between two tokens of a message."""
        self._frozen = None
        try:
            return work()
        finally:
            self._frozen = None  # the message goes on

    async def handle(self, message: Message) -> None:
        """Runs the guest on one message, or on the rest of one that was paused, and sees to what
        becomes of the actor if that fails. Raises AnswerPaused."""
        body = self.body
        if body is None:
            body = await Aside(message, self.present)
        before, on_failure = None, self._granted.limits.on_failure
        if on_failure == "undo":
            before = await Aside(message, partial(self.freeze, body))
        if message.inherited is None:
            self.n_messages += 1
        self._frozen = None
        cut_off = False
        error: BaseException | None
        try:
            code = await body.handle(message)
            error = message.failure(-code) if code else None
            if not code and message.tokens_out and any(it.is_full for it in body.sessions):
                message.reached("n_ctx")
        except AnswerPaused:
            raise
        except BaseException as why:
            cut_off, error = True, why
        if error is not None:
            is_wanted = isinstance(error, Cancelled) and not cut_off
            if cut_off or not (is_wanted or on_failure == "keep"):
                await Aside(message, partial(self.after_failure, error, before))
                if before is not None:
                    await Aside(message, message.take_back, blocks=True)
            before = None  # whoever keeps the error need not keep the agent's memory
            raise error

    def present(self) -> Body:
        """The body, brought back if it is evicted."""
        if self.body is None:
            evicted = self._evicted
            assert evicted is not None
            self.body = self._settle(self._new_body(evicted.frozen()))
            self._evicted = None
            evicted.remove()
            self._platform.metrics.returns.inc()
        return self.body

    def evict(self) -> int:
        """Moves the body's memory to a file; returns how many bytes that gave back.

        ActorBusy if somebody looks at its memory, SnapshotError.
        """
        body = self.body
        if body is None:
            return 0
        if body.is_watched:
            raise ActorBusy("somebody looks at the actor's memory; it cannot be evicted")
        path, nbytes = self._platform.eviction_path(), body.region.nbytes
        state = body.state(self.n_messages)
        try:
            with body.on_host():
                used, chunks = body.pages.write(path)
        except RegionError as error:
            raise SnapshotError(str(error)) from None
        self._evicted = Evicted(path, nbytes, used, chunks, state, self._snapshot_id)
        self.body = self._frozen = None
        body.close()
        self._account.clear()
        self._usage.evictions += 1
        self._platform.metrics.evictions.inc()
        return nbytes

    def leave_files(self) -> None:
        """Has the body map no file any more: freezes or evicts it, or else closes the actor."""
        body, life = self.body, self._life
        if body is None or not body.region.maps_files:
            return
        self._frozen = None
        for way in (self.freeze, lambda _: self.evict()):
            if life.closed_because is None and body.region.maps_files:
                with contextlib.suppress(IsthmusError):
                    way(body)
        if self.body is body and body.region.maps_files:
            life.end(FILE_CHANGED)
            with contextlib.suppress(IsthmusError):  # held by a view: asked again
                self.drop()

    def origin(self) -> Frozen:
        """The state that forks which are made now begin from."""
        body = self.present()
        if self._platform.device.remaps:
            return self.freeze(body)
        image = LiveImage(body.region.nbytes, body.binding.copy_to)
        state = body.state(self.n_messages)
        return Frozen(state, image, snapshot_id=self._snapshot_id, caches=body.binding)

    def freeze(self, body: Body) -> Frozen:
        """The actor as it is now; the same object as before if nothing happened since."""
        frozen = self._frozen
        if frozen is None or self._frozen_at != (self.n_messages, body.region.n_views):
            state = body.state(self.n_messages)
            with body.on_host(), self._closed_if_lost(body):
                frozen = Frozen(state, body.pages.freeze(), snapshot_id=self._snapshot_id)
        self._remember(frozen, body)
        return frozen

    def after_failure(self, error: BaseException, before: Frozen | None) -> None:
        """Makes the actor what it was before a message that failed, or closes it."""
        life, why = self._life, f"its last message ended with: {error}"
        try:
            if before is not None and life.closed_because is None:
                self._undo(before)
                return
            life.end(why)
            self.drop()
        except Exception as second:  # the caller hears of the first; this one closes the actor
            life.end(f"{why}, and could not be undone: {second}")

    def _undo(self, before: Frozen) -> None:
        """Becomes what it was before the message, in the memory that it has."""
        body = self.body
        assert body is not None
        with self._account.keep():
            body.close()
            self.body = None
            self.body = self._settle(self._new_body(before))
        self.n_messages = before.state.n_messages
        self._remember(before, self.body)
        self._count_undone()

    def _count_undone(self) -> None:
        self._usage.undone += 1
        self._platform.metrics.rollbacks.inc()

    def save(
        self, target: Path | Store, name: str | None = None, base: Saved | str | None = None
    ) -> Saved:
        """Saves it whole; see `Actor.snapshot`."""
        body = self.present()
        with body.on_host():
            memory = body.pages.source()
            saved = self._save(body.state(self.n_messages), memory, target, name, base)
            if isinstance(target, Store):
                with self._closed_if_lost(body):
                    body.pages.track(memory)
        return saved

    def drop(self) -> None:
        """Gives the memory back, or the file."""
        evicted, self._evicted, self._frozen = self._evicted, None, None
        if evicted is not None:
            evicted.remove()
        if self.body is not None:
            self.body.close()  # if that cannot be, it is there for another try
        self.body = None
        self._account.clear()

    # ------------------------------------------------------------------ parts

    def _begin(self, beginning: Spawned | Frozen) -> Body | None:
        """The body that there is from the beginning."""
        return self._settle(self._new_body(beginning))

    def _new_body(self, beginning: Spawned | Frozen) -> Body:
        try:
            return Body(
                self._platform, self._guest, self._granted, beginning, self._counters, self._account
            )
        except BaseException:
            self._account.clear()
            raise

    def _save(
        self,
        state: ActorState,
        memory: MemorySource,
        target: Path | Store,
        name: str | None,
        base: Saved | str | None,
    ) -> Saved:
        """Writes a snapshot, which the next one succeeds."""
        key = self._platform.snapshot_key
        if isinstance(target, Store):
            parent = self._snapshot_id if base is None else target.id_of(base, key)
            saved = target.save(self._describe(state, memory, parent), name, key)
        elif name is None and base is None:
            saved = save_file(self._describe(state, memory), target, key)
        else:
            raise SettingsError(
                "name and base are for stores: give a folder that exists, or a Store"
            )
        self._snapshot_id = saved.id
        return saved

    def _settle(self, body: Body) -> Body:
        """Has its memory leave files as soon as another process wants to write to one."""
        if body.region.maps_files:
            body.region.leave = self._leave
        return body

    @contextlib.contextmanager
    def _closed_if_lost(self, body: Body) -> Iterator[None]:
        """Closes the actor where its memory could be put neither over an image nor back."""
        try:
            yield
        except BaseException as error:
            if body.pages.lost:
                self._life.end(f"its memory was lost: {error}")
                with contextlib.suppress(IsthmusError):  # held by a view: close() tries again
                    self.drop()
            raise

    def _remember(self, frozen: Frozen, body: Body) -> None:
        """What it is now, until a message or a writable view may change it."""
        self._frozen = frozen if isinstance(frozen.image, Image) else None
        self._frozen_at = (self.n_messages, body.region.n_views)

    def _describe(
        self, state: ActorState, memory: MemorySource, parent: str | None = None
    ) -> Draft:
        """A snapshot that succeeds `parent`, by default the last one."""
        platform = self._platform
        try:
            return describe(
                self._guest,
                platform.device_record,
                self._granted,
                state,
                memory,
                parent or self._snapshot_id,
                platform.version,
            )
        except OSError as error:  # a model's or library's file, whose hash is part of it, is gone
            raise SnapshotError(f"cannot read {error.filename}: {error.strerror}") from None
        except ModelFileError as error:  # or another one has its name
            raise SnapshotError(str(error)) from None
