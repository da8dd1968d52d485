"""How wasmtime is set up: the same in this process and in the one that compiles strangers' modules,
since compiled code is only taken by an engine of the same settings.
"""

from __future__ import annotations

import msgspec
import wasmtime

from isthmus.units import GIB, KIB, MIB

RESERVED_NBYTES = 4 * GIB
"""Bytes of addresses for a 32-bit memory, which then needs no other bounds checks."""
GUARD_NBYTES = 32 * MIB
STACK_NBYTES = 512 * KIB
"""Bytes of each thread's native stack for the guest; a host function runs on what is left."""


class EngineKind(msgspec.Struct, frozen=True):
    """What tells engines apart; see `Engine`."""

    guard_pages: bool = True
    metered: bool = False
    is_64: bool = False


def configured(kind: EngineKind) -> wasmtime.Config:
    """Settings of an engine, but for where its linear memories come from."""
    config = wasmtime.Config()
    # With copy-on-write initialisation, a memory that is not wasmtime's own aborts the process:
    # https://github.com/bytecodealliance/wasmtime/issues/10740
    config.memory_init_cow = False
    config.memory_may_move = False
    # Of a memory that does not move, wasmtime takes the reservation for the most that it can have.
    config.memory_reservation = RESERVED_NBYTES if kind.guard_pages and not kind.is_64 else 0
    config.memory_guard_size = GUARD_NBYTES if kind.guard_pages else 0
    config.epoch_interruption = True
    config.consume_fuel = kind.metered
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
