"""A WebAssembly binary as a sequence of sections, and the numbers and names in it.

Everything here comes from a stranger and may be read before anybody validated it, so each count is
compared with its bound (`bounds.py`) before anything is done that often.

Specification: https://webassembly.github.io/spec/core/binary/modules.html
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from isthmus.wasm.bounds import Bound, require

HEADER_NBYTES = 8
CUSTOM, TYPE, IMPORT, FUNCTION, TABLE, MEMORY, GLOBAL, EXPORT, START, ELEMENT, CODE, DATA = range(
    12
)
"""Kinds of sections."""
FUNCTION_KIND, TABLE_KIND, MEMORY_KIND, GLOBAL_KIND = range(4)
"""Kinds of imports and exports."""
KINDS = ("function", "table", "memory", "global", "tag")
VALUE_TYPES = {
    0x7F: "i32",
    0x7E: "i64",
    0x7D: "f32",
    0x7C: "f64",
    0x7B: "v128",
    0x70: "funcref",
    0x6F: "externref",
}
NUMBERS = ("i32", "i64", "f32", "f64", "v128")
_MAX_BITS = 70
"""Bits of a LEB128 of 64 bits that is padded as far as WebAssembly lets it be."""
_END = 0x0B


class Reader:
    """A part of a module, read from its begin on. IndexError if it ends too early."""

    def __init__(self, data: bytes, at: int = 0, end: int | None = None) -> None:
        self.data = data
        self.at = at
        self.end = len(data) if end is None else min(end, len(data))

    def byte(self) -> int:
        """The next byte."""
        if self.at >= self.end:
            raise IndexError("the part ends early")
        self.at += 1
        return self.data[self.at - 1]

    def unsigned(self) -> int:
        """An unsigned LEB128; it also skips a signed one."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift >= _MAX_BITS:
                raise IndexError("a number without an end")

    def signed(self) -> int:
        """A signed LEB128."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value - (1 << shift) if byte & 0x40 else value
            if shift >= _MAX_BITS:
                raise IndexError("a number without an end")

    def count(self, bound: Bound) -> int:
        """A number of things that follow. GuestInvalid if it is beyond its bound."""
        return require(bound, self.unsigned())

    def skip(self, nbytes: int) -> None:
        """Passes over so many bytes."""
        self.at += nbytes
        if self.at > self.end:
            raise IndexError("the part ends early")

    def name(self) -> str:
        """A text with its length before it."""
        nbytes = self.unsigned()
        self.skip(nbytes)
        return self.data[self.at - nbytes : self.at].decode()

    def value_type(self) -> str:
        """A value's type."""
        byte = self.byte()
        return VALUE_TYPES.get(byte) or f"type {byte:#x}"

    def limits(self) -> tuple[int, int]:
        """Flags and minimum of a table or memory; the maximum is skipped."""
        flags, minimum = self.unsigned(), self.unsigned()
        if flags & 1:
            self.unsigned()
        return flags, minimum

    def constant(self) -> int | None:
        """Skips a constant expression: its value if it is one `i32.const` or `i64.const`."""
        value: int | None = None
        n_instructions = 0
        while (opcode := self.byte()) != _END:
            n_instructions += 1
            value = self._operand(opcode)
        return value if n_instructions == 1 else None

    def _operand(self, opcode: int) -> int | None:
        """Skips what follows an instruction that a constant expression may have."""
        if opcode == 0x41:
            return self.signed() & 0xFFFF_FFFF
        if opcode == 0x42:
            return self.signed() & 0xFFFF_FFFF_FFFF_FFFF
        if opcode in (0x23, 0xD0, 0xD2):  # global.get, ref.null, ref.func
            self.unsigned()
        elif opcode in (0x43, 0x44):
            self.skip(4 if opcode == 0x43 else 8)
        elif opcode == 0xFD:  # v128.const is the only one
            self.unsigned()
            self.skip(16)
        elif opcode not in (0x6A, 0x6B, 0x6C, 0x7C, 0x7D, 0x7E):
            raise IndexError(f"{opcode:#x} is no constant instruction")
        return None


@dataclass(frozen=True)
class Section:
    """A part of a module, by its kind in the specification."""

    kind: int
    begin: int
    """Where its contents begin."""
    end: int

    def reader(self, wasm: bytes) -> Reader:
        """A reader of its contents."""
        return Reader(wasm, self.begin, self.end)

    def contents(self, wasm: bytes) -> bytes:
        """Its contents, as they stand in the module."""
        return wasm[self.begin : self.end]


def read_sections(wasm: bytes) -> Iterator[Section]:
    """The sections of a module, in order. IndexError if one ends too early, GuestInvalid if there
    are too many.
    """
    reader = Reader(wasm, HEADER_NBYTES)
    n_sections = 0
    while reader.at < reader.end:
        n_sections = require(Bound.SECTIONS, n_sections + 1)
        kind, nbytes = reader.byte(), reader.unsigned()
        begin = reader.at
        reader.skip(nbytes)
        yield Section(kind, begin, reader.at)


def readers(wasm: bytes) -> dict[int, Reader]:
    """A reader for each kind of section but custom ones. Raises as `read_sections`."""
    return {it.kind: it.reader(wasm) for it in read_sections(wasm) if it.kind != CUSTOM}


def leb(value: int) -> bytes:
    """An unsigned LEB128."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
