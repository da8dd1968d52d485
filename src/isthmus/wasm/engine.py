"""The WebAssembly engine: one per runtime, shared by all guests, instances and threads.

Owns wasmtime's engine, the linker in which every import is defined once, the callbacks behind
them, and the watchdog thread. An import finds the fiber that it is called on through a
thread-local, so an instance brings no callbacks of its own and spawning is cheap.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

import wasmtime

from isthmus.abi import HOST_FUNCTIONS, MODULE
from isthmus.native import wasmtime_capi as capi
from isthmus.native.wasmtime_fiber import FiberStore, epoch_callback
from isthmus.wasm.bounds import Bound
from isthmus.wasm.code_cache import CodeCache
from isthmus.wasm.engine_config import EngineKind, configured
from isthmus.wasm.guest import Guest, by_name, check_interface
from isthmus.wasm.hostcalls import HostCalls, HostImport, Signature, negative_errno
from isthmus.wasm.loading import Check, Compiled, Key, Loader, nothing
from isthmus.wasm.memory_creator import MemoryCreator
from isthmus.wasm.wasi import wasi_imports
from isthmus.wasm.wasi_nn import nn_imports
from isthmus.wasm.watchdog import Watchdog

PLENTY_OF_FUEL = 2**63
"""Centuries of it."""


class Engine:
    """See the module. `close` stops the watchdog; instances must be closed before.

    With `guard_pages` a memory is an address range without access beyond its end, and
    out-of-bounds accesses trap there; without it every access is compared with the memory's size,
    for regions whose pages cannot be protected. `code_cache` is a folder for compiled guests. A
    `metered` engine counts the instructions that its guests run, and stops them without fuel. One
    that `is_64` is for guests with a 64-bit memory, where every access is compared with its size.
    """

    def __init__(
        self,
        *,
        guard_pages: bool = True,
        code_cache: Path | None = None,
        metered: bool = False,
        is_64: bool = False,
    ) -> None:
        capi.check_version()
        kind = EngineKind(guard_pages, metered, is_64)
        self.guard_pages = guard_pages
        self.memory_creator = MemoryCreator()
        self.metered = metered
        config = configured(kind)
        self.memory_creator.install(config)
        self._engine = wasmtime.Engine(config)
        self._linker = wasmtime.Linker(self._engine)
        self._loader = Loader(self._engine, kind, CodeCache(code_cache))
        self._by_name = {wide: by_name(_imports(wide)) for wide in (False, True)}
        self.is_64 = is_64
        self.host_calls = HostCalls(self._linker, _imports(is_64))
        self._tick = partial(_tick, self._engine, self.host_calls)
        self.watchdog = Watchdog(self._tick)
        self._epoch_callback = epoch_callback(self.host_calls.threads)

    def compile(self, wasm: bytes, name: str, *, trusted: bool = False) -> Guest:
        """Compiles and checks a guest, once for each module and name.

        A `trusted` module comes with this package and is compiled in this process, any other in one
        of its own. GuestInvalid says what is wrong with it; Overloaded if the machine is too busy.
        """
        return self._load(wasm, (hashlib.sha256(wasm).hexdigest(), name), trusted=trusted)

    def compiled(self, guest: Guest, check: Check) -> Guest:
        """A guest of another engine, compiled for this one. Raises as `compile` and `check`."""
        key = (guest.sha256, guest.name)
        return self._load(guest.wasm, key, trusted=guest.trusted, check=check)

    def forget(self, sha256: str) -> None:
        """Keeps nothing of such a module, nor on the disk. Actors that use it go on."""
        self._loader.forget(sha256)

    def new_store(self) -> FiberStore:
        """A store whose guest looks at the watchdog's epoch. The caller closes it.

        What a guest holds outside its linear memory, namely its tables, is limited here.
        """
        store = wasmtime.Store(self._engine)
        tables, elements = Bound.TABLES.most, Bound.TABLE_ELEMENTS.most
        store.set_limits(table_elements=elements, tables=tables, instances=1, memories=1)
        capi.set_epoch_callback(store, self._epoch_callback)
        if self.metered:
            store.set_fuel(PLENTY_OF_FUEL)
        return FiberStore(store, self.host_calls.threads)

    def increment_epoch(self) -> None:
        """Has every running guest suspended at its next loop or function entry."""
        self._tick()

    def close(self) -> None:
        """Stops the watchdog thread; a second call does nothing."""
        self.watchdog.close()

    def _load(self, wasm: bytes, key: Key, *, trusted: bool, check: Check = nothing) -> Guest:
        def make(compiled: Compiled) -> Guest:
            check_interface(compiled.interface, self._by_name, is_64=self.is_64)
            pre = self._linker.instantiate_pre(compiled.module)
            return Guest(
                wasm, key, compiled.interface, pre, was_compiled=compiled.is_new, trusted=trusted
            )

        return self._loader.load(wasm, key, make, trusted=trusted, check=check)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _tick(engine: wasmtime.Engine, host_calls: HostCalls) -> None:
    """Begins an epoch. Does not know the Engine, which may be dropped."""
    engine.increment_epoch()
    host_calls.n_epochs += 1


def _imports(is_64: bool) -> list[HostImport]:
    """What a guest may import, with the types that go with its memory."""
    nn = [] if is_64 else nn_imports()
    return [*_isthmus_imports(is_64), *wasi_imports(is_64=is_64), *nn]


def _isthmus_imports(is_64: bool) -> list[HostImport]:
    return [
        HostImport(
            MODULE,
            function.name,
            Signature(
                function.wasm_params_64 if is_64 else function.wasm_params, function.wasm_result
            ),
            negative_errno,
        )
        for function in HOST_FUNCTIONS
    ]
