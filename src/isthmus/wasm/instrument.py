"""Rewrites a module so that all of a guest's state can be reached from outside.

A guest's state between two messages is its linear memory and its mutable globals, and WebAssembly
shows only what a module exports. So each mutable global becomes an export, and the start function
becomes one instead of running by itself: it runs once when an actor is spawned, and never when it
is restored.

1. every section is copied as it is, except
2. the start section, which is left out, and
3. the export section, which gains `isthmus:global:N` for each mutable global and `isthmus:start`

State that would stay hidden is refused with its reason: globals that hold references, tables that
the module's own code changes, and segments that it drops. No compiler of C, C++, Rust, Zig or
AssemblyScript makes any of them for a guest.

Specification: https://webassembly.github.io/spec/core/binary/modules.html
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from isthmus.errors import GuestInvalid

VERSION = 1
"""Of the rewriting: part of the name under which its result is cached."""
PREFIX = "isthmus:"
GLOBAL_EXPORT = PREFIX + "global:"
START_EXPORT = PREFIX + "start"

_HEADER_NBYTES = 8
_IMPORT, _GLOBAL, _EXPORT, _START, _CODE = 2, 6, 7, 8, 10
_FUNCTION_KIND, _GLOBAL_KIND = 0, 3
_NUMBERS = (0x7F, 0x7E, 0x7D, 0x7C, 0x7B)
"""i32, i64, f32, f64, v128."""
_MOST_BITS = 70
"""Of a LEB128 of 64 bits, padded as far as WebAssembly lets it be."""


class Reader:
    """Reads a part of a module. IndexError where it ends too early."""

    def __init__(self, data: bytes, at: int = 0, end: int | None = None) -> None:
        self.data = data
        self.at = at
        self.end = len(data) if end is None else end

    def byte(self) -> int:
        """The next one."""
        if self.at >= self.end:
            raise IndexError("the part ends early")
        self.at += 1
        return self.data[self.at - 1]

    def unsigned(self) -> int:
        """An unsigned LEB128; a signed one is skipped by it as well."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift >= _MOST_BITS:
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
            if shift >= _MOST_BITS:
                raise IndexError("a number without an end")

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


@dataclass(frozen=True)
class Section:
    """A part of a module, by its kind in the specification."""

    kind: int
    begin: int
    """Where its contents begin."""
    end: int

    def reader(self, wasm: bytes) -> Reader:
        """Of its contents."""
        return Reader(wasm, self.begin, self.end)

    def contents(self, wasm: bytes) -> bytes:
        """As they stand in the module."""
        return wasm[self.begin : self.end]


def instrument(wasm: bytes, name: str) -> bytes:
    """The rewritten module. `wasm` is valid; GuestInvalid where some of its state stays hidden."""
    try:
        return _instrument(wasm, name)
    except (IndexError, UnicodeDecodeError):
        raise GuestInvalid(f"{name} is not valid WebAssembly: a section ends early") from None


def _instrument(wasm: bytes, name: str) -> bytes:
    sections = list(read_sections(wasm))
    by_kind = {section.kind: section for section in sections}
    exports = []
    if _GLOBAL in by_kind:
        n_imported = _n_imported_globals(by_kind[_IMPORT].reader(wasm)) if _IMPORT in by_kind else 0
        for index in _mutable_globals(by_kind[_GLOBAL].reader(wasm), name):
            number = n_imported + index
            exports.append(_export(f"{GLOBAL_EXPORT}{number}", _GLOBAL_KIND, number))
    if _START in by_kind:
        function = by_kind[_START].reader(wasm).unsigned()
        exports.append(_export(START_EXPORT, _FUNCTION_KIND, function))
    if _CODE in by_kind:
        _refuse_hidden_changes(by_kind[_CODE].reader(wasm), name)
    parts = [wasm[:_HEADER_NBYTES]]
    for section in sections:
        contents = section.contents(wasm)
        if section.kind == _EXPORT:
            contents = _with_exports(section.reader(wasm), exports, name)
        if section.kind != _START:
            parts.append(bytes([section.kind]) + _leb(len(contents)) + contents)
    return b"".join(parts)


def read_sections(wasm: bytes) -> Iterator[Section]:
    """The sections of a valid module, in order. IndexError where one ends too early."""
    reader = Reader(wasm, _HEADER_NBYTES)
    while reader.at < reader.end:
        kind, nbytes = reader.byte(), reader.unsigned()
        begin = reader.at
        reader.skip(nbytes)
        yield Section(kind, begin, reader.at)


