"""Rewrites a module so that all of a guest's state can be reached from outside.

A guest's state between two messages is its linear memory and its mutable globals, and WebAssembly
shows only what a module exports. So each mutable global becomes an export, and the start function
becomes one instead of running by itself: it runs once when an actor is spawned, and never when it
is restored.

1. every section is copied as it is, except
2. the start section and custom sections, which are left out, and
3. the export section, which gains `isthmus:global:N` for each mutable global and `isthmus:start`

Names of functions are in a custom section. wasmtime would demangle them for each backtrace, which
takes for ever for some; `names.py` reads them from the original.
"""

from __future__ import annotations

from isthmus.errors import GuestInvalid
from isthmus.wasm import binary
from isthmus.wasm.binary import Reader, leb
from isthmus.wasm.interface import Interface
from isthmus.wasm.names import shown

VERSION = 2
"""Number of this rewriting: part of the name under which its result is cached."""
PREFIX = "isthmus:"
GLOBAL_EXPORT = PREFIX + "global:"
START_EXPORT = PREFIX + "start"

_LEFT_OUT = (binary.CUSTOM, binary.START)


def instrument(wasm: bytes, interface: Interface) -> bytes:
    """The rewritten module. `wasm` is valid, and `interface` is its own.

    GuestInvalid, without the guest's name, if the module has exports of the names that are added.
    """
    taken = [name for name in interface.exports if name.startswith(PREFIX)]
    if taken:
        raise GuestInvalid(f"exports {shown(taken[0])!r}: names from {PREFIX!r} on are ours")
    exports = [
        _export(f"{GLOBAL_EXPORT}{number}", binary.GLOBAL_KIND, number)
        for number in interface.mutable_globals
    ]
    if interface.start is not None:
        exports.append(_export(START_EXPORT, binary.FUNCTION_KIND, interface.start))
    parts = [wasm[: binary.HEADER_NBYTES]]
    for section in binary.read_sections(wasm):
        if section.kind in _LEFT_OUT:
            continue
        contents = section.contents(wasm)
        if section.kind == binary.EXPORT:
            contents = _with_exports(section.reader(wasm), exports)
        parts.append(bytes([section.kind]) + leb(len(contents)) + contents)
    return b"".join(parts)


def _export(name: str, kind: int, index: int) -> bytes:
    return leb(len(name)) + name.encode() + bytes([kind]) + leb(index)


def _with_exports(reader: Reader, exports: list[bytes]) -> bytes:
    count = reader.unsigned()
    return leb(count + len(exports)) + reader.data[reader.at : reader.end] + b"".join(exports)
