"""Pausing a resumable guest before a host call, and having it go on from there.

::

    request ──► the guest's next asking host call ──► it leaves all its functions, and on_message
                  (not made: kept as PendingCall)       returns; the stack lies in its memory
    go_on ────► on_message is called again ──► it gets back to that host call, which is made now

Between the two nothing of the guest is on any stack, so its memory and globals are all that it is;
see `resumable.py`. What lies there may come from a stranger: a guest that gets back reads and
writes its own memory only, as ever, and whatever it then does is a trap, a host call or a result
that any guest could have made. One that does not get back to its host call is refused.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import wasmtime

from isthmus.abi import MODULE
from isthmus.errors import GuestInvalid, IsthmusError, SnapshotInvalid
from isthmus.native import wasmtime_capi as capi
from isthmus.units import KIB
from isthmus.wasm.hostcalls import Handler
from isthmus.wasm.instance import Instance
from isthmus.wasm.resumable import ASKING, DATA_GLOBAL, STATE_GLOBAL

ROOM_NBYTES = 256 * KIB
"""Bytes of the guest's memory for its stack, whole wasm pages. A guest with more on it traps."""
_NORMAL, _LEAVING, _GETTING_BACK = 0, 1, 2
_POINTERS = {False: struct.Struct("<II"), True: struct.Struct("<QQ")}


@dataclass(frozen=True)
class PendingCall:
    """The host call that a paused guest is about to make."""

    name: str
    arguments: tuple[int, ...]
    """Unsigned, as the guest passed them."""
    room: int
    """Where the guest's stack lies in its memory."""


class Pauser:
    """See the module. One for each instance of a resumable guest; owns nothing.

    `request` may be called by any thread, all else by the one that drives the guest.
    """

    def __init__(self, instance: Instance, prepare: Callable[[int], int]) -> None:
        """`prepare(room)` says where ROOM_NBYTES begin that are the stack's, or makes them where
        `room` is 0, which it is at first; it raises why the guest cannot pause now."""
        self._instance = instance
        self._prepare = prepare
        self._room = 0
        self._asking = [
            number
            for number, it in enumerate(instance.host_calls.imports)
            if it.module == MODULE and it.name in ASKING
        ]
        self._handlers: dict[int, Handler] = {}
        """The handlers in whose place `_at_ask` is; empty while there are none."""
        self._lock = threading.Lock()
        self._requested = False
        self._gets_back = False
        self.pending: PendingCall | None = None
        """The host call that it has paused before; None while it runs."""
        self._refusal: IsthmusError | None = None

    def request(self) -> None:
        """Has the guest pause before its next asking host call."""
        with self._lock:
            self._requested = True
            self._watch()

    def withdraw(self) -> None:
        """Takes back what was requested."""
        with self._lock:
            self._requested = False
            self._unwatch()

    def take_refusal(self) -> IsthmusError | None:
        """Why it could not pause, once after each time."""
        refusal, self._refusal = self._refusal, None
        return refusal

    def resume_from(self, pending: PendingCall) -> None:
        """Begins from a host call that an instance with this memory had paused before.

        SnapshotInvalid if there is none such.
        """
        room, wanted = pending.room, {it.name: it for it in self._instance.host_calls.imports}
        found = wanted.get(pending.name) if pending.name in ASKING else None
        if found is None or len(found.signature.params) != len(pending.arguments):
            raise SnapshotInvalid(f"a guest cannot have paused before {pending.name!r}")
        if room % 16 or not room or room + ROOM_NBYTES > self._instance.region.nbytes:
            raise SnapshotInvalid("the stack of the snapshot does not lie in its memory")
        self._room, self.pending = room, pending

    def end_pause(self) -> bool:
        """Whether the guest's function has returned since it has paused. GuestInvalid if it did
        neither that nor came to its end."""
        state = self._state()
        if self._gets_back or state == _GETTING_BACK:
            self._gets_back = False
            raise GuestInvalid(
                f"{self._instance.guest.name} did not get back to where it was paused: its memory "
                "or its module was changed"
            )
        if state == _LEAVING:
            self._set(STATE_GLOBAL, _NORMAL)
        return self.pending is not None

    def go_on(self) -> None:
        """Has the next call of the paused function get back to the pending host call."""
        assert self.pending is not None, "it is not paused"
        with self._lock:
            self._gets_back = True
            self._watch()
        self._set(DATA_GLOBAL, self._room)
        self._set(STATE_GLOBAL, _GETTING_BACK)

    # ------------------------------------------------------------------ parts

    def _watch(self) -> None:
        if not self._handlers:
            handlers = self._instance.handlers
            self._handlers = {number: handlers[number] for number in self._asking}
            for number, handler in self._handlers.items():
                handlers[number] = partial(self._at_ask, number, handler)  # type: ignore[assignment]

    def _unwatch(self) -> None:
        for number, handler in self._handlers.items():
            self._instance.handlers[number] = handler
        self._handlers = {}

    def _at_ask(self, number: int, handler: Handler, *arguments: int) -> object:
        """Stands for an asking host function while a pause is wanted, or a guest gets back."""
        if self._gets_back:
            return handler(*self._got_back(number))
        with self._lock:
            requested, self._requested = self._requested, False
            self._unwatch()
        if requested:
            try:
                self._leave(number, arguments)
            except IsthmusError as error:
                self._refusal = error
            else:
                return 0
        return handler(*arguments)

    def _leave(self, number: int, arguments: tuple[int, ...]) -> None:
        """Has the guest write its stack down and return."""
        instance = self._instance
        self._room = self._prepare(self._room)
        pointers = _POINTERS[instance.guest.is_64]
        begin, end = self._room + pointers.size, self._room + ROOM_NBYTES
        instance.memory.write(self._room, pointers.pack(begin, end))
        self._set(DATA_GLOBAL, self._room)
        self._set(STATE_GLOBAL, _LEAVING)
        name = instance.host_calls.imports[number].name
        self.pending = PendingCall(name, arguments, self._room)

    def _got_back(self, number: int) -> tuple[int, ...]:
        """The arguments of the host call that was pending, and is made now."""
        pending = self.pending
        name = self._instance.host_calls.imports[number].name
        if pending is None or pending.name != name:
            raise GuestInvalid(
                f"{self._instance.guest.name} got back to {name}, and was paused before "
                f"{pending.name if pending else 'nothing'}: its memory was changed"
            )
        with self._lock:
            self._gets_back = False
            if not self._requested:
                self._unwatch()
        self.pending = None
        self._set(STATE_GLOBAL, _NORMAL)
        return pending.arguments

    def _state(self) -> int:
        kind, bits = capi.read_global(self._instance.store, self._global(STATE_GLOBAL))
        return int.from_bytes(bits, "little") if kind == "i32" else _NORMAL

    def _set(self, name: str, value: int) -> None:
        """Sets one of both globals. GuestInvalid if the guest has another one of that name."""
        is_wide = name == DATA_GLOBAL and self._instance.guest.is_64
        found, kind = self._global(name), "i64" if is_wide else "i32"
        if capi.read_global(self._instance.store, found)[0] == kind:
            try:
                bits = value.to_bytes(capi.VALUE_NBYTES[kind], "little")
                capi.write_global(self._instance.store, found, kind, bits)
            except ValueError:
                pass
            else:
                return
        raise GuestInvalid(f"{self._instance.guest.name}'s {name} is no mutable {kind}")

    def _global(self, name: str) -> wasmtime.Global:
        found = self._instance.export(name)
        assert isinstance(found, wasmtime.Global), "is_resumable has seen to that"
        return found
