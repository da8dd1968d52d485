"""What a module shows to the outside: its imports, its exports, and what an instance keeps.

Read from the binary and not asked of wasmtime, whose C API ends the process if it is asked for a
type that it has no name for: a function with a `v128` among its values, for instance.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from isthmus.errors import GuestInvalid
from isthmus.wasm import binary
from isthmus.wasm.binary import Reader
from isthmus.wasm.bounds import Bound, require

_IS_64 = 4
"""A bit of a memory's limits: its pointers have 64 bits."""


class FunctionType(msgspec.Struct, frozen=True):
    """Types of a function's parameters and results, by their names in WebAssembly text."""

    params: tuple[str, ...]
    results: tuple[str, ...]


class Import(msgspec.Struct, frozen=True):
    """What a module imports; `type` is None unless it is a function."""

    module: str
    name: str
    kind: str
    type: FunctionType | None


class Export(msgspec.Struct, frozen=True):
    """What a module exports under some name; `type` is None unless it is a function."""

    kind: str
    type: FunctionType | None


class Interface(msgspec.Struct, frozen=True):
    """See the module."""

    imports: tuple[Import, ...]
    exports: dict[str, Export]
    """By name."""
    is_64: bool
    """Whether the memory's pointers have 64 bits."""
    mutable_globals: tuple[int, ...]
    """Indices of the mutable globals, ascending."""
    start: int | None
    """Index of the start function."""


def is_64_bit(wasm: bytes) -> bool:
    """Whether a module's own first memory is a 64-bit one; False if it has none, or is none."""
    try:
        for section in binary.read_sections(wasm):
            if section.kind == binary.MEMORY:
                reader = section.reader(wasm)
                return reader.unsigned() > 0 and bool(reader.limits()[0] & _IS_64)
    except (IndexError, GuestInvalid):
        pass
    return False


def read_interface(wasm: bytes) -> Interface:
    """A valid module's interface. GuestInvalid if a part is larger than its bound."""
    found = binary.readers(wasm)
    shown = [found[kind] for kind in (binary.IMPORT, binary.EXPORT) if kind in found]
    require(Bound.NAME_NBYTES, sum(it.end - it.at for it in shown))
    types = tuple(_types(found.get(binary.TYPE, _nothing())))
    imports = tuple(_imports(found.get(binary.IMPORT, _nothing()), types))
    functions = [it.type for it in imports if it.kind == "function"]
    functions += _functions(found.get(binary.FUNCTION, _nothing()), types)
    n_globals = sum(it.kind == "global" for it in imports)
    _require_tables(found.get(binary.TABLE, _nothing()))
    found.get(binary.ELEMENT, _nothing()).count(Bound.ELEMENT_SEGMENTS)
    found.get(binary.DATA, _nothing()).count(Bound.DATA_SEGMENTS)
    return Interface(
        imports,
        dict(read_exports(found.get(binary.EXPORT, _nothing()), functions)),
        is_64_bit(wasm),
        tuple(_mutable_globals(found.get(binary.GLOBAL, _nothing()), n_globals)),
        found[binary.START].unsigned() if binary.START in found else None,
    )


def read_exports(
    reader: Reader, functions: list[FunctionType | None]
) -> Iterator[tuple[str, Export]]:
    """Exports by name, in order; `functions` are all types of functions, by index."""
    for _ in range(reader.count(Bound.EXPORTS)):
        name, kind, index = reader.name(), reader.byte(), reader.unsigned()
        is_function = kind == binary.FUNCTION_KIND
        yield name, Export(binary.KINDS[kind], functions[index] if is_function else None)


def _nothing() -> Reader:
    """A section that is not there: it has no entries."""
    return Reader(b"\0")


def _types(reader: Reader) -> Iterator[FunctionType]:
    for _ in range(reader.count(Bound.TYPES)):
        reader.byte()  # a function's mark: wasmtime refuses all others
        params = tuple([reader.value_type() for _ in range(reader.count(Bound.VALUES))])
        yield FunctionType(
            params, tuple([reader.value_type() for _ in range(reader.count(Bound.VALUES))])
        )


def _imports(reader: Reader, types: tuple[FunctionType, ...]) -> Iterator[Import]:
    for _ in range(reader.count(Bound.IMPORTS)):
        module, name, kind = reader.name(), reader.name(), reader.byte()
        function = None
        if kind == binary.FUNCTION_KIND:
            function = types[reader.unsigned()]
        elif kind == binary.GLOBAL_KIND:
            reader.skip(2)
        else:
            if kind == binary.TABLE_KIND:
                reader.byte()
            reader.limits()
        yield Import(module, name, binary.KINDS[kind], function)


def _functions(reader: Reader, types: tuple[FunctionType, ...]) -> list[FunctionType]:
    return [types[reader.unsigned()] for _ in range(reader.count(Bound.FUNCTIONS))]


def _require_tables(reader: Reader) -> None:
    n_elements = 0
    for _ in range(reader.count(Bound.TABLES)):
        reader.byte()  # the type of its elements
        n_elements += reader.limits()[1]
    require(Bound.TABLE_ELEMENTS, n_elements)


def _mutable_globals(reader: Reader, n_imported: int) -> Iterator[int]:
    n_mutable = 0
    for index in range(reader.count(Bound.GLOBALS)):
        kind, mutable = reader.value_type(), reader.byte()
        reader.constant()
        if mutable and kind not in binary.NUMBERS:
            raise GuestInvalid(
                f"has a global {n_imported + index} that holds references and changes; "
                "a snapshot could not hold it"
            )
        if mutable:
            n_mutable = require(Bound.MUTABLE_GLOBALS, n_mutable + 1)
            yield n_imported + index
