"""The instructions of a module: what they change that a snapshot would not hold, and how deep they
are nested.

State that would stay hidden is refused with its reason: tables that the module's own code changes,
and segments that it drops. No compiler of C, C++, Rust, Zig or AssemblyScript does that.

A regular expression passes over runs of instructions that need no look; others are read one by one.

Specification: https://webassembly.github.io/spec/core/binary/instructions.html
"""

from __future__ import annotations

import re

from isthmus.errors import GuestInvalid
from isthmus.wasm.binary import Reader
from isthmus.wasm.bounds import Bound, require

_BLOCK, _LOOP, _IF, _END, _BR_TABLE, _SELECT, _TABLE_SET = 0x02, 0x03, 0x04, 0x0B, 0x0E, 0x1C, 0x26
_MORE, _SIMD = 0xFC, 0xFD
_SINGLE = (_BR_TABLE, _SELECT, _TABLE_SET, _MORE, _SIMD)
"""Instructions that are read one by one, beside those that open and close blocks."""
_HIDDEN_CHANGES = {
    0x09: "drops a data segment (data.drop)",
    0x0C: "changes a table (table.init)",
    0x0D: "drops an element segment (elem.drop)",
    0x0E: "changes a table (table.copy)",
    0x0F: "grows a table (table.grow)",
    0x11: "changes a table (table.fill)",
}
"""Instructions that begin with 0xFC, by their number."""

_PLAIN = re.compile(
    rb"""(?:
      [\x00\x01\x05\x0f\x1a\x1b\x45-\xc4\xd1]
    | [\x0c\x0d\x10\x12\x20-\x25\x3f-\x42\xd0\xd2] NUMBER
    | [\x11\x13\x28-\x3e] NUMBER NUMBER
    | \x43 .{4}
    | \x44 .{8}
    | \xfc (?: [\x00-\x07] | [\x08\x0a] NUMBER NUMBER | [\x0b\x10] NUMBER )
    | \xfd (?: [\x0e-\x14\x23-\x53\x5e-\x7f]
             | [\x80-\xff] [\x01-\x7f]
             | [\x00-\x0b\x5c\x5d] NUMBER NUMBER
             | [\x0c\x0d] .{16}
             | [\x15-\x22] .
             | [\x54-\x5b] NUMBER NUMBER . )
    ){0,1024}""".replace(b"NUMBER", rb"(?:[\x80-\xff]*[\x00-\x7f])"),
    re.VERBOSE | re.DOTALL,
)
"""Instructions with their immediates, except those that open and close blocks, `br_table`, `select`
with types, and those that change what is hidden. A number after 0xFC or 0xFD that is longer than it
need be is no match either."""


def check_code(reader: Reader) -> None:
    """Looks at a valid code section. GuestInvalid, without the guest's name, if it changes what a
    snapshot does not hold, or is beyond a bound.
    """
    n_branches = 0
    for _ in range(reader.count(Bound.FUNCTIONS)):
        nbytes = reader.unsigned()
        body = Reader(reader.data, reader.at, reader.at + nbytes)
        reader.skip(nbytes)
        for _ in range(body.unsigned()):  # groups of locals
            body.unsigned()
            body.byte()
        n_branches = require(Bound.BRANCHES, n_branches + _check_body(body))


def _check_body(body: Reader) -> int:
    """Looks at one function and returns how many entries its branch tables have."""
    data, pass_over = body.data, _PLAIN.match
    open_blocks: list[bool] = []  # whether each is a loop
    n_loops = n_branches = 0
    while body.at < body.end:
        run = pass_over(data, body.at, body.end)
        assert run, "it also matches nothing"
        body.at = run.end()
        if body.at >= body.end:
            break
        opcode = body.byte()
        if opcode == _END:
            n_loops -= bool(open_blocks) and open_blocks.pop()
        elif opcode in (_BLOCK, _LOOP, _IF):
            body.unsigned()
            open_blocks.append(opcode == _LOOP)
            n_loops = require(Bound.LOOPS, n_loops + (opcode == _LOOP))
            require(Bound.BLOCKS, len(open_blocks))
        elif opcode in _SINGLE:
            n_branches += _skip(body, opcode)
        elif run.end() == run.start():
            raise GuestInvalid(f"has an instruction {opcode:#x} that is not known")
        else:  # the run was as long as a match may be
            body.at -= 1
    return n_branches


def _skip(body: Reader, opcode: int) -> int:
    """Skips one instruction's immediates and returns how many branches they are."""
    if opcode == _BR_TABLE:
        n_branches = body.unsigned() + 1
        for _ in range(n_branches):
            body.unsigned()
        return n_branches
    if opcode == _SELECT:
        body.skip(body.unsigned())
    elif opcode == _TABLE_SET:
        raise _hidden("changes a table (table.set)")
    elif opcode == _MORE:
        _skip_more(body, body.unsigned())
    else:
        _skip_simd(body, body.unsigned())
    return 0


def _skip_more(body: Reader, number: int) -> None:
    if change := _HIDDEN_CHANGES.get(number):
        raise _hidden(change)
    for _ in range(0 if number <= 7 else 2 if number in (0x08, 0x0A) else 1):
        body.unsigned()


def _skip_simd(body: Reader, number: int) -> None:
    is_lane_access = 84 <= number <= 91
    if number <= 11 or number in (92, 93) or is_lane_access:
        body.unsigned()
        body.unsigned()
    if number in (12, 13):
        body.skip(16)
    elif is_lane_access or 21 <= number <= 34:
        body.skip(1)


def _hidden(change: str) -> GuestInvalid:
    return GuestInvalid(f"{change}, which a snapshot could not hold")
