"""One instance of a guest: its store, its linear memory, and the calls into it.

Owns the wasmtime store and the Region; the Engine and the Guest must outlive it, which it sees to.

========  =================================================================================
state     what holds
========  =================================================================================
idle      `call` may be called from any thread; `cancel` does nothing
running   one thread is inside the guest; another one's `call` or `close` raises ActorBusy
closed    the store is freed; `call` raises ActorClosed; the Region is freed unless it is held
========  =================================================================================

A call ends in one of five ways: a result; GuestTrapped; GuestExited; Cancelled or
DeadlineExceeded, within about two ticks of the watchdog; or the very exception object that a host
function raised. Call guests from worker threads: while one runs, Python handles no signals on its
thread.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence

import wasmtime

from isthmus.abi import MODULE
from isthmus.counters import Counters
from isthmus.errors import (
    ActorBusy,
    ActorClosed,
    Cancelled,
    DeadlineExceeded,
    GuestInvalid,
    GuestTrapped,
    LimitExceeded,
    RegionError,
    SettingsError,
)
from isthmus.memory.region import Region
from isthmus.native import wasmtime_capi as capi
from isthmus.units import WASM_PAGE, format_nbytes
from isthmus.wasm import wasi as wasi_module
from isthmus.wasm.engine import Engine
from isthmus.wasm.guest import INITIALIZE, MEMORY, Guest
from isthmus.wasm.hostcalls import GuestMemory, Handler, Signature, Trace
from isthmus.wasm.instrument import START_EXPORT
from isthmus.wasm.memory_creator import MemoryRequest
from isthmus.wasm.names import shown
from isthmus.wasm.wasi import Wasi

_TRAPS = {
    wasmtime.TrapCode.STACK_OVERFLOW: "stack overflow",
    wasmtime.TrapCode.MEMORY_OUT_OF_BOUNDS: "out-of-bounds memory access",
    wasmtime.TrapCode.TABLE_OUT_OF_BOUNDS: "out-of-bounds table access",
    wasmtime.TrapCode.INDIRECT_CALL_TO_NULL: "indirect call to null",
    wasmtime.TrapCode.BAD_SIGNATURE: "indirect call to a function of another type",
    wasmtime.TrapCode.INTEGER_OVERFLOW: "integer overflow",
    wasmtime.TrapCode.INTEGER_DIVISION_BY_ZERO: "integer division by zero",
    wasmtime.TrapCode.BAD_CONVERSION_TO_INTEGER: "conversion of a float that no integer is",
    wasmtime.TrapCode.UNREACHABLE: "unreachable",
}


Export = wasmtime.Func | wasmtime.Global | wasmtime.Memory | wasmtime.Table


class _Function(capi.RawCall):
    """An exported function, ready to be called."""

    def __init__(
        self, store: wasmtime.Store, function: wasmtime.Func, signature: Signature
    ) -> None:
        self.n_params = len(signature.params)
        self.has_result = signature.result is not None
        super().__init__(store, function, max(self.n_params, int(self.has_result)))


class Instance:
    """See the module. `region` holds the linear memory, `memory` is the checked way into it."""

    region: Region
    memory: GuestMemory

    def __init__(
        self,
        engine: Engine,
        guest: Guest,
        *,
        handlers: Mapping[str, Handler],
        wasi: Wasi,
        memory: MemoryRequest,
        counters: Counters,
    ) -> None:
        """Instantiates `guest`; none of its code runs yet.

        handlers: by name of the host function; those left out answer ENOTSUP. memory: gives the
        Region, which the instance owns from then on, also if it fails. Raises GuestInvalid where
        the guest wants more memory than it may have, RegionError where there is none.
        """
        self.guest = guest
        self.counters = counters
        self._plain_handlers: Sequence[Handler] = _handler_table(engine, handlers, wasi)
        self.handlers: Sequence[Handler] = self._plain_handlers
        self._engine = engine
        self._current = engine.host_calls.current
        self._watchdog = engine.watchdog
        self._lock = threading.Lock()
        self._functions: dict[str, _Function] = {}
        self._pending: BaseException | None = None
        self._deadline: float | None = None
        self.pause: Callable[[], None] = lambda: None
        """Called at each tick on the guest's thread: may let others go first for a moment."""
        self.is_unwanted: Callable[[], bool] = lambda: False
        """Asked at each tick and host call: whether the running call is to end with Cancelled."""
        self._n_calls = self._running_call = self._cancelled_call = 0
        self._store = engine.new_store()
        self._finalizer = weakref.finalize(self, _free, self._store, engine)
        self._finalizer.atexit = False  # a daemon thread may still be running the guest
        self._made = self._instantiate(memory, wasi)

    @property
    def store(self) -> wasmtime.Store:
        """The store that its exports belong to; it stays the instance's."""
        return self._store

    def export(self, name: str) -> Export | None:
        """What the guest exports under a name; None if it exports nothing there."""
        return capi.exported(self._made, self._store, name)

    @property
    def fuel(self) -> int:
        """Wasm instructions, about, that its guest may still run. Only of a metered engine."""
        return self._store.get_fuel()

    @fuel.setter
    def fuel(self, n: int) -> None:
        self._store.set_fuel(n)

    @property
    def deadline(self) -> float | None:
        """When the running call is to end, on the clock of time.monotonic; None for never.

        Between two calls it may be set for `check`; each call has a deadline of its own.
        """
        return self._deadline

    @deadline.setter
    def deadline(self, deadline: float | None) -> None:
        self._deadline = deadline

    @property
    def closed(self) -> bool:
        """True once the guest's store is freed."""
        return not self._finalizer.alive

    def initialize(self, deadline: float | None = None) -> None:
        """Runs the start function and then `_initialize`, where the guest has them.

        Once in an actor's life, when it is spawned; never when it is restored.
        """
        for name in (START_EXPORT, INITIALIZE):
            if name in self.guest.functions:
                self.call(name, deadline=deadline)

    def grow_memory(self, nbytes: int) -> None:
        """Grows linear memory to `nbytes`, whole wasm pages; RegionError where it may not."""
        memory = self.export(MEMORY)
        assert isinstance(memory, wasmtime.Memory)
        missing = nbytes - self.region.nbytes
        if missing < 0 or nbytes % WASM_PAGE:
            raise RegionError(f"{self.guest.name}'s memory cannot become {nbytes} bytes long")
        try:
            memory.grow(self._store, missing // WASM_PAGE)
        except wasmtime.WasmtimeError:
            raise RegionError(
                f"{self.guest.name} may not have {format_nbytes(nbytes)} of linear memory"
            ) from None

    def call(self, name: str, *args: int, deadline: float | None = None) -> int:
        """Calls an exported function of i32 parameters; its i32 result is signed, 0 for none.

        deadline: on the clock of time.monotonic. See the module for how a call ends.
        """
        if not self._lock.acquire(False):
            raise ActorBusy(f"{self.guest.name} is running another call")
        current, watchdog = self._current, self._watchdog
        outer = current.target
        try:
            function = self._functions.get(name) or self._find(name)
            if len(args) != function.n_params:
                raise TypeError(f"{name} takes {function.n_params} arguments, not {len(args)}")
            self._begin(deadline)
            watchdog.running.add(self)
            if watchdog.asleep:
                watchdog.wake()
            current.target = self
            for i, value in enumerate(args):
                function.words[capi.WORDS_PER_VALUE * i] = value
            error = function.invoke(*function.arguments)
            if error is None and function.trap.value is None:
                return int(function.signed[0]) if function.has_result else 0
            raise self._ended(function.failure(error))
        finally:
            current.target = outer
            watchdog.running.discard(self)
            self._running_call = 0
            self._pending = None
            self._lock.release()

    def trace(self, to: Trace) -> None:
        """Has `to` told of every host call from now on. Costs nothing where it is not used."""
        traced = self._engine.host_calls.traced(self._plain_handlers, to)
        self.handlers = self._plain_handlers = traced

    def cancel(self) -> bool:
        """Ends the running call with Cancelled; from any thread. False where none is running."""
        call = self._running_call
        if call:
            self._cancelled_call = call
            self._engine.increment_epoch()
        return bool(call)

    def check(self) -> None:
        """Raises Cancelled or DeadlineExceeded where the running call is to end.

        Long host functions call it between submissions to the device.
        """
        if self._is_cancelled():
            raise Cancelled(f"the call of {self.guest.name} was cancelled")
        if self._is_late():
            raise DeadlineExceeded(f"{self.guest.name} did not finish in time")

    def tick(self) -> None:
        """For the watchdog: has each further host call of a call that is to end look first.

        Code without a loop or a call of its own never looks at the epoch, however many host
        functions it calls. Looking at each of them would cost every guest time.
        """
        if self._is_cancelled() or self._is_late():
            self.handlers = [_checking(self.check, it) for it in self._plain_handlers]

    def fail(self, error: BaseException) -> None:
        """Keeps the error that the running call ends with; for trampolines, on its thread."""
        self._pending = error

    def close(self) -> None:
        """Frees the store, then the Region; a second call tries again what the first could not.

        Raises ActorBusy while a call is running, and RegionBusy while somebody holds the Region:
        the store is freed then and the Region is not.
        """
        if not self._lock.acquire(False):
            raise ActorBusy(f"{self.guest.name} is running a call and cannot be closed")
        try:
            self._functions.clear()
            self.memory.detach()
            self._finalizer()
            self.region.close()
        finally:
            self._lock.release()

    def __enter__(self) -> Instance:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _is_cancelled(self) -> bool:
        cancelled = self._running_call != 0 and self._running_call == self._cancelled_call
        return cancelled or self.is_unwanted()

    def _is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _begin(self, deadline: float | None) -> None:
        self._deadline = deadline
        self.handlers = self._plain_handlers
        self._n_calls = self._running_call = self._n_calls + 1
        if deadline is not None:
            self.check()

    def _ended(self, failure: capi.Failure) -> BaseException:
        """What a call that returned nothing raises: a host function's error comes first."""
        if self._pending is None and failure.code == wasmtime.TrapCode.OUT_OF_FUEL:
            return LimitExceeded(f"{self.guest.name} ran out of fuel", "fuel")
        return self._pending or _trapped(self.guest, failure)

    def _find(self, name: str) -> _Function:
        if self.closed:
            raise ActorClosed(f"this instance of {self.guest.name} is closed")
        signature = self.guest.functions.get(name)
        function = self.export(name) if signature else None
        if signature is None or not isinstance(function, wasmtime.Func):
            raise GuestInvalid(f"{self.guest.name} exports no function {name} of i32 values only")
        self._functions[name] = _Function(self._store, function, signature)
        return self._functions[name]

    def _instantiate(self, request: MemoryRequest, wasi: Wasi) -> wasmtime.Instance:
        """Makes the memory and the instance, or frees whatever was made."""
        try:
            request.is_64 = self.guest.is_64
            with self._engine.memory_creator.requested(request):
                made = capi.instantiate(self.guest.pre, self._store)
            if isinstance(made, capi.Failure):
                raise request.error or _trapped(self.guest, made)
            memory = capi.exported(made, self._store, MEMORY)
            self.region = _same_memory(memory, self._store, request.region)
            self.memory = GuestMemory(self.region, self.counters, is_64=self.guest.is_64)
            wasi.attach(self.memory)
        except BaseException:
            self._finalizer()
            if request.region is not None:
                request.region.close()
            raise
        return made


def _free(store: wasmtime.Store, engine: Engine) -> None:
    """Frees a store while the engine, and with it every callback, still exists."""
    store.close()
    assert engine.memory_creator, "the callbacks must outlive the store"


def _same_memory(memory: object, store: wasmtime.Store, region: Region | None) -> Region:
    """The Region, once it is proved that the guest's memory begins at its base."""
    if region is None or not isinstance(memory, wasmtime.Memory):
        raise RegionError("the guest's memory was not made from a Region")
    found = capi.base_address(memory, store)
    if found != region.base:
        raise RegionError(f"the guest's memory is at {found:#x}, its Region at {region.base:#x}")
    return region


def _handler_table(engine: Engine, handlers: Mapping[str, Handler], wasi: Wasi) -> list[Handler]:
    host_calls = engine.host_calls
    unknown = handlers.keys() - {it.name for it in host_calls.imports if it.module == MODULE}
    if unknown:
        raise SettingsError(f"no such host functions: {', '.join(sorted(unknown))}")
    by_module = {MODULE: handlers, wasi_module.MODULE: wasi.handlers()}
    return host_calls.table(by_module)


def _checking(check: Callable[[], None], handler: Handler) -> Handler:
    def checked(*arguments: int) -> int:
        check()
        return handler(*arguments)

    return checked


def _trapped(guest: Guest, failure: capi.Failure) -> GuestTrapped:
    known = _TRAPS.get(failure.code) if failure.code else None
    kind = known or shown((failure.message.strip().splitlines() or ["trap"])[-1].strip())
    names = guest.function_names
    backtrace = tuple(names.get(index) or f"func[{index}]" for index in failure.backtrace)
    where = f", in {backtrace[0]}" if backtrace else ""
    return GuestTrapped(f"{guest.name} trapped: {kind}{where}", backtrace)
