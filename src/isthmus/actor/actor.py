"""A guest instance with its sessions and its life.

=========  =====================================================================================
state      what holds
=========  =====================================================================================
idle       nothing of it is on any stack: memory, sessions, clock and random state are all it is
running    one message is being handled: on the device's thread if it is free, or one of its own
closed     its memory is given back; also after a trap, since a guest that was cut off in the
           middle cannot go on
=========  =====================================================================================

Memory is freed in the order in which it is used: sessions and graphs, the device's binding, the
instance, and last the Region. Nothing here copies tensor data: `counters.bytes_copied` stays 0.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from isthmus.abi import Errno
from isthmus.actor.host_api import Exchange, Granted, HostApi
from isthmus.actor.tensor import Checker, Copies, TensorUnit
from isthmus.actor.virtual import SeededRandom, VirtualClock
from isthmus.counters import Counters
from isthmus.device.base import Backend, Device
from isthmus.errors import (
    ActorBusy,
    ActorClosed,
    Cancelled,
    ContextFull,
    GuestFailed,
    IsthmusError,
)
from isthmus.memory import Region
from isthmus.model import Session
from isthmus.wasm import Engine, Guest, Instance, Wasi

_STOP_GRACE_S = 2.0
"""How long a guest may take to finish by itself after its caller stopped listening."""

_CANCEL_AGAIN_S = 0.02
"""A message's thread may not be inside the guest yet when it is cancelled first."""

_Pieces: TypeAlias = "queue.SimpleQueue[str | Reply | BaseException]"


@dataclass(frozen=True)
class Reply:
    """What an actor answered to one message."""

    data: bytes
    """What the guest set as its reply, or else all that it emitted."""
    n_tokens: int
    """Tokens that it prefilled and decoded."""
    seconds: float
    """Wall-clock time."""

    @property
    def text(self) -> str:
        """The answer as UTF-8; bytes that are none become U+FFFD."""
        return self.data.decode(errors="replace")


@dataclass(frozen=True)
class Spawned:
    """How an actor begins."""

    args: Sequence[str] = ()
    """Options for the guest, `key=value`: its WASI arguments after the guest's name."""
    seed: int = 0
    """Of its random numbers."""
    clock_ns: int = 0
    """Of its clock, nanoseconds since 1970-01-01 00:00 UTC."""
    copy_tensors: bool = False
    """Stage the tensors of `compute` in device memory. Only to measure what that costs."""


class Actor:
    """See the module. Made by `Runtime.spawn`; its methods may be called from any thread."""

    def __init__(
        self,
        engine: Engine,
        guest: Guest,
        device: Device,
        backend: Backend,
        granted: Granted,
        spawned: Spawned,
    ) -> None:
        self.guest = guest
        self.device = device
        self.limits = granted.limits
        self.seed = spawned.seed
        self.counters = Counters()
        self._clock = VirtualClock(spawned.clock_ns)
        self._random = SeededRandom(spawned.seed)
        self._running = threading.Lock()
        self._closed_because: str | None = None
        self._exchange: Exchange | None = None
        with contextlib.ExitStack() as stack:
            self._api = HostApi(granted, self._clock, self._random, self.counters, self._check)
            wasi = Wasi(
                args=[guest.name, *spawned.args],
                clock_ns=self._clock.read,
                random=self._random.draw,
                log=self._api.write_stream,
            )
            self.instance = stack.enter_context(
                Instance(
                    engine,
                    guest,
                    handlers=self._api.functions(),
                    wasi=wasi,
                    memory_limit_nbytes=granted.limits.memory_nbytes,
                    counters=self.counters,
                    reserve=device.reserve,
                )
            )
            binding = stack.enter_context(device.bind(self.region))
            memory = self.instance.memory
            copies = Copies(device, memory) if spawned.copy_tensors else None
            checker = Checker(memory, self._api.handles)
            unit = TensorUnit(device, backend, binding, checker, self.counters, copies)
            stack.callback(unit.close)
            stack.callback(self._api.close)
            self._api.attach(self.region, self.instance.memory, binding, unit)
            self.binding = binding
            self._initialize()
            self._stack = stack.pop_all()

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
        if self._closed_because is not None:
            raise ActorClosed(f"the actor is closed: {self._closed_because}")
        if not self._running.acquire(blocking=False):
            raise ActorBusy("the actor is handling another message; it takes one at a time")
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
        while not self._running.acquire(timeout=_CANCEL_AGAIN_S):
            self.instance.cancel()
        self._stack.close()
        self._running.release()

    def __enter__(self) -> Actor:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ------------------------------------------------------------------ parts

    def _check(self) -> None:
        self.instance.check()

    def _initialize(self) -> None:
        deadline = self.limits.deadline_s
        self.instance.initialize(None if deadline is None else time.monotonic() + deadline)

    def _work(
        self,
        exchange: Exchange,
        pieces: _Pieces,
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


class Stream(Iterator[str]):
    """The pieces of one answer, as text that never cuts a character; `reply` once it has ended.

    An iterator that is dropped before its end asks the guest to stop, as `close` does.
    """

    def __init__(self, actor: Actor, message: bytes, deadline_s: float | None) -> None:
        pieces: _Pieces = queue.SimpleQueue()
        self._actor = actor
        self._pieces = pieces
        self._exchange = exchange = Exchange(message, pieces.put)
        self._reply: Reply | None = None
        self._ended = threading.Event()
        weakref.finalize(self, setattr, exchange, "stopping", True)
        work = partial(actor._work, exchange, pieces, deadline_s, self._ended)
        if not actor.device.compute_thread.try_host(work):
            threading.Thread(target=work, name=f"isthmus {actor.guest.name}", daemon=True).start()

    @property
    def reply(self) -> Reply:
        """The whole answer; RuntimeError before the stream has ended."""
        if self._reply is None:
            raise RuntimeError("the answer is not complete")
        return self._reply

    def __next__(self) -> str:
        if self._ended.is_set() and self._pieces.empty():
            raise StopIteration
        try:
            piece = self._pieces.get()
        except BaseException:  # Ctrl-C: the message ends, then whoever waits hears of it
            self.close()
            raise
        if isinstance(piece, str):
            return piece
        self._ended.wait()
        if isinstance(piece, Reply):
            self._reply = piece
            raise StopIteration
        raise piece

    def close(self) -> None:
        """Asks the guest to stop and waits; it is cut off if it does not within two seconds."""
        if self._ended.is_set():
            return
        self._exchange.stopping = True
        if not self._ended.wait(_STOP_GRACE_S):
            self._actor.cancel()
        while not self._ended.wait(_CANCEL_AGAIN_S):
            self._actor.cancel()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
