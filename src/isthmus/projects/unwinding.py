"""Makes returns and tests of a module's exceptions, so that a guest can be C that calls `longjmp`.

With `-mllvm -wasm-enable-sjlj` a compiler turns `longjmp` into a throw of one tag, whose value is
an address, and functions that call `setjmp` into blocks that catch it. Isthmus runs no exceptions:
an engine keeps them on a heap of its own, which no snapshot holds. Here

1. a throw writes the address to a new global, and leaves the function or goes to what catches it;
2. after each call that may throw, the global is tested, and what is not 0 goes on in the same way;
3. what catches takes the address from the global, which becomes 0 again. A reference to an
   exception, which compilers use to throw it again, is that address, too.

A function that is left this way gives zeros, at which nobody looks. A module with several tags is
refused: only that of `longjmp` is known.

Specification: https://webassembly.github.io/spec/core/binary/instructions.html
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from isthmus.errors import BuildFailed
from isthmus.wasm import binary
from isthmus.wasm.binary import Reader, leb

_TAG_SECTION = 13
_BLOCK, _LOOP, _IF, _END, _BR, _RETURN = 0x02, 0x03, 0x04, 0x0B, 0x0C, 0x0F
_THROW, _BR_TABLE, _CALL, _CALL_INDIRECT, _SELECT = 0x08, 0x0E, 0x10, 0x11, 0x1C
_TRY_TABLE, _GLOBAL_GET, _GLOBAL_SET = 0x1F, 0x23, 0x24
_CATCH, _CATCH_ALL_REF = 0, 3
_THROW_REF, _EXCEPTION, _ADDRESS = 0x0A, 0x69, 0x7F
_IF_VOID, _ZERO = b"\x04\x40", b"\x41\0"
_ZEROS = {"i32": b"\x41\0", "i64": b"\x42\0", "f32": b"\x43" + bytes(4), "f64": b"\x44" + bytes(8)}
_NUMBER = rb"(?:[\x80-\xff]*[\x00-\x7f])"
_PLAIN = re.compile(
    rb"""(?:
      [\x00\x01\x05\x0f\x1a\x1b\x45-\xc4\xd1]
    | [\x0c\x0d\x20-\x26\x3f-\x42\xd0\xd2] NUMBER
    | [\x28-\x3e] NUMBER NUMBER
    | \x43 .{4}
    | \x44 .{8}
    | \xfc (?: [\x00-\x07] | [\x08\x0a\x0c\x0e] NUMBER NUMBER | [\x09\x0b\x0d\x0f-\x11] NUMBER )
    | \xfd (?: [\x0e-\x14\x23-\x53\x5e-\x7f]
             | [\x80-\xff] [\x01-\x7f]
             | [\x00-\x0b\x5c\x5d] NUMBER NUMBER
             | [\x0c\x0d] .{16}
             | [\x15-\x22] .
             | [\x54-\x5b] NUMBER NUMBER . )
    ){1,1024}""".replace(b"NUMBER", _NUMBER),
    re.VERBOSE | re.DOTALL,
)
"""Instructions that stay as they are, with their immediates."""


@dataclass(frozen=True, slots=True)
class _Step:
    """A part of a function's code: a run of instructions, or one."""

    code: bytes
    opcode: int = 0
    """0 for what stays as it is and neither opens nor closes a block."""
    index: int | None = None
    """The function that a call calls, or None: whichever lies in the table. The label that a
    try_table goes to, counted outside of it."""


@dataclass(frozen=True, slots=True)
class _Body:
    """One function of the module."""

    code: Reader
    results: tuple[str, ...]


def without_exceptions(wasm: bytes) -> bytes:
    """The module with returns and tests in the place of its exceptions. BuildFailed if it has
    others than those of `longjmp`.
    """
    found = binary.readers(wasm)
    if _TAG_SECTION not in found:
        return wasm
    if found[_TAG_SECTION].unsigned() != 1:
        raise BuildFailed("the module has exceptions of several kinds: only longjmp's are known")
    bodies = list(_bodies(found))
    throwing = _throwing(bodies, len(list(_imports(found.get(binary.IMPORT, Reader(b"\0"))))))
    n_globals = found[binary.GLOBAL].unsigned()
    parts = [wasm[: binary.HEADER_NBYTES]]
    for section in binary.read_sections(wasm):
        contents = section.contents(wasm)
        if section.kind == _TAG_SECTION:
            continue
        if section.kind == binary.GLOBAL:
            rest = contents[len(leb(n_globals)) :]
            contents = leb(n_globals + 1) + rest + b"\x7f\x01" + _ZERO + bytes([_END])
        elif section.kind == binary.CODE:
            codes = [_rewritten(it, leb(n_globals), throwing) for it in bodies]
            contents = leb(len(codes)) + b"".join(leb(len(it)) + it for it in codes)
        parts.append(bytes([section.kind]) + leb(len(contents)) + contents)
    return b"".join(parts)


def _bodies(found: dict[int, Reader]) -> Iterator[_Body]:
    types = list(_results(found[binary.TYPE]))
    functions, codes = found[binary.FUNCTION], found[binary.CODE]
    codes.unsigned()
    for _ in range(functions.unsigned()):
        results, nbytes = types[functions.unsigned()], codes.unsigned()
        codes.skip(nbytes)
        yield _Body(Reader(codes.data, codes.at - nbytes, codes.at), results)


