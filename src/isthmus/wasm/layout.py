"""Where a module puts its stack and its static data, as far as the module tells.

Active data segments say where initialised data lies. What LLVM's linker makes has the stack pointer
as its first global, whose first value is the stack's upper end; the stack lies below the data, or
between them and the heap. Zero-initialised data has no segment: unless `__data_end` is exported it
cannot be told from the heap. Code lies in no memory that a guest can address.

Linker: https://lld.llvm.org/WebAssembly.html
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from isthmus.wasm.instrument import Reader, read_sections, skip_code

_MEMORY, _GLOBAL, _EXPORT, _DATA = 5, 6, 7, 11
_IS_64 = 4
"""A bit of a memory's limits: its pointers have 64 bits."""
_ADDRESSES = {0x41: 0xFFFF_FFFF, 0x42: 0xFFFF_FFFF_FFFF_FFFF}
"""The bits of a number, by the instruction that gives it: i32.const, i64.const."""
_I32, _I64, _END = 0x7F, 0x7E, 0x0B
_GLOBAL_KIND = 3
_PASSIVE = 1
_WITH_MEMORY = 2
"""An active segment that names its memory."""


@dataclass(frozen=True)
class Layout:
    """Ranges of linear memory, (begin, nbytes); None where the module does not tell."""

    stack: tuple[int, int] | None
    data: tuple[int, int] | None


def has_64_bit_memory(wasm: bytes) -> bool:
    """Whether a module's own first memory is a 64-bit one; False where it has none, or is none."""
    try:
        for section in read_sections(wasm):
            if section.kind == _MEMORY:
                reader = section.reader(wasm)
                return reader.unsigned() > 0 and bool(reader.byte() & _IS_64)
    except IndexError:
        pass
    return False


def layout_of(wasm: bytes) -> Layout:
    """Of a valid module."""
    sections = {section.kind: section.reader(wasm) for section in read_sections(wasm)}
    segments = list(_segments(sections[_DATA])) if _DATA in sections else []
    pointer = _I64 if has_64_bit_memory(wasm) else _I32
    values = list(_constants(sections[_GLOBAL], pointer)) if _GLOBAL in sections else []
    exports = dict(_exported_globals(sections[_EXPORT])) if _EXPORT in sections else {}
    begin = min((at for at, _ in segments), default=0)
    end = max((at + nbytes for at, nbytes in segments), default=0)
    number = exports.get("__data_end")
    if number is not None and number < len(values):
        end = max(end, values[number] or 0)
    data = (begin, end - begin) if end > begin else None
    return Layout(_stack(values[0] if values else None, begin, end), data)


def _stack(top: int | None, data_begin: int, data_end: int) -> tuple[int, int] | None:
    if top and top <= data_begin:
        return 0, top
    if top and top > data_end:
        return data_end, top - data_end
    return None


def _segments(reader: Reader) -> Iterator[tuple[int, int]]:
    """(offset, nbytes) of those that lie at a constant place from the begin on."""
    for _ in range(reader.unsigned()):
        mode = reader.unsigned()
        if mode == _WITH_MEMORY:
            reader.unsigned()
        at = None if mode == _PASSIVE else _constant(reader)
        nbytes = reader.unsigned()
        reader.skip(nbytes)
        if at is not None:
            yield at, nbytes


def _constants(reader: Reader, pointer: int) -> Iterator[int | None]:
    """The first values of the module's own globals, where they are of a pointer's type and written
    down.
    """
    for _ in range(reader.unsigned()):
        kind = reader.byte()
        reader.byte()
        value = _constant(reader)
        yield value if kind == pointer else None


def _constant(reader: Reader) -> int | None:
    """Reads a constant expression: the value of `i32.const N` or `i64.const N`, unsigned, and of
    nothing else.
    """
    begin = reader.at
    mask = _ADDRESSES.get(reader.byte())
    if mask is not None:
        value = reader.signed()
        if reader.byte() == _END:
            return value & mask
    reader.at = begin
    skip_code(reader)
    return None


def _exported_globals(reader: Reader) -> Iterator[tuple[str, int]]:
    for _ in range(reader.unsigned()):
        name, kind, index = reader.name(), reader.byte(), reader.unsigned()
        if kind == _GLOBAL_KIND:
            yield name, index
