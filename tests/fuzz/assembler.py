"""WebAssembly modules as bytes, section by section: what wat2wasm would refuse can be said too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from isthmus.wasm.binary import leb

I32, I64, F32, F64, V128, FUNCREF, EXTERNREF = (
    *(b"\x7f", b"\x7e", b"\x7d", b"\x7c"),
    *(b"\x7b", b"\x70", b"\x6f"),
)
TYPE, IMPORT, FUNCTION, TABLE, MEMORY, GLOBAL, EXPORT, START, ELEMENT, CODE, DATA, COUNT = range(
    1, 13
)
ORDER = (TYPE, IMPORT, FUNCTION, TABLE, MEMORY, GLOBAL, EXPORT, START, ELEMENT, COUNT, CODE, DATA)
END = b"\x0b"
HEAD = b"\0asm\x01\0\0\0"


def sleb(value: int) -> bytes:
    """A signed LEB128."""
    out = bytearray()
    while not -64 <= value < 64:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value & 0x7F)
    return bytes(out)


def vec(items: Sequence[bytes], n: int | None = None) -> bytes:
    """A vector, which may claim to have `n` items."""
    return leb(len(items) if n is None else n) + b"".join(items)


def name(text: str) -> bytes:
    """A name."""
    data = text.encode()
    return leb(len(data)) + data


def functype(params: Iterable[bytes], results: Iterable[bytes] = ()) -> bytes:
    """A function type."""
    return b"\x60" + vec([*params]) + vec([*results])


def body(code: bytes, locals_: Sequence[bytes] = ()) -> bytes:
    """A function's body without its end, with one group for each local."""
    inner = vec([leb(1) + kind for kind in locals_]) + code + END
    return leb(len(inner)) + inner


def export(text: str, kind: int, index: int) -> bytes:
    """An export of a function (0), table (1), memory (2) or global (3)."""
    return name(text) + bytes([kind]) + leb(index)


def section(number: int, payload: bytes) -> bytes:
    """A section."""
    return bytes([number]) + leb(len(payload)) + payload


def custom(text: str, payload: bytes = b"") -> bytes:
    """A custom section."""
    return section(0, name(text) + payload)


def module(sections: dict[int, list[bytes]], *others: bytes) -> bytes:
    """A module of the vectors of its sections, and whole sections that follow them."""
    out = [HEAD]
    for number in ORDER:
        items = sections.get(number)
        if items and number in (START, COUNT):
            out.append(section(number, items[0]))
        elif items:
            out.append(section(number, vec(items)))
    return b"".join([*out, *others])


ON_MESSAGE_TYPE = functype([I32], [I32])
NOTHING_TYPE = functype([])
ANSWER = b"\x41\x00"
"""`i32.const 0`."""


def guest(
    *,
    types: Sequence[bytes] = (),
    functions: Sequence[tuple[int, bytes]] = (),
    exports: Sequence[bytes] = (),
    memory: bytes = b"\x00\x01",
    more: dict[int, list[bytes]] | None = None,
    others: Sequence[bytes] = (),
) -> bytes:
    """A guest whose type 0 and function 0 are those of `on_message`, and whose type 1 is () -> ().

    `types` come after them, `functions` are (type, body) and come after function 0.
    """
    return module(
        {
            TYPE: [ON_MESSAGE_TYPE, NOTHING_TYPE, *types],
            FUNCTION: [leb(0), *(leb(kind) for kind, _ in functions)],
            MEMORY: [memory],
            EXPORT: [export("memory", 2, 0), export("on_message", 0, 0), *exports],
            CODE: [body(ANSWER), *(code for _, code in functions)],
            **(more or {}),
        },
        *others,
    )
