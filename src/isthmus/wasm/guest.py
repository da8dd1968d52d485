"""A compiled guest, checked when it is loaded: what it imports, what it exports, what it is.

A guest is a core WebAssembly module that

* imports only functions of `isthmus` and `wasi_snapshot_preview1`, each with its known type;
* defines and exports one linear memory, `memory`, not shared: 32-bit, or 64-bit, and then pointers
  and lengths in its imports have 64 bits;
* exports `on_message`, (i32) -> i32, and, where it needs them, `_initialize`, () -> (), and
  `on_replay`, () -> i32;
* keeps no state that a snapshot could not hold; see `instrument.py`, which rewrites it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import wasmtime

from isthmus.errors import GuestInvalid
from isthmus.native import wasmtime_capi as capi
from isthmus.wasm import instrument
from isthmus.wasm.code_cache import CodeCache
from isthmus.wasm.hostcalls import HostImport, Signature

ON_MESSAGE = "on_message"
INITIALIZE = "_initialize"
ON_REPLAY = "on_replay"
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
}
_REACTOR = "build it as a reactor: -mexec-model=reactor"


Imports = Mapping[tuple[str, str], HostImport]


def by_name(imports: Sequence[HostImport]) -> Imports:
    """The same by module and name."""
    return {(imported.module, imported.name): imported for imported in imports}


class Guest:
    """See the module. Immutable, shared by all its instances and threads; owns the compiled code.

    `wasm` is the module as it was given, `sha256` its hash. `functions` has the type of each
    exported function whose values are all i32: what `Instance.call` can call. `is_64` says whether
    its memory is a 64-bit one, which its module alone decides.
    """

    def __init__(
        self,
        engine: wasmtime.Engine,
        linker: wasmtime.Linker,
        imports: Mapping[bool, Imports],
        wasm: bytes,
        name: str,
        cache: CodeCache,
        *,
        is_64: bool,
    ) -> None:
        """Compiles `wasm` on an engine for memories that are 64-bit or not. `imports` are those of
        either kind. Raises GuestInvalid, saying what was found and what to do about it.
        """
        self.name = name
        self.wasm = wasm
        self.sha256 = hashlib.sha256(wasm).hexdigest()
        _check_bytes(wasm, name)
        self.module, self.was_compiled = _compile(engine, wasm, self.sha256, name, cache)
        types = {export.name: export.type for export in self.module.exports}
        memory = types.get(MEMORY)
        self.is_64 = isinstance(memory, wasmtime.MemoryType) and memory.is_64
        _check_imports(self.module, imports, name, is_64=self.is_64)
        _check_exports(types, name)
        if self.is_64 != is_64:
            kinds = ("64-bit", "32-bit") if self.is_64 else ("32-bit", "64-bit")
            raise GuestInvalid(
                f"{name} has a {kinds[0]} memory: this engine is for {kinds[1]} ones"
            )
        self.pre = linker.instantiate_pre(self.module)
        self.functions = dict(_callable_functions(types))

    def __repr__(self) -> str:
        return f"<Guest {self.name} {self.sha256[:12]}>"


def _check_bytes(wasm: bytes, name: str) -> None:
    """Refuses what is not a core module, before wasmtime takes text for a module."""
    if wasm.startswith(_COMPONENT):
        raise GuestInvalid(f"{name} is a WebAssembly component: build a core module instead")
    if not wasm.startswith(_CORE):
        raise GuestInvalid(f"{name} is not a WebAssembly module: {_describe(wasm)}")


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


def _compile(
    engine: wasmtime.Engine, wasm: bytes, sha256: str, name: str, cache: CodeCache
) -> tuple[wasmtime.Module, bool]:
    """The rewritten module, and whether it had to be compiled: the cache may have its code."""
    stem = f"{sha256}.{instrument.VERSION}"
    code_name = f"{stem}.{capi.VERSION}.cwasm"
    if code := cache.read(code_name):
        try:
            return wasmtime.Module.deserialize(engine, code), False
        except wasmtime.WasmtimeError:  # made on another processor, or with other settings
            cache.forget(code_name)
    try:
        wasmtime.Module.validate(engine, wasm)
        rewritten = cache.get(f"{stem}.wasm", lambda: instrument.instrument(wasm, name))
        module = wasmtime.Module(engine, rewritten)
    except wasmtime.WasmtimeError as error:
        raise GuestInvalid(f"{name} is not valid WebAssembly: {error}") from None
    cache.get(code_name, lambda: bytes(module.serialize()))
    return module, True


def _check_imports(
    module: wasmtime.Module, imports: Mapping[bool, Imports], name: str, *, is_64: bool
) -> None:
    wrong = [
        text for it in module.imports if (text := _import_problem(it, imports[is_64])) is not None
    ]
    if not wrong:
        return
    hint = ""
    if not any(_import_problem(it, imports[not is_64]) for it in module.imports):
        found, wanted = ("64-bit", "32-bit") if is_64 else ("32-bit", "64-bit")
        hint = (
            f". These are the types for a {wanted} memory, and its memory is {found}: declare "
            "pointers and lengths as wide as the memory, as isthmus.h does"
        )
    raise GuestInvalid(f"{name} imports what no host has: {'; '.join(wrong)}{hint}")


def _import_problem(found: wasmtime.ImportType, imports: Imports) -> str | None:
    full_name = f"{found.module}.{found.name}"
    known = imports.get((found.module, found.name or ""))
    if known is None:
        return f"{full_name} is unknown"
    if not isinstance(found.type, wasmtime.FuncType):
        return f"{full_name} is a function, not a {_kind(found.type)}"
    if str(_signature(found.type)) != str(known.signature):
        return f"{full_name} is {known.signature}, not {_signature(found.type)}"
    return None


def _check_exports(types: Mapping[str, object], name: str) -> None:
    if "_start" in types:
        raise GuestInvalid(f"{name} is a command, with _start: {_REACTOR}")
    memory = types.get(MEMORY)
    if not isinstance(memory, wasmtime.MemoryType):
        raise GuestInvalid(f"{name} does not export its linear memory as {MEMORY!r}")
    if memory.is_shared:
        raise GuestInvalid(f"{name} has a shared memory: build it without threads")
    if ON_MESSAGE not in types:
        raise GuestInvalid(f"{name} does not export {ON_MESSAGE}")
    for export, signature in _EXPORTS.items():
        found = types.get(export)
        if found is None:
            continue
        if not isinstance(found, wasmtime.FuncType):
            raise GuestInvalid(f"{name} exports {export} as a {_kind(found)}, not a function")
        if _signature(found) != signature:
            raise GuestInvalid(f"{name}: {export} must be {signature}, not {_signature(found)}")


def _signature(found: wasmtime.FuncType) -> Signature:
    """A type as a Signature; several results appear as one."""
    results = ", ".join(str(kind) for kind in found.results)
    return Signature(tuple(str(kind) for kind in found.params), results or None)


def _callable_functions(types: Mapping[str, object]) -> Iterator[tuple[str, Signature]]:
    for name, found in types.items():
        if isinstance(found, wasmtime.FuncType):
            signature = _signature(found)
            if set(signature.params) <= {"i32"} and signature.result in (None, "i32"):
                yield name, signature


def _kind(found: object) -> str:
    return type(found).__name__.removesuffix("Type").lower()
