"""What a module tells of its stack and data."""

from __future__ import annotations

import pytest
import wasmtime

from isthmus.runtime.sources import bundled_guests
from isthmus.wasm import Layout, layout_of
from isthmus.wasm.interface import is_64_bit


def layout(*parts: str) -> Layout:
    memory = "" if any("(memory" in part for part in parts) else "(memory 4)"
    return layout_of(bytes(wasmtime.wat2wasm(f"(module {memory} {' '.join(parts)})")))


POINTER = "(global (mut i32) (i32.const {}))"


DECODING = ("chat", "complete", "decode", "embed")
"""Guests with tables of the decoders of pictures."""


def test_the_bundled_guests_stack_lies_below_their_data() -> None:
    for name, path in bundled_guests().items():
        found = layout_of(path.read_bytes())
        with_tables = name.removesuffix("64") in DECODING
        assert found.stack == (0, 65536)
        assert found.data is not None
        assert found.data[0] == 65536
        assert 0 < found.data[1] < (8192 if with_tables else 1024)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((), Layout(None, None)),
        (('(data (i32.const 8) "abc")',), Layout(None, (8, 3))),
        (('(data (i32.const 8) "abc")', '(data (i32.const 100) "d")'), Layout(None, (8, 93))),
        (('(data (i32.const 64) "abc")', POINTER.format(64)), Layout((0, 64), (64, 3))),
        (('(data (i32.const 8) "abc")', POINTER.format(91)), Layout((11, 80), (8, 3))),
        (('(data (i32.const 8) "abc")', POINTER.format(10)), Layout(None, (8, 3))),
        (('(data "passive")', POINTER.format(64)), Layout((0, 64), None)),
        (("(global (mut i64) (i64.const 64))",), Layout(None, None)),
        (
            (
                '(data (i32.const 64) "abc")',
                POINTER.format(64),
                '(global (export "__data_end") i32 (i32.const 164))',
            ),
            Layout((0, 64), (64, 100)),
        ),
        (('(data (i32.const -8) "abc")',), Layout(None, (2**32 - 8, 3))),
        (
            ("(memory i64 4)", '(data (i64.const 64) "abc")', "(global (mut i64) (i64.const 64))"),
            Layout((0, 64), (64, 3)),
        ),
        (("(memory i64 4)", '(data (i64.const -8) "abc")'), Layout(None, (2**64 - 8, 3))),
        (("(memory i64 4)", POINTER.format(64)), Layout(None, None)),
    ],
)
def test_what_a_module_tells(parts: tuple[str, ...], expected: Layout) -> None:
    assert layout(*parts) == expected


def test_a_number_without_an_end_is_not_read_for_ever() -> None:
    """This one is, in a time that grows with its square, where no end is set."""
    module = b"\0asm\1\0\0\0\5" + b"\xff" * 4_000_000
    assert not is_64_bit(module)
