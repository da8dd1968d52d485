from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest
import wasmtime

from isthmus.errors import GuestInvalid
from isthmus.wasm import Engine
from tests.unit.wasm_guest import MEMORY, ON_MESSAGE, wasm


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine() as engine:
        yield engine


def refusal(engine: Engine, data: bytes) -> str:
    with pytest.raises(GuestInvalid) as caught:
        engine.compile(data, "chat.wasm")
    return str(caught.value)


def test_a_good_guest_has_a_name_a_hash_and_its_functions(engine: Engine) -> None:
    data = wasm(
        '(func (export "_initialize"))',
        '(func (export "add") (param i32 i32) (result i32) (i32.const 0))',
        '(func (export "wide") (param i64))',
        '(func (export "real") (result f32) (f32.const 0))',
        '(func (export "two") (result i32 i32) (i32.const 0) (i32.const 0))',
        '(global (export "g") i32 (i32.const 0))',
    )
    guest = engine.compile(data, "chat.wasm")
    assert guest.name == "chat.wasm"
    assert guest.sha256 == hashlib.sha256(data).hexdigest()
    assert {name: str(kind) for name, kind in guest.functions.items()} == {
        "on_message": "(i32) -> i32",
        "_initialize": "() -> ()",
        "add": "(i32, i32) -> i32",
    }


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it is empty"),
        (b"(module)", "WebAssembly text.*wat2wasm"),
        (b"\n  (module)", "WebAssembly text"),
        (b"\x7fELF\x02\x01\x01", "an ELF binary"),
        (b"\xcf\xfa\xed\xfe\x07", "a macOS binary"),
        (b"!<arch>\n", "a static library"),
        (b"BC\xc0\xde", "LLVM bitcode"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"PK\x03\x04", "a zip file"),
        (b"GGUF\x03", "a model"),
        (b"#include <stdio.h>", "begins with the text '#include <stdio."),
        (b"\xff\xfe\xfd", "begins with the bytes ff fe fd"),
        (b"\0asm", "unknown version, none"),
        (b"\0asm\x02\0\0\0", "unknown version, 02 00 00 00"),
        (b"\0asm\x0d\0\x01\0", "component.*core module"),
        (b"\0asm\x01\0\0\0\xff", "not valid WebAssembly"),
        (b"\0asm\x01\0\0\0\x01\xff\xff\xff", "not valid WebAssembly"),
    ],
)
def test_what_is_not_a_core_module_is_described(engine: Engine, data: bytes, words: str) -> None:
    import re

    message = refusal(engine, data)
    assert re.search(words, message), message
    assert message.startswith("chat.wasm ")


@pytest.mark.slow
def test_a_truncated_module_is_refused(engine: Engine) -> None:
    data = wasm()
    for n in range(8, len(data)):
        with pytest.raises(GuestInvalid):
            engine.compile(data[:n], "chat.wasm")


def test_every_unknown_import_is_listed(engine: Engine) -> None:
    message = refusal(
        engine,
        wasm(
            '(import "env" "puts" (func (param i32) (result i32)))',
            '(import "isthmus" "fly" (func))',
            '(import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))',
        ),
    )
    assert "env.puts is unknown" in message
    assert "isthmus.fly is unknown" in message
    assert "sched_yield" not in message


def test_an_import_of_another_type_is_refused_with_both_types(engine: Engine) -> None:
    message = refusal(
        engine,
        wasm(
            '(import "isthmus" "decode" (func (param i64 i32) (result i32)))',
            '(import "wasi_snapshot_preview1" "proc_exit" (func (param i32) (result i32)))',
        ),
    )
    assert "isthmus.decode is (i32, i32) -> i32, not (i64, i32) -> i32" in message
    assert "proc_exit is (i32) -> (), not (i32) -> i32" in message


@pytest.mark.parametrize(
    ("item", "kind"),
    [
        ("(global i32)", "global"),
        ("(table 1 funcref)", "table"),
    ],
)
def test_an_import_of_another_kind_is_refused(engine: Engine, item: str, kind: str) -> None:
    message = refusal(engine, wasm(f'(import "isthmus" "decode" {item})'))
    assert f"isthmus.decode is a function, not a {kind}" in message


def test_an_imported_memory_is_refused(engine: Engine) -> None:
    memory = '(import "env" "memory" (memory 1)) (export "memory" (memory 0))'
    assert "env.memory is unknown" in refusal(engine, wasm(memory=memory))


@pytest.mark.parametrize(
    ("memory", "on_message", "words"),
    [
        ("(memory 1)", ON_MESSAGE, "does not export its linear memory"),
        ("", ON_MESSAGE, "does not export its linear memory"),
        ('(memory 1) (func (export "memory"))', ON_MESSAGE, "does not export its linear memory"),
        (MEMORY, "", "does not export on_message"),
        (MEMORY, '(global (export "on_message") i32 (i32.const 0))', "as a global"),
        (MEMORY, '(func (export "on_message"))', "must be (i32) -> i32, not () -> ()"),
        (
            MEMORY,
            '(func (export "on_message") (param i32) (result i32 i32) unreachable)',
            "must be (i32) -> i32, not (i32) -> i32, i32",
        ),
        (
            MEMORY,
            ON_MESSAGE + '(func (export "_initialize") (param i32))',
            "_initialize must be () -> (), not (i32) -> ()",
        ),
        (MEMORY, ON_MESSAGE + '(func (export "_start"))', "-mexec-model=reactor"),
        ("", '(func (export "_start"))', "does not export its linear memory"),
        (
            MEMORY,
            '(func (export "_start") (param i32))',
            "_start must be () -> ()",
        ),
        (MEMORY, ON_MESSAGE + '(func (export "isthmus:x"))', "names from 'isthmus:' on are ours"),
    ],
)
def test_what_a_guest_must_export(engine: Engine, memory: str, on_message: str, words: str) -> None:
    assert words in refusal(engine, wasm(memory=memory, on_message=on_message))


def test_wasm_text_is_never_compiled(engine: Engine) -> None:
    text = f"(module {MEMORY} {ON_MESSAGE})"
    assert wasmtime.Module(wasmtime.Engine(), text).exports
    assert "WebAssembly text" in refusal(engine, text.encode())
