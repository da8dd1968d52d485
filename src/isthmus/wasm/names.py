"""Names out of a stranger's module, as they may be shown to people.

A module's names may be megabytes long and hold whatever a terminal or a log would take for a
command, and a mangled one may stand for a text without end. They are cut and cleaned here, and
nobody demangles them.
"""

from __future__ import annotations

from collections.abc import Iterator

from isthmus.errors import GuestInvalid
from isthmus.wasm import binary
from isthmus.wasm.binary import Reader
from isthmus.wasm.bounds import Bound

_MAX_NAME = 120
"""Characters of a name that is shown."""
_MAX_NAME_NBYTES = 4 * _MAX_NAME
_NAME_SECTION = b"\x04name"
_FUNCTIONS = 1
"""The part of the name section that names functions."""


def shown(text: str, most: int = _MAX_NAME) -> str:
    """A text of at most `most` characters, all of them printable."""
    cut = text if len(text) <= most else text[: most - 1] + "…"
    return cut if cut.isprintable() else "".join(c if c.isprintable() else "�" for c in cut)


def function_names(wasm: bytes) -> dict[int, str]:
    """Names of a module's functions by their index, as they are shown; few or none if its custom
    section is malformed.
    """
    names: dict[int, str] = {}
    try:
        for section in binary.read_sections(wasm):
            reader = section.reader(wasm)
            begin = reader.at
            if section.kind == binary.CUSTOM and wasm.startswith(_NAME_SECTION, begin):
                reader.skip(len(_NAME_SECTION))
                names.update(_function_names(reader))
    except (IndexError, GuestInvalid):
        pass
    return names


def _function_names(reader: Reader) -> Iterator[tuple[int, str]]:
    while reader.at < reader.end:
        part, nbytes = reader.byte(), reader.unsigned()
        begin = reader.at
        reader.skip(nbytes)
        if part != _FUNCTIONS:
            continue
        names = Reader(reader.data, begin, reader.at)
        for _ in range(names.count(Bound.FUNCTIONS)):
            index, length = names.unsigned(), names.unsigned()
            text = names.data[names.at : names.at + min(length, _MAX_NAME_NBYTES)]
            names.skip(length)
            yield index, shown(text.decode(errors="replace"))
