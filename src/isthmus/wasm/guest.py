"""A compiled guest, checked when it is loaded: what it imports, what it exports, what it is.

A guest is a core WebAssembly module that

* imports only functions of `isthmus`, `wasi_snapshot_preview1` and `wasi_ephemeral_nn`, each with
  its known type;
* defines and exports one linear memory, `memory`, not shared: 32-bit, or 64-bit, and then pointers
  and lengths in its imports have 64 bits;
* exports either `on_message`, (i32) -> i32, and, where it needs them, `_initialize`, () -> (), and
  `on_replay` and `on_options`, () -> i32; or `_start`, () -> (), and is a command then, with a new
  instance for each message;
* keeps no state that a snapshot could not hold; see `instrument.py`, which rewrites it;
* is within the bounds of `bounds.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import wasmtime

from isthmus.errors import GuestInvalid
from isthmus.wasm.bounds import Bound, require
from isthmus.wasm.card import GuestCard, read_card, require_known_abi
from isthmus.wasm.hostcalls import HostImport, Signature
from isthmus.wasm.instrument import START_EXPORT
from isthmus.wasm.interface import Export, FunctionType, Import, Interface
from isthmus.wasm.lines import Lines
from isthmus.wasm.names import function_names, shown
from isthmus.wasm.resumable import is_resumable
from isthmus.wasm.wasi_nn import MODULE as NN_MODULE

START = "_start"
ON_MESSAGE = "on_message"
INITIALIZE = "_initialize"
ON_REPLAY = "on_replay"
ON_OPTIONS = "on_options"
MEMORY = "memory"

_CORE = b"\0asm\x01\0\0\0"
_COMPONENT = b"\0asm\x0d\0\x01\0"
_KNOWN_BYTES = {
    b"(": "WebAssembly text: translate it with wat2wasm first",
    b"\x7fELF": "an ELF binary of this machine: compile for wasm32-wasi",
    b"\xcf\xfa\xed\xfe": "a macOS binary: compile for wasm32-wasi",
    b"!<arch>": "a static library: link it into a module",
    b"BC\xc0\xde": "LLVM bitcode: link it into a module",
    b"\x1f\x8b": "gzip data: unpack it",
    b"PK": "a zip file: unpack it",
    b"GGUF": "a model, not a guest",
}
_EXPORTS = {
    ON_MESSAGE: Signature(("i32",), "i32"),
    INITIALIZE: Signature((), None),
    ON_REPLAY: Signature((), "i32"),
    ON_OPTIONS: Signature((), "i32"),
    START: Signature((), None),
}
_RESULTS: tuple[tuple[str, ...], ...] = ((), ("i32",))

Imports = Mapping[tuple[str, str], HostImport]
_SHOWN = 8
"""Wrong imports that an error lists."""


def by_name(imports: Sequence[HostImport]) -> Imports:
    """The same by module and name."""
    return {(imported.module, imported.name): imported for imported in imports}


class Guest:
    """See the module. Immutable, shared by all its instances and threads; owns the compiled code.

    `wasm` is the module as it was given, `sha256` its hash. `functions` has the type of each
    exported function whose values are all i32: what `Instance.call` can call. `is_64` says whether
    its memory is a 64-bit one, which its module alone decides; `is_command` whether it has a
    `_start`, and a new instance for each message. `was_compiled` is false if its code was found in
    the cache. A `trusted` one comes with this package.
    """

    def __init__(
        self,
        wasm: bytes,
        key: tuple[str, str],
        interface: Interface,
        pre: wasmtime.InstancePre,
        *,
        was_compiled: bool,
        trusted: bool,
    ) -> None:
        """`key` is its hash and name, `pre` the module, linked, `interface` what it shows, which
        was checked.
        """
        self.sha256, self.name = key
        self.wasm = wasm
        self.pre = pre
        self.was_compiled = was_compiled
        self.trusted = trusted
        self.is_64 = interface.is_64
        self.is_command = START in interface.exports
        self.is_resumable = ON_MESSAGE in interface.exports and is_resumable(wasm)
        self.mutable_globals = interface.mutable_globals
        self.functions = dict(_callable_functions(interface))

    @cached_property
    def function_names(self) -> Mapping[int, str]:
        """Names of its functions by index, as far as the module has them, fit to be shown."""
        return function_names(self.wasm)

    @cached_property
    def lines(self) -> Lines:
        """Files and lines of its code, as far as the module has them."""
        return Lines(self.wasm)

    @cached_property
    def card(self) -> GuestCard | None:
        """What it says of itself; None if it says nothing."""
        return read_card(self.wasm)

    def __repr__(self) -> str:
        return f"<Guest {self.name} {self.sha256[:12]}>"


def check_bytes(wasm: bytes) -> None:
    """Refuses what is not a core module. GuestInvalid, without the guest's name."""
    require(Bound.NBYTES, len(wasm))
    if wasm.startswith(_COMPONENT):
        raise GuestInvalid("is a WebAssembly component: build a core module instead")
    if not wasm.startswith(_CORE):
        raise GuestInvalid(f"is not a WebAssembly module: {_describe(wasm)}")
    require_known_abi(wasm)