def _n_imported_globals(reader: Reader) -> int:
    """Globals among the imports; what a guest may import has none, which is checked elsewhere."""
    count = 0
    for _ in range(reader.unsigned()):
        reader.name()
        reader.name()
        kind = reader.byte()
        if kind == _GLOBAL_KIND:
            reader.skip(2)
            count += 1
        elif kind == _FUNCTION_KIND:
            reader.unsigned()
        else:  # a table or a memory: refused later, with everything else that is wrong
            return count
    return count


def _mutable_globals(reader: Reader, name: str) -> Iterator[int]:
    for index in range(reader.unsigned()):
        kind, mutable = reader.byte(), reader.byte()
        skip_code(reader)
        if mutable and kind not in _NUMBERS:
            raise GuestInvalid(
                f"{name}: global {index} holds references and changes; a snapshot could not hold it"
            )
        if mutable:
            yield index


def _export(name: str, kind: int, index: int) -> bytes:
    return _leb(len(name)) + name.encode() + bytes([kind]) + _leb(index)


def _with_exports(reader: Reader, exports: list[bytes], name: str) -> bytes:
    count = reader.unsigned()
    begin = reader.at
    for _ in range(count):
        exported = reader.name()
        if exported.startswith(PREFIX):
            raise GuestInvalid(f"{name} exports {exported!r}: names from {PREFIX!r} on are ours")
        reader.byte()
        reader.unsigned()
    return _leb(count + len(exports)) + reader.data[begin : reader.end] + b"".join(exports)


def _leb(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


# ---------------------------------------------------------------------------------- instructions

_TABLE_SET = 0x26
_HIDDEN_CHANGES = {
    0x09: "drops a data segment (data.drop)",
    0x0C: "changes a table (table.init)",
    0x0D: "drops an element segment (elem.drop)",
    0x0E: "changes a table (table.copy)",
    0x0F: "grows a table (table.grow)",
    0x11: "changes a table (table.fill)",
}
"""Of the instructions that begin with 0xFC."""


def _refuse_hidden_changes(reader: Reader, name: str) -> None:
    """GuestInvalid where code changes what a snapshot does not hold."""
    for _ in range(reader.unsigned()):
        nbytes = reader.unsigned()
        body = Reader(reader.data, reader.at, reader.at + nbytes)
        reader.skip(nbytes)
        for _ in range(body.unsigned()):  # groups of locals
            body.unsigned()
            body.byte()
        while body.at < body.end:
            if change := _skip_instruction(body):
                raise GuestInvalid(f"{name} {change}, which a snapshot could not hold")


def skip_code(reader: Reader) -> None:
    """Skips a constant expression, its `end` included."""
    while reader.data[reader.at] != 0x0B:
        _skip_instruction(reader)
    reader.byte()


def _skip_instruction(reader: Reader) -> str | None:
    """Skips one instruction and says what it changes that would stay hidden."""
    opcode = reader.byte()
    if opcode == _TABLE_SET:
        reader.unsigned()
        return "changes a table (table.set)"
    if opcode == 0xFC:
        number = reader.unsigned()
        _skip_immediates(reader, _immediates_fc(number))
        return _HIDDEN_CHANGES.get(number)
    if opcode == 0xFD:
        _skip_immediates(reader, _immediates_simd(reader.unsigned()))
    elif opcode == 0x0E:  # br_table
        for _ in range(reader.unsigned() + 1):
            reader.unsigned()
    elif opcode == 0x1C:  # select with types
        reader.skip(reader.unsigned())
    else:
        _skip_immediates(reader, _IMMEDIATES[opcode])
    return None


def _skip_immediates(reader: Reader, kinds: str) -> None:
    """`n` is a LEB128 number, `1`, `4`, `8` and `g` are 1, 4, 8 and 16 bytes."""
    for kind in kinds:
        if kind == "n":
            reader.unsigned()
        else:
            reader.skip({"1": 1, "4": 4, "8": 8, "g": 16}[kind])


def _immediates() -> list[str]:
    table = [""] * 256
    for opcode in (*range(0x02, 0x05), 0x0C, 0x0D, 0x10, 0x12, *range(0x20, 0x26)):
        table[opcode] = "n"
    for opcode in (0x11, 0x13, *range(0x28, 0x3F)):
        table[opcode] = "nn"
    for opcode in (0x3F, 0x40, 0x41, 0x42, 0xD0, 0xD2):
        table[opcode] = "n"
    table[0x43], table[0x44] = "4", "8"
    return table


_IMMEDIATES = _immediates()


def _immediates_fc(number: int) -> str:
    if number <= 7:
        return ""
    return "nn" if number in (8, 10, 12, 14) else "n"


def _immediates_simd(number: int) -> str:
    if number <= 11 or number in (92, 93):
        return "nn"
    if number in (12, 13):
        return "g"
    if 21 <= number <= 34:
        return "1"
    return "nn1" if 84 <= number <= 91 else ""