def _results(reader: Reader) -> Iterator[tuple[str, ...]]:
    """What functions of each type give."""
    for _ in range(reader.unsigned()):
        reader.byte()
        reader.skip(reader.unsigned())
        yield tuple([reader.value_type() for _ in range(reader.unsigned())])


def _imports(reader: Reader) -> Iterator[str]:
    """The names of imported functions. BuildFailed if anything else is imported."""
    for _ in range(reader.unsigned()):
        module, name = reader.name(), reader.name()
        if reader.byte() != binary.FUNCTION_KIND:
            raise BuildFailed(f"the module imports {module}.{name}, which is no function")
        reader.unsigned()
        yield name


def _throwing(bodies: list[_Body], n_imports: int) -> set[int | None]:
    """The functions that may throw, and None if one in the table may: nobody knows which are."""
    callers: dict[int | None, list[int | None]] = {}
    left: list[int | None] = []
    for index, body in enumerate(bodies, n_imports):
        for step in _steps(body.code):
            if step.opcode == _THROW:
                left.append(index)
            elif step.opcode == _CALL:
                callers.setdefault(step.index, []).append(index)
    found: set[int | None] = {None}
    left += callers.get(None, [])
    while left:
        if (it := left.pop()) not in found:
            found.add(it)
            left += callers.get(it, [])
    return found


def _rewritten(body: _Body, thrown: bytes, throwing: set[int | None]) -> bytes:
    """A function's code. `thrown` is the index of the new global."""
    get, clear = bytes([_GLOBAL_GET]) + thrown, _ZERO + bytes([_GLOBAL_SET]) + thrown
    leave = b"".join(_ZEROS[it] for it in body.results) + bytes([_RETURN])
    steps = _steps(body.code)
    out = bytearray(next(steps).code)  # the locals
    open_blocks: list[int | None] = []  # for a block that catches, where to, counted from outside

    def go_on(n_inside: int) -> bytes:
        """Goes to whoever catches, from so many blocks inside of the innermost."""
        caught = [it for it in open_blocks if it is not None]
        if not caught or caught[-1] < 0:
            return leave
        return get + clear + bytes([_BR]) + leb(len(open_blocks) + n_inside - 1 - caught[-1])

    for step in steps:
        if step.opcode == _TRY_TABLE:
            out += step.code
            open_blocks.append(None if step.index is None else len(open_blocks) - 1 - step.index)
            continue
        if step.opcode == _THROW:
            out += bytes([_GLOBAL_SET]) + thrown + go_on(0)
            continue
        out += step.code
        if step.opcode == _BLOCK:
            open_blocks.append(None)
        elif step.opcode == _END and open_blocks:
            open_blocks.pop()
        elif step.opcode == _CALL and step.index in throwing:
            out += get + _IF_VOID + go_on(1) + bytes([_END])
    return bytes(out)


def _steps(code: Reader) -> Iterator[_Step]:
    """A function's locals, then its instructions."""
    reader = Reader(code.data, code.at, code.end)
    yield _Step(_locals(reader))
    while reader.at < reader.end:
        if run := _PLAIN.match(reader.data, reader.at, reader.end):
            reader.at = run.end()
            yield _Step(run[0])
        else:
            yield _single(reader)


def _locals(reader: Reader) -> bytes:
    n_groups = reader.unsigned()
    groups = [leb(reader.unsigned()) + _type(reader) for _ in range(n_groups)]
    return leb(n_groups) + b"".join(groups)


def _type(reader: Reader) -> bytes:
    """The type of a local or of what a block gives; an exception is an address."""
    begin, first = reader.at, reader.unsigned()
    return bytes([_ADDRESS]) if first == _EXCEPTION else reader.data[begin : reader.at]


def _single(reader: Reader) -> _Step:
    """An instruction that is looked at."""
    begin, opcode = reader.at, reader.byte()
    if opcode == _END:
        return _Step(bytes([_END]), _END)
    if opcode in (_BLOCK, _LOOP, _IF):
        return _Step(bytes([opcode]) + _type(reader), _BLOCK)
    if opcode == _TRY_TABLE:
        return _Step(bytes([_BLOCK]) + _type(reader), _TRY_TABLE, _caught(reader))
    if opcode in (_THROW, _THROW_REF):
        if opcode == _THROW:
            reader.unsigned()  # the tag
        return _Step(b"", _THROW)
    if opcode in (_CALL, _CALL_INDIRECT):
        index: int | None = reader.unsigned()
        if opcode == _CALL_INDIRECT:  # its type and its table
            reader.unsigned()
            index = None
        return _Step(reader.data[begin : reader.at], _CALL, index)
    if opcode not in (_BR_TABLE, _SELECT):
        raise BuildFailed(f"the module has an instruction {opcode:#x} that is not known")
    for _ in range(reader.unsigned() + (opcode == _BR_TABLE)):
        reader.unsigned()
    return _Step(reader.data[begin : reader.at])


def _caught(reader: Reader) -> int | None:
    """The label that a try_table goes to with an address, or None if it catches nothing."""
    label = None
    for _ in range(reader.unsigned()):
        kind = reader.byte()
        if kind not in (_CATCH, _CATCH_ALL_REF) or label is not None:
            raise BuildFailed("the module catches its exceptions in a way that is not known")
        if kind == _CATCH:
            reader.unsigned()  # the tag
        label = reader.unsigned()
    return label