def check_interface(interface: Interface, imports: Mapping[bool, Imports], *, is_64: bool) -> None:
    """Checks what a module imports and exports, for an engine of memories that are 64-bit or not.

    `imports` are those of either kind. GuestInvalid, without the guest's name.
    """
    _check_imports(interface, imports)
    _check_exports(interface.exports)
    if interface.is_64 != is_64:
        kinds = ("64-bit", "32-bit") if interface.is_64 else ("32-bit", "64-bit")
        raise GuestInvalid(f"has a {kinds[0]} memory: this engine is for {kinds[1]} ones")


def _describe(wasm: bytes) -> str:
    if not wasm:
        return "it is empty"
    for known, description in _KNOWN_BYTES.items():
        if wasm.lstrip()[: len(known)] == known:
            return f"it looks like {description}"
    if wasm[:4] == _CORE[:4]:
        return f"it has an unknown version, {wasm[4:8].hex(' ') or 'none'}"
    try:
        return f"it begins with the text {wasm[:16].decode('ascii')!r}"
    except UnicodeDecodeError:
        return f"it begins with the bytes {wasm[:8].hex(' ')}"


def _check_imports(interface: Interface, imports: Mapping[bool, Imports]) -> None:
    is_64 = interface.is_64
    wrong = [
        text
        for it in interface.imports
        if (text := _import_problem(it, imports[is_64])) is not None
    ]
    if not wrong:
        return
    if len(wrong) > _SHOWN:
        wrong[_SHOWN:] = [f"and {len(wrong) - _SHOWN} more"]
    hint = ""
    if is_64 and any(it.module == NN_MODULE for it in interface.imports):
        hint = f". {NN_MODULE} exists for 32-bit memories only: build the guest for wasm32"
    elif not any(_import_problem(it, imports[not is_64]) for it in interface.imports):
        found, wanted = ("64-bit", "32-bit") if is_64 else ("32-bit", "64-bit")
        hint = (
            f". These are the types for a {wanted} memory, and its memory is {found}: declare "
            "pointers and lengths as wide as the memory, as isthmus.h does"
        )
    raise GuestInvalid(f"imports what no host has: {'; '.join(wrong)}{hint}")


def _import_problem(found: Import, imports: Imports) -> str | None:
    full_name = shown(f"{found.module}.{found.name}")
    known = imports.get((found.module, found.name))
    if known is None:
        return f"{full_name} is unknown"
    if found.type is None:
        return f"{full_name} is a function, not a {found.kind}"
    if str(_signature(found.type)) != str(known.signature):
        return f"{full_name} is {known.signature}, not {shown(str(_signature(found.type)))}"
    return None


def _check_exports(exports: Mapping[str, Export]) -> None:
    memory = exports.get(MEMORY)
    if memory is None or memory.kind != "memory":
        raise GuestInvalid(f"does not export its linear memory as {MEMORY!r}")
    if START in exports and ON_MESSAGE in exports:
        raise GuestInvalid(
            f"exports {START} and {ON_MESSAGE}: a command has the first alone; for the other one "
            "build it as a reactor, -mexec-model=reactor"
        )
    if START not in exports and ON_MESSAGE not in exports:
        raise GuestInvalid(f"does not export {ON_MESSAGE}, nor {START} as a command")
    for export, signature in _EXPORTS.items():
        found = exports.get(export)
        if found is None:
            continue
        if found.type is None:
            raise GuestInvalid(f"exports {export} as a {found.kind}, not a function")
        if _signature(found.type) != signature:
            text = shown(str(_signature(found.type)))
            raise GuestInvalid(f"is refused: {export} must be {signature}, not {text}")


def _signature(found: FunctionType) -> Signature:
    """A type as a Signature; several results appear as one."""
    return Signature(found.params, ", ".join(found.results) or None)


def _callable_functions(interface: Interface) -> Iterator[tuple[str, Signature]]:
    for name, found in interface.exports.items():
        if found.type and set(found.type.params) <= {"i32"} and found.type.results in _RESULTS:
            yield name, _signature(found.type)
    if interface.start is not None:
        yield START_EXPORT, Signature((), None)
