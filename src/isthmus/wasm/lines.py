"""Files and lines of a module's code, from the DWARF that `isthmus build --debug` leaves in it.

Only the line tables are read: a program for each unit, which a machine of a few registers runs to
make rows of (address, file, line). An address is an offset in the module's code section. A module
comes from a stranger, so what is malformed or too large has no lines, and nothing is raised.

Specification: https://dwarfstd.org/doc/DWARF5.pdf, section 6.2
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from isthmus.errors import GuestInvalid
from isthmus.units import MIB
from isthmus.wasm import binary
from isthmus.wasm.binary import Reader
from isthmus.wasm.names import shown

_MAX_NBYTES = 8 * MIB
"""Bytes of line tables that are read: a second or two."""
_PATH, _FOLDER = 1, 2
"""What an entry of a table of files says, in version 5."""
_STRING, _DATA2, _BLOCK, _DATA1, _UDATA, _LINE_STRP, _DATA16 = 0x08, 5, 9, 0x0B, 0x0F, 0x1F, 0x1E


class Row(NamedTuple):
    """From an address on, code comes from a line of a file."""

    address: int
    file: str
    line: int


class Lines:
    """The lines of one module, found when it traps."""

    def __init__(self, wasm: bytes) -> None:
        self._bodies: Sequence[int] = ()
        """Where the body of each function begins, in the code section's contents."""
        self._rows: list[Row] = []
        try:
            self._n_imported, self._bodies = _bodies(wasm)
            self._rows = sorted(_rows(wasm))
        except (IndexError, GuestInvalid, UnicodeDecodeError):
            self._rows = []

    def find(self, function: int, offset: int) -> str:
        """`file:line` of the instruction at an offset of a function's body; empty if not known."""
        number = function - self._n_imported if self._rows else -1
        if not 0 <= number < len(self._bodies):
            return ""
        address = self._bodies[number] + offset
        at = bisect_right(self._rows, address, key=lambda row: row.address) - 1
        if at < 0 or not self._rows[at].line or self._rows[at].address < self._bodies[number]:
            return ""
        return f"{shown(self._rows[at].file)}:{self._rows[at].line}"


def _bodies(wasm: bytes) -> tuple[int, list[int]]:
    """The number of imported functions, and the begin of each body in the code section."""
    n_imported, bodies = 0, []
    for section in binary.read_sections(wasm):
        if section.kind == binary.CODE:
            reader = section.reader(wasm)
            for _ in range(reader.unsigned()):
                nbytes = reader.unsigned()
                bodies.append(reader.at - section.begin)
                reader.skip(nbytes)
        elif section.kind == binary.IMPORT:
            n_imported = _imported_functions(section.reader(wasm))
    return n_imported, bodies


def _imported_functions(reader: Reader) -> int:
    n = 0
    for _ in range(reader.unsigned()):
        _module, _name, kind = reader.name(), reader.name(), reader.byte()
        if kind == binary.FUNCTION_KIND:
            reader.unsigned()
            n += 1
        elif kind == binary.GLOBAL_KIND:
            reader.skip(2)
        else:
            reader.skip(int(kind == binary.TABLE_KIND))
            reader.limits()
    return n


def _rows(wasm: bytes) -> Iterator[Row]:
    found: dict[str, Reader] = {}
    for section in binary.read_sections(wasm):
        if section.kind == binary.CUSTOM:
            reader = section.reader(wasm)
            found[reader.name()] = reader
    tables = found.get(".debug_line")
    if tables is None or tables.end - tables.at > _MAX_NBYTES:
        return
    strings = found.get(".debug_line_str")
    while tables.at < tables.end:
        nbytes = _fixed(tables, 4)
        begin = tables.at
        tables.skip(nbytes)
        yield from _Program(Reader(wasm, begin, tables.at), strings).run()


def _fixed(reader: Reader, nbytes: int) -> int:
    """A little-endian number."""
    at = reader.at
    reader.skip(nbytes)
    return int.from_bytes(reader.data[at : reader.at], "little")


def _string(reader: Reader) -> str:
    """A text that ends with a NUL."""
    end = reader.data.find(b"\0", reader.at, reader.end)
    if end < 0:
        raise IndexError("a text without an end")
    text = reader.data[reader.at : end].decode(errors="replace")
    reader.at = end + 1
    return text


