"""WebAssembly modules put together byte by byte, since no assembler writes them like this."""

from __future__ import annotations

from collections.abc import Sequence

from isthmus.wasm.binary import leb

HEADER = b"\0asm\1\0\0\0"


def vec(items: Sequence[bytes]) -> bytes:
    return leb(len(items)) + b"".join(items)


def name(text: str) -> bytes:
    return leb(len(text.encode())) + text.encode()


def section(kind: int, contents: bytes) -> bytes:
    return bytes([kind]) + leb(len(contents)) + contents


def module(
    bodies: Sequence[bytes] = (),
    *,
    types: Sequence[bytes] = (),
    exports: Sequence[bytes] = (),
    tables: Sequence[bytes] = (),
    globals_: Sequence[bytes] = (),
    datas: Sequence[bytes] = (),
    custom: Sequence[bytes] = (),
) -> bytes:
    """A guest whose function 0 is on_message; `bodies` are further functions, (i32) -> i32 too."""
    kinds = vec([b"\x60\1\x7f\1\x7f", *types])
    shown = vec([name("memory") + b"\2\0", name("on_message") + b"\0\0", *exports])
    code = [b"\0\x41\0\x0b", *bodies]
    parts = {
        1: kinds,
        3: vec([b"\0"] * len(code)),
        4: vec(tables) if tables else b"",
        5: vec([b"\0\1"]),
        6: vec(globals_) if globals_ else b"",
        7: shown,
        10: vec([leb(len(it)) + it for it in code]),
        11: vec(datas) if datas else b"",
    }
    made = b"".join(section(kind, part) for kind, part in parts.items() if part)
    return HEADER + made + b"".join(section(0, it) for it in custom)


def nested(opcode: int, n: int) -> bytes:
    """A function of `n` blocks or loops inside each other."""
    return b"\0" + bytes([opcode, 0x40]) * n + b"\x0b" * n + b"\x41\0\x0b"


def branchy(n_tables: int, n_targets: int) -> bytes:
    """A function of branch tables, each with many ways out."""
    targets = b"".join(leb(1 + i % 60) for i in range(n_targets))
    table = b"\x02\x40\x20\0\x0e" + leb(n_targets) + targets + b"\0\x0b"
    return b"\0" + b"\x02\x40" * 64 + table * n_tables + b"\x0b" * 64 + b"\x41\0\x0b"


def name_section(*names: str) -> bytes:
    """A custom section that names functions 0, 1, …"""
    named = vec([leb(i) + name(text) for i, text in enumerate(names)])
    return name("name") + b"\1" + leb(len(named)) + named


def endless_name(depth: int) -> str:
    """A mangled C++ name; demangled, it doubles with each level."""
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return "_Z1f1aIiiE" + "".join(f"S_IS{digits[i]}_S{digits[i]}_E" for i in range(depth))


HOSTILE = {
    "functions": (lambda: module([b"\0\x41\0\x0b"] * 100_000), "100,001 functions"),
    "loops": (lambda: module([nested(0x03, 501)]), "501 loops inside each other"),
    "blocks": (lambda: module([nested(0x02, 50_001)]), "50,001 blocks inside each other"),
    "branches": (lambda: module([branchy(600, 4_000)]), "entries in its branch tables"),
    "branch tables of memory": (lambda: module([branchy(900, 2_000)]), "cannot be compiled"),
    "types": (lambda: module(types=[b"\x60\0\0"] * 10_000), "10,001 function types"),
    "exports": (
        lambda: module(exports=[name(f"e{i}") + b"\0\0" for i in range(9_999)]),
        "10,001 exports",
    ),
    "long names": (
        lambda: module(exports=[name(f"{i}" + "e" * 90_000) + b"\0\0" for i in range(50)]),
        "bytes of imports and exports",
    ),
    "globals": (lambda: module(globals_=[b"\x7f\0\x41\0\x0b"] * 10_001), "10,001 globals"),
    "mutable globals": (
        lambda: module(globals_=[b"\x7f\1\x41\0\x0b"] * 4_097),
        "4,097 mutable globals",
    ),
    "tables": (lambda: module(tables=[b"\x70\0\1"] * 9), "9 tables"),
    "elements": (
        lambda: module(tables=[b"\x70\0" + leb(1 << 17)] * 3),
        "elements in its tables",
    ),
    "data segments": (lambda: module(datas=[b"\0\x41\0\x0b\0"] * 100_000), "cannot be compiled"),
    "sections": (lambda: module(custom=[name("x")] * 1_000), "1,001 sections"),
    "locals": (lambda: module([b"\1\xff\xff\xff\xff\x0f\x7f\x41\0\x0b"]), "not valid"),
}
"""Modules that would cost a compiler or this process too much: how to make them, and what the
error says."""
