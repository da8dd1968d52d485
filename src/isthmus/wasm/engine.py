"""The WebAssembly engine: one per runtime, shared by all guests, instances and threads.

Owns wasmtime's engine, the linker in which every import is defined once, the callbacks behind
them, and the watchdog thread. An import finds the instance that called it through a thread-local,
so an instance brings no callbacks of its own and spawning is cheap.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import wasmtime

from isthmus.abi import HOST_FUNCTIONS, MODULE
from isthmus.native import wasmtime_capi as capi
from isthmus.units import GIB, KIB, MIB
from isthmus.wasm.code_cache import CodeCache
from isthmus.wasm.guest import Guest, by_name
from isthmus.wasm.hostcalls import HostCalls, HostImport, Signature, negative_errno
from isthmus.wasm.memory_creator import MemoryCreator
from isthmus.wasm.wasi import wasi_imports
from isthmus.wasm.watchdog import Watchdog

RESERVED_NBYTES = 4 * GIB
"""Of a 32-bit memory, which then needs no other bounds checks."""
GUARD_NBYTES = 32 * MIB
STACK_NBYTES = 512 * KIB
"""Of each thread's native stack for the guest; a host function runs on what is left."""
PLENTY_OF_FUEL = 2**63
"""Centuries of it."""
MOST_TABLES = 8
MOST_TABLE_ELEMENTS = 1 << 20
"""Of each table; an element takes 8 bytes of the host's memory."""


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
        self._code_cache = CodeCache(code_cache)
        self.guard_pages = guard_pages
        self.memory_creator = MemoryCreator()
        self.metered = metered
        config = _config(guard_pages, is_64)
        config.consume_fuel = metered
        self.memory_creator.install(config)
        self._engine = wasmtime.Engine(config)
        self._linker = wasmtime.Linker(self._engine)
        self.is_64 = is_64
        self.host_calls = HostCalls(self._linker, _imports(is_64))
        self.watchdog = Watchdog(self._engine.increment_epoch)
        self._epoch_callback = capi.EPOCH_CALLBACK(_epoch_callback(self.host_calls))

    def compile(self, wasm: bytes, name: str) -> Guest:
        """Compiles and checks a guest; GuestInvalid says what is wrong with it."""
        return Guest(
            self._engine,
            self._linker,
            {is_64: by_name(_imports(is_64)) for is_64 in (False, True)},
            wasm,
            name,
            self._code_cache,
            is_64=self.is_64,
        )

    def new_store(self) -> wasmtime.Store:
        """A store whose guest looks at the watchdog's epoch. The caller closes it.

        What a guest holds outside its linear memory, namely its tables, is limited here.
        """
        store = wasmtime.Store(self._engine)
        store.set_limits(
            table_elements=MOST_TABLE_ELEMENTS, tables=MOST_TABLES, instances=1, memories=1
        )
        capi.set_epoch_callback(store, self._epoch_callback)
        if self.metered:
            store.set_fuel(PLENTY_OF_FUEL)
        return store

    def increment_epoch(self) -> None:
        """Has every running guest ask at once whether it may go on."""
        self._engine.increment_epoch()

    def close(self) -> None:
        """Stops the watchdog thread; a second call does nothing."""
        self.watchdog.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _config(guard_pages: bool, is_64: bool) -> wasmtime.Config:
    config = wasmtime.Config()
    # With copy-on-write initialisation, a memory that is not wasmtime's own aborts the process:
    # https://github.com/bytecodealliance/wasmtime/issues/10740
    config.memory_init_cow = False
    config.memory_may_move = False
    # Of a memory that does not move, wasmtime takes the reservation for the most that it can have.
    config.memory_reservation = RESERVED_NBYTES if guard_pages and not is_64 else 0
    config.memory_guard_size = GUARD_NBYTES if guard_pages else 0
    config.epoch_interruption = True
    config.max_wasm_stack = STACK_NBYTES
    for name, enabled in _FEATURES.items():
        setattr(config, name, enabled)
    return config


_FEATURES = {
    "wasm_bulk_memory": True,
    "wasm_multi_value": True,
    "wasm_reference_types": True,
    "wasm_simd": True,
    "wasm_relaxed_simd": True,
    "wasm_relaxed_simd_deterministic": True,
    "cranelift_nan_canonicalization": True,
    "gc_support": False,
    "wasm_exceptions": False,
    "wasm_function_references": False,
    "wasm_gc": False,
    "wasm_memory64": True,
    "wasm_multi_memory": False,
    "wasm_threads": False,
    "shared_memory": False,
    "wasm_custom_page_sizes": False,
    "wasm_stack_switching": False,
    "wasm_wide_arithmetic": False,
}
"""What a plain toolchain emits, computed alike on every machine; a GC heap would be a memory."""


def _imports(is_64: bool) -> list[HostImport]:
    """What a guest may import, with the types that go with its memory."""
    return [*_isthmus_imports(is_64), *wasi_imports(is_64=is_64)]


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


def _epoch_callback(host_calls: HostCalls) -> Callable[..., int]:
    """Runs on the guest's thread at each tick: lets it go on for one more, or ends its call."""
    current = host_calls.current

    def on_epoch(_context: Any, _data: int, n_ticks: Any, _kind: Any) -> int:
        target = current.target
        try:
            n_ticks[0] = 1
            if target is not None:
                target.check()
        except BaseException as error:
            if target is not None:
                target.fail(error)
            return capi.new_error("the call was ended")
        return 0

    return on_epoch