class _Program:
    """One unit's program, and the registers of the machine that runs it."""

    def __init__(self, reader: Reader, strings: Reader | None) -> None:
        self._reader = reader
        self._strings = strings
        self._version = _fixed(reader, 2)
        if self._version >= 5:
            reader.skip(2)  # sizes of an address and a segment
        begin = _fixed(reader, 4) + reader.at
        self._step = max(reader.byte(), 1)
        if self._version >= 4:
            reader.byte()  # operations of one instruction
        reader.byte()  # whether a line begins a statement
        self._line_base = (reader.byte() ^ 0x80) - 0x80
        self._line_range = max(reader.byte(), 1)
        self._opcode_base = reader.byte()
        self._lengths = [reader.byte() for _ in range(self._opcode_base - 1)]
        self._files = self._files_5() if self._version >= 5 else self._files_4()
        reader.at = begin
        self._reset()

    def _reset(self) -> None:
        self._address, self._file, self._line = 0, 1, 1

    def run(self) -> Iterator[Row]:
        """The rows that it makes."""
        reader = self._reader
        while reader.at < reader.end:
            opcode = reader.byte()
            if opcode >= self._opcode_base:
                self._advance((opcode - self._opcode_base) // self._line_range)
                self._line += self._line_base + (opcode - self._opcode_base) % self._line_range
                yield self._row()
            elif opcode == 0:
                yield from self._extended()
            elif opcode == 1:
                yield self._row()
            else:
                self._standard(opcode)

    def _row(self) -> Row:
        known = 0 <= self._file < len(self._files)
        return Row(self._address, self._files[self._file] if known else "?", max(self._line, 0))

    def _advance(self, steps: int) -> None:
        self._address += steps * self._step

    def _extended(self) -> Iterator[Row]:
        reader = self._reader
        nbytes = reader.unsigned()
        end = reader.at + nbytes
        opcode = reader.byte()
        if opcode == 1:  # the end of a sequence: what follows is nobody's
            yield Row(self._address, "", 0)
            self._reset()
        elif opcode == 2:
            self._address = _fixed(reader, nbytes - 1)
        reader.at = end

    def _standard(self, opcode: int) -> None:
        reader = self._reader
        if opcode == 2:
            self._advance(reader.unsigned())
        elif opcode == 3:
            self._line += reader.signed()
        elif opcode == 4:
            self._file = reader.unsigned()
        elif opcode == 8:
            self._advance((255 - self._opcode_base) // self._line_range)
        elif opcode == 9:
            self._address += _fixed(reader, 2)
        else:
            for _ in range(self._lengths[opcode - 1]):
                reader.unsigned()

    def _files_4(self) -> list[str]:
        """Names of files by number; number 0 is none."""
        reader, folders, files = self._reader, [""], ["?"]
        while folder := _string(reader):
            folders.append(folder)
        while name := _string(reader):
            number = reader.unsigned()
            reader.unsigned(), reader.unsigned()  # when it was written, and its size
            files.append(_joined(folders, number, name))
        return files

    def _files_5(self) -> list[str]:
        """The same in version 5, where folder 0 is the one that was compiled in."""
        folders = [str(it.get(_PATH, "")) for it in self._entries()]
        return [
            _joined(folders, int(it.get(_FOLDER, 0)), str(it.get(_PATH, "?")))
            for it in self._entries()
        ]

    def _entries(self) -> list[dict[int, int | str]]:
        """Folders or files, each as what it says by kind."""
        reader = self._reader
        formats = [(reader.unsigned(), reader.unsigned()) for _ in range(reader.byte())]
        n = reader.unsigned()
        return [{kind: self._value(form) for kind, form in formats} for _ in range(n)]

    def _value(self, form: int) -> int | str:
        reader = self._reader
        if form == _STRING:
            return _string(reader)
        if form == _LINE_STRP and self._strings is not None:
            at = self._strings.at + _fixed(reader, 4)
            return _string(Reader(reader.data, at, self._strings.end))
        if form == _UDATA:
            return reader.unsigned()
        sizes = {_DATA1: 1, _DATA2: 2, _DATA16: 16}
        if form in sizes:
            return _fixed(reader, sizes[form])
        raise IndexError(f"form {form:#x} is in no table of files")


def _joined(folders: Sequence[str], folder: int, name: str) -> str:
    """A file's path, below the folder that was compiled in."""
    if 0 < folder < len(folders) and folders[folder] and not name.startswith("/"):
        return f"{folders[folder]}/{name}"
    return name
