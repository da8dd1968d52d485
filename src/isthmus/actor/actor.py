"""A guest instance with its sessions and its life.

=========  =====================================================================================
state      what holds
=========  =====================================================================================
idle       nothing of it is on any stack: it can be frozen, forked and saved
running    one message is being handled: on the device's thread if it is free, or one of its own
closed     its memory is given back; also after a trap, since a guest that was cut off in the
           middle cannot go on
=========  =====================================================================================

Memory is freed in the order in which it is used: sessions and graphs, the device's binding, the
instance, and last the Region. Nothing here copies tensor data: `counters.bytes_copied` stays 0.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from isthmus.abi import Errno
from isthmus.actor.beginning import Frozen, Home, Spawned
from isthmus.actor.host_api import Exchange, Granted, HostApi
from isthmus.actor.pages import Pages
from isthmus.actor.snapshot import Restoration, describe
from isthmus.actor.state import ActorState, Reopen, read_handles
from isthmus.actor.stream import CANCEL_AGAIN_S, Pieces, Reply, Stream
from isthmus.actor.tensor import Checker, Copies, TensorUnit
from isthmus.counters import Counters
from isthmus.errors import (
    ActorBusy,
    ActorClosed,
    Cancelled,
    ContextFull,
    GuestFailed,
    IsthmusError,
    SettingsError,
    SnapshotMismatch,
)
from isthmus.memory import Region
from isthmus.model import Session
from isthmus.snapshot import Draft, Saved, Store, save_file
from isthmus.snapshot.store import target_of
from isthmus.units import WASM_PAGE, align_up
from isthmus.wasm import Guest, Instance, Wasi, read_globals, write_globals
from isthmus.wasm.guest import ON_REPLAY


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
        """Messages that were begun in all its life."""
        self.counters = Counters()
        self._home = home
        self._granted = granted
        self._clock = state.clock()
        self._random = state.random()
        self._running = threading.Lock()
        self._closed_because: str | None = None
        self._exchange: Exchange | None = None
        self._frozen: Frozen | None = None
        self._snapshot_id = beginning.snapshot_id if isinstance(beginning, Frozen) else None
        self.restored = beginning.restoration if isinstance(beginning, Frozen) else None
        """How exactly it was restored from a snapshot; None where it was not."""
        with contextlib.ExitStack() as stack:
            self._api = HostApi(granted, self._clock, self._random, self.counters, self._check)
            self._api.log_position = state.log_position
            self.instance = stack.enter_context(self._instantiate())
            self._pages = Pages(self.region, remappable=home.device.remaps)
            if isinstance(beginning, Frozen):
                self._thaw_memory(beginning)
            self.binding = stack.enter_context(home.device.bind(self.region))
            unit = self._tensor_unit(copy_tensors=beginning.copy_tensors)
            stack.callback(unit.close)
            stack.callback(self._api.close)
            self._api.attach(self.region, self.instance.memory, self.binding, unit)
            if isinstance(beginning, Frozen):
                self._thaw_handles(beginning)
            else:
                self.instance.initialize(self._initial_deadline())
            self._stack = stack.pop_all()
        home.adopt(self)

    def __repr__(self) -> str:
        return f"<Actor of {self.guest.name}: {self.state}>"

    # ------------------------------------------------------------------ state

    @property
    def state(self) -> str:
        """`idle`, `running` or `closed`."""
        if self._closed_because is not None:
            return "closed"
        return "running" if self._running.locked() else "idle"

    @property
    def region(self) -> Region:
        """The guest's linear memory."""
        return self.instance.region

    @property
    def sessions(self) -> list[Session]:
        """Its open sessions, oldest first."""
        return self._api.handles.all(Session)

    @property
    def log_position(self) -> int:
        """How many records its guest has logged in all its life."""
        return self._api.log_position

    # ------------------------------------------------------------------ messages

    def send(self, message: str | bytes, *, deadline_s: float | None = None) -> Reply:
        """Has the guest handle a message and waits for the answer.

        `deadline_s` is in seconds, by default `limits.deadline_s`. Raises GuestError and what it
        stands for where the guest fails, ContextFull, ActorBusy, ActorClosed, DeviceFailed.
        Ctrl-C ends the message and raises KeyboardInterrupt.
        """
        stream = self.stream(message, deadline_s=deadline_s)
        for _ in stream:
            pass
        return stream.reply

    def stream(self, message: str | bytes, *, deadline_s: float | None = None) -> Stream:
        """As `send`, giving the pieces of the answer as they come: iterate over the result.

        The guest works in another thread, from now on. Closing the iterator, or leaving it by
        an exception such as Ctrl-C, asks the guest to stop.
        """
        data = message.encode() if isinstance(message, str) else bytes(message)
        limit = self.limits.deadline_s if deadline_s is None else deadline_s
        self._begin()
        return Stream(self, data, limit)

    def stop(self) -> None:
        """Asks the guest to finish its answer soon: its next host calls say ECANCELED."""
        exchange = self._exchange
        if exchange is not None:
            exchange.stopping = True

    def cancel(self) -> None:
        """Cuts the running message off. The actor is closed by it."""
        self.instance.cancel()

    def close(self) -> None:
        """Ends what is running and gives everything back; a second call does nothing."""
        if self._closed_because is None:
            self._closed_because = "close() was called"
        while not self._running.acquire(timeout=CANCEL_AGAIN_S):
            self.instance.cancel()
        self._stack.close()
        self._running.release()

    def __enter__(self) -> Actor:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ------------------------------------------------------------------ copies of it

    def fork(self, n: int = 1) -> list[Actor]:
        """`n` more actors that are what this one is now: memory, sessions, clock, random numbers.

        The first fork copies the memory in use once, into an image that parent and children share;
        further ones copy nothing until this actor handles a message. Given the same message, all
        of them answer the same. Raises ActorBusy, ActorClosed, RegionError.
        """
        if n < 1:
            raise SettingsError(f"cannot make {n} forks")
        children: list[Actor] = []
        with self._idle():
            frozen = self._freeze()
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
            if isinstance(target, Store):
                parent = self._snapshot_id if base is None else target.id_of(base, key)
                draft = self._describe(parent)
                saved = target.save(draft, name, key)
                self._pages.track(draft.memory)
            elif name is None and base is None:
                saved = save_file(self._describe(self._snapshot_id), target, key)
            else:
                raise SettingsError(
                    "name and base are for stores: give a folder that exists, or a Store"
                )
            self._snapshot_id = saved.id
        return saved

    # ------------------------------------------------------------------ parts

    def _check(self) -> None:
        self.instance.check()

    def _instantiate(self) -> Instance:
        wasi = Wasi(
            args=[self.guest.name, *self.args],
            clock_ns=self._clock.read,
            random=self._random.draw,
            log=self._api.write_stream,
        )
        return Instance(
            self._home.engine,
            self.guest,
            handlers=self._api.functions(),
            wasi=wasi,
            memory_limit_nbytes=self.limits.memory_nbytes,
            counters=self.counters,
            reserve=self.device.reserve,
        )

    def _tensor_unit(self, *, copy_tensors: bool) -> TensorUnit:
        memory = self.instance.memory
        return TensorUnit(
            self.device,
            self._home.backend,
            self.binding,
            Checker(memory, self._api.handles),
            self.counters,
            Copies(self.device, memory) if copy_tensors else None,
        )

    def _initial_deadline(self) -> float | None:
        deadline = self.limits.deadline_s
        return None if deadline is None else time.monotonic() + deadline

    def _begin(self) -> None:
        """Takes the actor for one message or one look at it."""
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

    def _thaw_memory(self, frozen: Frozen) -> None:
        self.instance.grow_memory(frozen.image.nbytes)
        self.counters.bytes_restored += self._pages.load(frozen.image, frozen.chunks)
        if frozen.verify is not None:
            frozen.verify(self.region.base)
        write_globals(self.instance, frozen.state.globals)

    def _thaw_handles(self, frozen: Frozen) -> None:
        how = frozen.restoration
        reopen = Reopen(
            self._granted.models,
            self.limits,
            self.region,
            self.binding,
            grow=self._grow_memory,
            replay=how.replayed if how else frozenset(),
            drop=how.foreign if how else frozenset(),
        )
        reopen.fill(self._api.handles, frozen.state)
        if how is not None and how.foreign:
            self._replay_in_guest(how)
        if how is None or not how.replayed:
            self._frozen = replace(frozen, restoration=None, verify=None)

    def _replay_in_guest(self, how: Restoration) -> None:
        """The guest's sessions are closed: tokens of one vocabulary mean nothing in another."""
        if ON_REPLAY not in self.guest.functions:
            raise SnapshotMismatch(
                f"the tokenizer is another, and {self.guest.name} does not export {ON_REPLAY}, "
                "which opens its sessions anew",
                how.reasons,
            )
        code = self.instance.call(ON_REPLAY, deadline=self._initial_deadline())
        if code != 0:
            raise _failure(-code)

    def _grow_memory(self, nbytes: int) -> int:
        begin = self.region.nbytes
        self.instance.grow_memory(align_up(begin + nbytes, WASM_PAGE))
        return begin

    def _state(self) -> ActorState:
        handles = self._api.handles
        return ActorState(
            args=self.args,
            globals=read_globals(self.instance),
            opened=read_handles(handles, self._granted.models),
            last_handle=handles.last,
            seed=self.seed,
            n_random_blocks=self._random.n_blocks,
            clock_ns=self._clock.now_ns,
            log_position=self._api.log_position,
            n_messages=self.n_messages,
        )

    def _freeze(self) -> Frozen:
        """The actor as it is now; the same object as before where nothing happened since."""
        frozen = self._frozen
        if frozen is None or frozen.state.n_messages != self.n_messages:
            frozen = Frozen(self._state(), self._pages.freeze(), snapshot_id=self._snapshot_id)
        self._frozen = frozen
        return frozen

    def _describe(self, parent: str | None) -> Draft:
        home = self._home
        return describe(
            self.guest,
            home.device_record,
            self._granted,
            self._state(),
            self._pages.source(),
            parent,
            home.version,
        )

    def _work(
        self,
        exchange: Exchange,
        pieces: Pieces,
        deadline_s: float | None,
        ended: threading.Event,
    ) -> None:
        """Handles a message and puts what came of it behind the last piece."""
        start = time.monotonic()
        outcome: Reply | BaseException
        try:
            self._handle(exchange, deadline_s)
            data = bytes(exchange.emitted) if exchange.reply is None else exchange.reply
            outcome = Reply(data, exchange.n_tokens, time.monotonic() - start)
        except BaseException as error:  # carried to whoever iterates
            outcome = error
        self._running.release()
        pieces.put(outcome)
        ended.set()

    def _handle(self, exchange: Exchange, deadline_s: float | None) -> None:
        """Runs the guest on one message, in the calling thread."""
        self._exchange = exchange
        self.n_messages += 1
        self._api.begin(exchange)
        deadline = None if deadline_s is None else time.monotonic() + deadline_s
        try:
            code = self.instance.call("on_message", len(exchange.message), deadline=deadline)
        except BaseException as error:
            self._closed_because = f"its last message ended with: {error}"
            self._stack.close()
            raise
        finally:
            self._exchange = None
        exchange.finish()
        if code != 0:
            raise _failure(-code)


def _failure(code: int) -> IsthmusError:
    """What on_message's errno means to the caller."""
    if code == Errno.ECONTEXT:
        return ContextFull(
            "the session's context has no room for this message; "
            "give the guest a larger n_ctx, or begin a new conversation"
        )
    if code == Errno.ECANCELED:
        return Cancelled("the message was stopped before it was answered")
    return GuestFailed(code)
