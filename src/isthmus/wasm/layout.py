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

from isthmus.errors import GuestInvalid
from isthmus.wasm import binary
from isthmus.wasm.binary import Reader
from isthmus.wasm.bounds import Bound
from isthmus.wasm.interface import is_64_bit

_PASSIVE = 1
_WITH_MEMORY = 2
"""An active segment that names its memory."""


@dataclass(frozen=True)
class Layout:
    """Ranges of linear memory, (begin, nbytes); None where the module does not tell."""

    stack: tuple[int, int] | None
    data: tuple[int, int] | None


def layout_of(wasm: bytes) -> Layout:
    """The layout of a module. GuestInvalid if it is none that can be read."""
    try:
        return _layout_of(wasm)
    except (IndexError, UnicodeDecodeError):
        raise GuestInvalid("the guest is not valid WebAssembly: a section ends early") from None


def _layout_of(wasm: bytes) -> Layout:
    sections = binary.readers(wasm)
    segments = list(_segments(sections[binary.DATA])) if binary.DATA in sections else []
    pointer = "i64" if is_64_bit(wasm) else "i32"
    values: list[int | None] = []
    if binary.GLOBAL in sections:
        values = list(_constants(sections[binary.GLOBAL], pointer))
    number = _data_end(sections[binary.EXPORT]) if binary.EXPORT in sections else None
    begin = min((at for at, _ in segments), default=0)
    end = max((at + nbytes for at, nbytes in segments), default=0)
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
    for _ in range(reader.count(Bound.DATA_SEGMENTS)):
        mode = reader.unsigned()
        if mode == _WITH_MEMORY:
            reader.unsigned()
        at = None if mode == _PASSIVE else reader.constant()
        nbytes = reader.unsigned()
        reader.skip(nbytes)
        if at is not None:
            yield at, nbytes


def _constants(reader: Reader, pointer: str) -> Iterator[int | None]:
    """The first values of the module's own globals; None for one that is not of a pointer's type or
    not written down.
    """
    for _ in range(reader.count(Bound.GLOBALS)):
        kind = reader.value_type()
        reader.byte()  # whether it is mutable
        value = reader.constant()
        yield value if kind == pointer else None


def _data_end(reader: Reader) -> int | None:
    """The index of the exported global `__data_end`, if there is one."""
    for _ in range(reader.count(Bound.EXPORTS)):
        name, kind, index = reader.name(), reader.byte(), reader.unsigned()
        if kind == binary.GLOBAL_KIND and name == "__data_end":
            return index
    return None
