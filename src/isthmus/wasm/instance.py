"""One instance of a guest: its store, its linear memory, and the calls into it.

Owns the wasmtime store and the Region; the Engine and the Guest must outlive it, which it sees to.

========  =================================================================================
state     what holds
========  =================================================================================
idle      `begin` may be called from any thread
calling   a Call is open, see `call.py`; `begin` and `close` raise ActorBusy
closed    the store is freed; `begin` raises ActorClosed; the Region is freed unless it is held
========  =================================================================================

Run guests on other threads than the main one, which would hand each step over: see
`wasmtime_fiber.py`.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import wasmtime

from isthmus.counters import Counters
from isthmus.errors import (
    ActorBusy,
    ActorClosed,
    GuestInvalid,
    RegionError,
    SettingsError,
)
from isthmus.memory.region import Region
from isthmus.native import wasmtime_capi as capi
from isthmus.native.wasmtime_fiber import FiberStore, require_room
from isthmus.units import WASM_PAGE, format_nbytes
from isthmus.wasm import wasi as wasi_module
from isthmus.wasm.call import SLICE_OVER, Call, trapped
from isthmus.wasm.engine import Engine
from isthmus.wasm.guest import INITIALIZE, MEMORY, Guest
from isthmus.wasm.hostcalls import GuestMemory, Handler, Trace
from isthmus.wasm.instrument import START_EXPORT
from isthmus.wasm.loading import Check, nothing
from isthmus.wasm.memory_creator import MemoryRequest
from isthmus.wasm.wasi import Wasi

Handlers = Mapping[str, Mapping[str, Handler]]
"""Host functions by module and name."""
Export = wasmtime.Global | wasmtime.Memory | wasmtime.Table


@dataclass(frozen=True)
class _Function:
    """An exported function, ready to be called."""

    function: wasmtime.Func
    n_params: int
    n_results: int


class Instance:
    """See the module. `region` holds the linear memory, `memory` is the checked way into it."""

    region: Region
    memory: GuestMemory

    def __init__(
        self,
        engine: Engine,
        guest: Guest,
        *,
        handlers: Handlers,
        wasi: Wasi,
        memory: MemoryRequest,
        counters: Counters,
    ) -> None:
        """Instantiates `guest`; none of its code runs yet.

        handlers: by module, then by name of the host function; those left out answer ENOTSUP.
        memory: gives the Region, which the instance owns from then on, also if it fails. Raises
        GuestInvalid where the guest wants more memory than it may have, RegionError where there is
        none.
        """
        self.guest = guest
        self.counters = counters
        self.host_calls = engine.host_calls
        self.handlers = _handler_table(engine, handlers, wasi)
        """One for each of the engine's imports, in the same order."""
        self._engine = engine
        self.fuel_allowed = 0
        """Instructions that its guest was allowed last."""
        self._functions: dict[str, _Function] = {}
        self._store = engine.new_store()
        self._in_use = threading.Lock()
        """Held while a call is open, and while `close` runs."""
        self._end_call = partial(
            engine.host_calls.threads.off_main,
            partial(_end_call, self._store, engine.watchdog.calls, self._in_use),
        )
        self._finalizer = weakref.finalize(self, _free, self._store, engine)
        self._finalizer.atexit = False  # a daemon thread may still be running the guest
        self._made = self._instantiate(memory, wasi)

    @property
    def store(self) -> wasmtime.Store:
        """The store that its exports belong to; it stays the instance's."""
        return self._store.store

    def export(self, name: str) -> Export | None:
        """What the guest exports under a name; None if that is nothing, or a function.

        Functions are called by `begin`: wasmtime's own call of one would end the process as soon as
        it reached an import.
        """
        found = capi.exported(self._made, self.store, name)
        return None if isinstance(found, wasmtime.Func) else found

    @property
    def fuel(self) -> int:
        """Wasm instructions, about, that its guest may still run. Only of a metered engine."""
        return self.store.get_fuel()

    @fuel.setter
    def fuel(self, n: int) -> None:
        self.fuel_allowed = n
        self.store.set_fuel(n)

    @property
    def closed(self) -> bool:
        """True once the guest's store is freed."""
        return not self._finalizer.alive

    def entry_points(self) -> list[str]:
        """The start function and `_initialize`, as far as the guest has them, in this order.

        They are called once in an actor's life, when it is spawned; never when it is restored.
        """
        return [name for name in (START_EXPORT, INITIALIZE) if name in self.guest.functions]

    def grow_memory(self, nbytes: int) -> None:
        """Grows linear memory to `nbytes`, whole wasm pages; RegionError where it may not."""
        memory = self.export(MEMORY)
        assert isinstance(memory, wasmtime.Memory)
        missing = nbytes - self.region.nbytes
        if missing < 0 or nbytes % WASM_PAGE:
            raise RegionError(f"{self.guest.name}'s memory cannot become {nbytes} bytes long")
        grow = partial(memory.grow, self.store, missing // WASM_PAGE)
        try:
            self.host_calls.threads.off_main(grow)
        except wasmtime.WasmtimeError:
            raise RegionError(
                f"{self.guest.name} may not have {format_nbytes(nbytes)} of linear memory"
            ) from None

    def begin(self, name: str, *args: int, check: Check = nothing) -> Call:
        """Begins a call of an exported function of i32 values. Nothing of the guest runs yet.

        check: called on the driving thread about every 10 ms while the guest runs, and after each
        of its time slices; the call ends with what it raises. Raises ActorBusy while another call
        is open, ActorClosed, GuestInvalid if the guest exports no such function, and TypeError for
        a wrong number of arguments.
        """
        require_room()
        if not self._in_use.acquire(False):
            raise ActorBusy(f"{self.guest.name} is running another call")
        watchdog = self._engine.watchdog
        try:
            found = self._functions.get(name) or self._find(name)
            if len(args) != found.n_params:
                raise TypeError(f"{name} takes {found.n_params} arguments, not {len(args)}")
            watchdog.calls.add(self._store)
            if watchdog.asleep:
                watchdog.wake()
            fiber = self._store.begin(found.function, args, found.n_results)
            return Call(self, fiber, check, self._end_call)
        except BaseException:
            self._end_call()
            raise

    def call(self, name: str, *args: int, check: Check = nothing) -> int:
        """Calls an exported function and runs it to its end on this thread: its i32 result.

        For host functions that answer at once. Raises what `begin` and `Call.run` do, and
        RuntimeError if a host function waits for anything.
        """
        running = self.begin(name, *args, check=check).run()
        try:
            while running.send(None) is SLICE_OVER:
                pass
        except StopIteration as returned:
            return int(returned.value)
        finally:
            running.close()
        raise RuntimeError(
            f"a host function that {self.guest.name} called waits, and nobody would wake it here: "
            "use begin, and drive the Call"
        )

    def interrupt(self) -> None:
        """Has the running guest's `check` called at its next loop or function entry.

        From any thread. So does every other guest of the engine that runs now. One that is
        suspended may miss it.
        """
        self._engine.increment_epoch()

    def trace(self, to: Trace) -> None:
        """Has `to` told of every host call from now on. Costs nothing where it is not used."""
        self.handlers[:] = self.host_calls.traced(self.handlers, to)

    def close(self) -> None:
        """Frees the store, then the Region; a second call tries again what the first could not.

        Raises ActorBusy while a call is open, and RegionBusy while somebody holds the Region:
        the store is freed then and the Region is not.
        """
        if not self._in_use.acquire(False):
            raise ActorBusy(f"a call of {self.guest.name} is open: close the call first")
        try:
            self._functions.clear()
            self.memory.detach()
            self._finalizer()
            self.region.close()
        finally:
            self._in_use.release()

    def __enter__(self) -> Instance:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _find(self, name: str) -> _Function:
        if self.closed:
            raise ActorClosed(f"this instance of {self.guest.name} is closed")
        signature = self.guest.functions.get(name)
        function = capi.exported(self._made, self.store, name) if signature else None
        if signature is None or not isinstance(function, wasmtime.Func):
            raise GuestInvalid(f"{self.guest.name} exports no function {name} of i32 values only")
        n_results = int(signature.result is not None)
        self._functions[name] = _Function(function, len(signature.params), n_results)
        return self._functions[name]

    def _make(self, request: MemoryRequest) -> wasmtime.Instance | capi.Failure:
        with self._engine.memory_creator.requested(request):
            return self._store.instantiate(self.guest.pre)

    def _instantiate(self, request: MemoryRequest, wasi: Wasi) -> wasmtime.Instance:
        """Makes the memory and the instance, or frees whatever was made."""
        try:
            request.is_64 = self.guest.is_64
            made = self.host_calls.threads.off_main(partial(self._make, request))
            if isinstance(made, capi.Failure):
                raise request.error or trapped(self.guest, made)
            memory = capi.exported(made, self.store, MEMORY)
            self.region = _same_memory(memory, self.store, request.region)
            self.memory = GuestMemory(self.region, self.counters, is_64=self.guest.is_64)
            wasi.attach(self.memory)
        except BaseException:
            self._finalizer()
            if request.region is not None:
                request.region.close()
            raise
        return made


def _end_call(store: FiberStore, calls: set[object], in_use: threading.Lock) -> None:
    """Frees what a call needed. Does not know the instance, so that both may be dropped at once."""
    store.end()
    calls.discard(store)
    in_use.release()


def _free(store: FiberStore, engine: Engine) -> None:
    """Frees a store while the engine, and with it every callback, still exists."""
    engine.host_calls.threads.off_main(store.close)
    assert engine.memory_creator, "the callbacks must outlive the store"


def _same_memory(memory: object, store: wasmtime.Store, region: Region | None) -> Region:
    """The Region, once it is proved that the guest's memory begins at its base."""
    if region is None or not isinstance(memory, wasmtime.Memory):
        raise RegionError("the guest's memory was not made from a Region")
    found = capi.base_address(memory, store)
    if found != region.base:
        raise RegionError(f"the guest's memory is at {found:#x}, its Region at {region.base:#x}")
    return region


def _handler_table(engine: Engine, handlers: Handlers, wasi: Wasi) -> list[Handler]:
    host_calls = engine.host_calls
    given = {(module, name) for module, named in handlers.items() for name in named}
    if unknown := {f"{module}.{name}" for module, name in given - host_calls.names}:
        raise SettingsError(f"no such host functions: {', '.join(sorted(unknown))}")
    return host_calls.table({**handlers, wasi_module.MODULE: wasi.handlers()})
