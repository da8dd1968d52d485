"""An agent: a guest with its sessions and its life, whether or not it is in memory now.

=========  =====================================================================================
state      what holds
=========  =====================================================================================
idle       nothing of it is on any stack: it can be frozen, forked, saved and evicted
running    one message waits for a thread or is being handled; nothing else may touch its body
evicted    its body is a file, which the next message, or look at it, brings back
closed     its memory is given back
=========  =====================================================================================

What takes memory is its `Body`, which it may lose and get again. What stays is here: who it is,
what it was given, what it used.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from isthmus.actor.beginning import Frozen, Home, Spawned
from isthmus.actor.body import Body
from isthmus.actor.exchange import Exchange, Reply, failure
from isthmus.actor.host_api import Granted
from isthmus.actor.snapshot import describe
from isthmus.actor.stream import CANCEL_AGAIN_S, Deliver, Message, Stream
from isthmus.actor.usage import Usage
from isthmus.config import require_deadline
from isthmus.counters import Counters
from isthmus.device.buffer import Binding
from isthmus.errors import (
    ActorBusy,
    ActorClosed,
    Cancelled,
    IsthmusError,
    LimitExceeded,
    ModelFileError,
    SettingsError,
    SnapshotError,
)
from isthmus.memory import Image, LiveImage, Region
from isthmus.model import Session
from isthmus.snapshot import Draft, Saved, Store, open_snapshot, save_file
from isthmus.snapshot.store import target_of
from isthmus.wasm import Guest, Instance

_FILE_CHANGED = (
    "another process writes to the file that it was restored from, and its memory could not be "
    "copied in time; restore it again, and replace such files by renaming others"
)


class Actor:
    """See the module. Made by `Runtime.spawn`; its methods may be called from any thread."""

    def __init__(
        self, home: Home, guest: Guest, granted: Granted, beginning: Spawned | Frozen
    ) -> None:
        state = beginning.state
        self.guest = guest
        self.device = home.device
        self.limits = granted.limits
        self.seed = state.seed
        self.args = state.args
        self.n_messages = state.n_messages
        """Messages that were begun in all its life, but for those that were undone."""
        self.counters = Counters()
        self.last_used = time.monotonic()
        """When its last message ended, on the clock of time.monotonic."""
        self._home = home
        self._granted = granted
        self._usage = Usage()
        self._running = threading.Lock()
        self._evicting = threading.Lock()
        """Taken before `_running`; whoever wants the actor waits for an eviction, and hears nothing
        of it."""
        self._closed_because: str | None = None
        self._message: Message | None = None
        self._evicted: Path | None = None
        self._frozen: Frozen | None = None
        self._frozen_at = (-1, -1)
        self._snapshot_id = beginning.snapshot_id if isinstance(beginning, Frozen) else None
        self.restored = beginning.restoration if isinstance(beginning, Frozen) else None
        """How exactly it was restored from a snapshot; None where it was not."""
        self._account = home.budget.account()
        self._worker = 0
        """The thread that handles its message."""
        self._body: Body | None = self._new_body(beginning)
        if isinstance(beginning, Frozen) and not (self.restored and self.restored.replayed):
            self._remember(beginning.plain(), self._body)
        self._charge(self._body.api.exchange)
        self._settle(self._body)
        try:
            home.adopt(self)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<Actor of {self.guest.name}: {self.state}>"

    # ------------------------------------------------------------------ state

    @property
    def state(self) -> str:
        """`idle`, `running`, `evicted` or `closed`."""
        if self._closed_because is not None:
            return "closed"
        if self._running.locked():
            return "running"
        return "idle" if self._body else "evicted"

    @property
    def usage(self) -> Usage:
        """What it has used so far and has now: a copy."""
        body = self._body
        if body is None:
            return self._usage.now(0, 0, 0)
        sessions = body.sessions
        kv_nbytes = sum(session.layout.kv_nbytes for session in sessions)
        return self._usage.now(body.region.nbytes, kv_nbytes, len(sessions))

    @property
    def body(self) -> Body:
        """Its instance, memory and sessions, brought back if it is evicted. ActorClosed."""
        body = self._body
        if body is None or self._closed_because is not None:
            with self._idle():
                return self._present()
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
        return self.body.api.log_position

    # ------------------------------------------------------------------ messages

    def send(self, message: str | bytes, *, deadline_s: float | None = None) -> Reply:
        """Has the guest handle a message and waits for the answer.

        `deadline_s` is in seconds, by default `limits.deadline_s`, and includes the wait for a
        thread. Raises GuestError and what it stands for where the guest fails, LimitExceeded,
        ContextFull, ActorBusy, ActorClosed, Overloaded, DeviceFailed. Ctrl-C ends the message and
        raises KeyboardInterrupt.
        """
        stream = self._submit(message, deadline_s, whole=True)
        for _ in stream:
            pass
        return stream.reply

    def stream(
        self,
        message: str | bytes,
        *,
        deadline_s: float | None = None,
        deliver: Deliver | None = None,
    ) -> Stream:
        """As `send`, giving the pieces of the answer as they come: iterate over the result.

        Or, with `deliver`, each piece is given to it, and at the end the Reply or the error, on the
        thread that handles the message; there is nothing to iterate over then.

        The guest works in another thread, from now on or once there is one. Closing the iterator,
        or leaving it by an exception such as Ctrl-C, asks the guest to stop.
        """
        return self._submit(message, deadline_s, deliver)

    def _submit(
        self,
        message: str | bytes,
        deadline_s: float | None,
        deliver: Deliver | None = None,
        *,
        whole: bool = False,
    ) -> Stream:
        require_deadline(deadline_s)
        if not isinstance(message, str | bytes | bytearray | memoryview):
            raise SettingsError(f"a message is text or bytes, not {type(message).__name__}")
        data = _bytes_of(message)
        limit = self.limits.deadline_s if deadline_s is None else deadline_s
        self._begin()
        sent = self._message = Message(data, limit, deliver, whole=whole)
        try:
            sent.ticket = self._home.workers.submit(
                partial(self._work, sent), hosted=self.guest.trusted
            )
        except BaseException:
            self._message = None
            self._running.release()
            raise
        return Stream(self, sent)

    def stop(self) -> None:
        """Asks the guest to finish its answer soon: its next host calls say ECANCELED."""
        message = self._message
        if message is not None:
            message.exchange.stopping = True
            self.interrupt()

    def interrupt(self) -> None:
        """Has the running message look at once whether it is to end."""
        body = self._body
        if body is not None:
            body.interrupt()

    def cancel(self) -> None:
        """Cuts the running message off, as a failure: see `Limits.on_failure`."""
        message, body = self._message, self._body
        if message is not None:
            message.exchange.cut_off = True  # also if it has not begun yet
            if self.abandon(message):
                return
        if body is not None:
            body.cancel()

    def abandon(self, message: Message) -> bool:
        """Ends a message that still waits for a thread; False where there is none such."""
        if not message.withdraw():
            return False
        try:
            message.require_time()
            raise Cancelled("the message was stopped before it was begun")
        except IsthmusError as error:
            self._end(message, error)
        return True

    def close(self) -> None:
        """Ends what is running and gives everything back; a second call does nothing.

        Raises RegionBusy while somebody looks at its memory: it is closed then, and a second call
        gives the memory back. ActorBusy from a tool that its own message called.
        """
        if self._worker == threading.get_ident():
            raise ActorBusy("a tool cannot close the actor that calls it; let it return first")
        if self._closed_because is None:
            self._closed_because = "close() was called"
        while not self._running.acquire(timeout=CANCEL_AGAIN_S):
            self.cancel()
        try:
            self._drop()
        finally:
            self._running.release()

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
        with self._idle():
            frozen = self._origin(self._present())
            try:
                for _ in range(n):
                    children.append(Actor(self._home, self.guest, self._granted, frozen))
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
        key = self._home.snapshot_key
        target = target_of(path)
        with self._idle():
            body = self._present()
            with body.binding.on_host():
                saved = self._save(body, target, name, base, key)
            self._snapshot_id = saved.id
        return saved

    def evict(self) -> int:
        """Saves it to a file of the runtime's and gives its memory back until it is next used.

        Returns how many bytes of linear memory that were; 0 where it was evicted already. Raises
        ActorBusy, ActorClosed, SnapshotError; it stays in memory then.
        """
        with self._evicting:
            self._take()
            try:
                return self._evict()
            finally:
                self._running.release()

    @contextlib.contextmanager
    def pinned(self) -> Iterator[Body]:
        """Keeps it idle and in memory while open, so that its memory can be looked at.

        Without it, what `region` and `sessions` show may be evicted by another actor's need.
        Raises ActorBusy, ActorClosed, Overloaded.
        """
        with self._idle():
            yield self._present()

    # ------------------------------------------------------------------ parts

    def _evict(self) -> int:
        """See `evict`. Only while `_running` is held."""
        body = self._body
        if body is None:
            return 0
        if body.is_watched:
            raise ActorBusy("somebody looks at the actor's memory; it cannot be evicted")
        path = self._home.eviction_path()
        save_file(self._describe(body, self._snapshot_id), path, self._home.snapshot_key)
        nbytes = body.region.nbytes
        self._evicted, self._body, self._frozen = path, None, None
        body.close()
        self._account.clear()
        self._usage.evictions += 1
        self._home.metrics.evictions.inc()
        return nbytes

    def _settle(self, body: Body) -> Body:
        """Has its memory leave files as soon as another process wants to write to one."""
        if body.region.maps_files:
            body.region.leave = partial(_leave_files, weakref.ref(self))
        return body

    def _leave_files(self, *, at_once: bool) -> None:
        """Has its memory leave the files that it maps, if nothing runs in it; `at_once`: what runs
        is cut off, and the actor closed. Waits for nobody."""
        if not self._evicting.acquire(blocking=False):
            return
        try:
            if self._running.acquire(blocking=False):
                try:
                    self._leave()
                finally:
                    self._running.release()
            elif at_once:
                self._closed_because = self._closed_because or _FILE_CHANGED
                self.cancel()
        finally:
            self._evicting.release()

    def _leave(self) -> None:
        """Freezes, evicts or closes it. Only while `_running` is held."""
        body = self._body
        if body is None or not body.region.maps_files:
            return
        self._frozen = None
        for way in (self._freeze, lambda _: self._evict()):
            if self._closed_because is None and body.region.maps_files:
                with contextlib.suppress(IsthmusError):
                    way(body)
        if self._body is body and body.region.maps_files:
            self._closed_because = self._closed_because or _FILE_CHANGED
            with contextlib.suppress(IsthmusError):  # held by a view: asked again
                self._drop()

    def _begin(self) -> None:
        """Takes the actor for one message or one look at it, after an eviction at most."""
        with self._evicting:
            self._take()

    def _take(self) -> None:
        if self._closed_because is not None:
            raise ActorClosed(f"the actor is closed: {self._closed_because}")
        if not self._running.acquire(blocking=False):
            raise ActorBusy("the actor is handling another message; it takes one at a time")

    @contextlib.contextmanager
    def _idle(self) -> Iterator[None]:
        """While open nothing runs in the actor, and its memory stays as it is."""
        self._begin()
        try:
            yield
        finally:
            self._running.release()

    def _new_body(self, beginning: Spawned | Frozen) -> Body:
        try:
            return Body(
                self._home, self.guest, self._granted, beginning, self.counters, self._account
            )
        except BaseException:
            self._account.clear()
            raise

    def _present(self) -> Body:
        """The body, brought back if it is evicted. Only while `_running` is held."""
        if self._body is None:
            path = self._evicted
            assert path is not None
            snapshot = open_snapshot(path, self._home.snapshot_key)
            self._body = self._settle(self._new_body(Frozen.of(snapshot)))
            self._evicted = None
            path.unlink(missing_ok=True)  # the mapping keeps the bytes
            self._home.metrics.returns.inc()
        return self._body

    def _drop(self) -> None:
        """Gives the memory back, or the file. Only while `_running` is held."""
        path, self._evicted, self._frozen = self._evicted, None, None
        if path is not None:
            path.unlink(missing_ok=True)
        if self._body is not None:
            self._body.close()  # if that cannot be, it is there for another try
        self._body = None
        self._account.clear()

    def _origin(self, body: Body) -> Frozen:
        """What forks that are made at once begin as."""
        if self._home.device.remaps:
            return self._freeze(body)
        image = LiveImage(body.region.nbytes, body.binding.copy_to)
        return Frozen(body.state(self.n_messages), image, snapshot_id=self._snapshot_id)

    def _freeze(self, body: Body) -> Frozen:
        """The actor as it is now; the same object as before where nothing happened since."""
        frozen = self._frozen
        if frozen is None or self._frozen_at != (self.n_messages, body.region.n_views):
            state = body.state(self.n_messages)
            with body.binding.on_host(), self._closed_if_lost(body):
                frozen = Frozen(state, body.pages.freeze(), snapshot_id=self._snapshot_id)
        self._remember(frozen, body)
        return frozen

    @contextlib.contextmanager
    def _closed_if_lost(self, body: Body) -> Iterator[None]:
        """Closes the actor where its memory could be put neither over an image nor back."""
        try:
            yield
        except BaseException as error:
            if body.pages.lost:
                self._closed_because = f"its memory was lost: {error}"
                with contextlib.suppress(IsthmusError):  # held by a view: close() tries again
                    self._drop()
            raise

    def _remember(self, frozen: Frozen, body: Body) -> None:
        """What it is now, until a message or a writable view may change it."""
        self._frozen = frozen if isinstance(frozen.image, Image) else None
        self._frozen_at = (self.n_messages, body.region.n_views)

    def _save(
        self,
        body: Body,
        target: Path | Store,
        name: str | None,
        base: Saved | str | None,
        key: bytes | None,
    ) -> Saved:
        if isinstance(target, Store):
            parent = self._snapshot_id if base is None else target.id_of(base, key)
            draft = self._describe(body, parent)
            saved = target.save(draft, name, key)
            with self._closed_if_lost(body):
                body.pages.track(draft.memory)
            return saved
        if name is None and base is None:
            return save_file(self._describe(body, self._snapshot_id), target, key)
        raise SettingsError("name and base are for stores: give a folder that exists, or a Store")

    def _describe(self, body: Body, parent: str | None) -> Draft:
        home = self._home
        try:
            return describe(
                self.guest,
                home.device_record,
                self._granted,
                body.state(self.n_messages),
                body.pages.source(),
                parent,
                home.version,
            )
        except OSError as error:  # a model's or library's file, whose hash is part of it, is gone
            raise SnapshotError(f"cannot read {error.filename}: {error.strerror}") from None
        except ModelFileError as error:  # or another one has its name
            raise SnapshotError(str(error)) from None

    def _work(self, message: Message) -> None:
        """Handles a message and puts what came of it behind the last piece."""
        start = time.monotonic()
        metrics, exchange = self._home.metrics, message.exchange
        outcome: Reply | BaseException
        self._worker = threading.get_ident()
        try:
            message.require_time()
            self._handle(message)
            exchange.finish()
            seconds, reached = time.monotonic() - start, tuple(exchange.limits_reached)
            outcome = Reply(exchange.answer, exchange.n_tokens, seconds, reached)
        except BaseException as error:  # carried to whoever iterates
            outcome = error
        end = time.monotonic()
        self._usage.seconds += end - start
        metrics.message_wait.observe(start - message.sent)
        metrics.message.observe(end - start)
        self._end(message, outcome)

    def _end(self, message: Message, outcome: Reply | BaseException) -> None:
        self._note_usage(message, outcome)
        how = "answered" if isinstance(outcome, Reply) else type(outcome).__name__
        self._home.metrics.messages.labels(how).inc()
        message.exchange.forget()
        self._message, self._worker = None, 0
        self.last_used = time.monotonic()
        self._running.release()
        message.end(outcome)

    def _handle(self, message: Message) -> None:
        """Runs the guest on one message, in the calling thread."""
        body, exchange = self._present(), message.exchange
        before = self._freeze(body) if self.limits.on_failure == "undo" else None
        self.n_messages += 1
        cut_off = False
        error: BaseException | None
        try:
            code = body.handle(exchange, message.deadline)
            error = failure(-code, exchange) if code else None
        except BaseException as why:
            cut_off, error = True, why
        if error is not None:
            self._after_failure(error, cut_off, before)
            raise error

    def _note_usage(self, message: Message, outcome: Reply | BaseException) -> None:
        exchange = message.exchange
        if isinstance(outcome, LimitExceeded) and outcome.limit not in exchange.limits_reached:
            exchange.reached(outcome.limit)
        self._usage.messages += 1
        self._charge(exchange)

    def _charge(self, exchange: Exchange) -> None:
        """Counts what a message, or the actor's beginning, has used."""
        usage = self._usage
        usage.tokens_in += exchange.tokens_in
        usage.tokens_out += exchange.tokens_out
        usage.output_nbytes += exchange.output_nbytes
        usage.fuel += exchange.fuel
        usage.limits_reached.update(exchange.limits_reached)
        for limit, n in exchange.limits_reached.items():
            self._home.metrics.limits.labels(limit).inc(n)

    def _after_failure(self, error: BaseException, cut_off: bool, before: Frozen | None) -> None:
        """Goes on, goes back or closes: see `Limits.on_failure`."""
        if isinstance(error, Cancelled) and not cut_off:
            return
        policy = self.limits.on_failure
        undo = self._closed_because is None and policy == "undo" and before is not None
        if not undo and not cut_off and policy != "close":
            return
        try:
            if undo:
                assert before is not None
                self._undo(before)
                return
            self._closed_because = self._closed_because or f"its last message ended with: {error}"
            self._drop()
        except Exception as second:  # the caller hears of the first; this one closes the actor
            self._closed_because = self._closed_because or (
                f"its last message ended with: {error}, and could not be undone: {second}"
            )

    def _undo(self, before: Frozen) -> None:
        """Becomes what it was before the message, in the memory that it has."""
        body = self._body
        assert body is not None
        with self._account.keep():
            body.close()
            self._body = None
            self._body = self._settle(self._new_body(before))
        self.n_messages = before.state.n_messages
        self._remember(before, self._body)
        self._usage.undone += 1
        self._home.metrics.rollbacks.inc()


def _leave_files(actor: weakref.ref[Actor], at_once: bool) -> None:
    found = actor()
    if found is not None:
        found._leave_files(at_once=at_once)


def _bytes_of(message: str | bytes) -> bytes:
    try:
        return message.encode() if isinstance(message, str) else bytes(message)
    except UnicodeEncodeError as error:
        raise SettingsError(
            f"the message has U+{ord(error.object[error.start]):04X} at {error.start}, half of a "
            "character: give a text that UTF-8 can hold, or bytes"
        ) from None
