"""Texts that a hostile guest gives the tokenizer and the chat template."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from isthmus import Model, Runtime
from isthmus.abi import Errno, TokenizeFlag
from isthmus.errors import DeadlineExceeded, SettingsError
from isthmus.model.tokens.text_encoder import TextEncoder
from tests.attacks.proxy import Proxy, proxy_wat
from tests.tiny_gguf import TinyLlama

TEXT, IDS, ROOM = 1 << 16, 2 << 20, 1 << 17
HOLD = """(module
  (import "isthmus" "model_open" (func $open (param i32 i32) (result i32)))
  (import "isthmus" "tokenize" (func $t (param i32 i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 64) (data (i32.const 8) "default") (data (i32.const 64) "<|im_start|>")
  (func (export "on_message") (param i32) (result i32) (local $m i32) (local $n i32)
    (local.set $m (call $open (i32.const 8) (i32.const 7)))
    (loop $next
      (memory.copy (i32.add (i32.const 64) (local.get $n)) (i32.const 64) (i32.const 12))
      (local.set $n (i32.add (local.get $n) (i32.const 12)))
      (br_if $next (i32.lt_u (local.get $n) (i32.const 1000000))))
    (call $t (local.get $m) (i32.const 64) (local.get $n) (i32.const 2) (i32.const 0)
      (i32.const 0))))"""
"""Has a megabyte of control tokens tokenized."""


@pytest.fixture(scope="module")
def wasm() -> bytes:
    return bytes(wasmtime.wat2wasm(proxy_wat()))


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    with Runtime(device="null", threads=1) as runtime:
        yield runtime


def load(runtime: Runtime, folder: Path, pre_tokenizer: str = "gpt-2") -> Model:
    model = TinyLlama(with_tokenizer=True, pre_tokenizer=pre_tokenizer)
    return runtime.load_model(model.write(folder / "tiny.gguf"))


def tokenize(proxy: Proxy, data: bytes, flags: int = 0) -> int:
    proxy.write(TEXT, data)
    return proxy.call("tokenize", 1, TEXT, len(data), flags, IDS, ROOM)


@pytest.mark.parametrize("pre", ["tekken", "default", "deepseek-v3", "gpt-4o", "exaone-moe"])
@pytest.mark.parametrize("word", [b"a", b"!", b" ", b"9", "é".encode()])
def test_long_words(runtime: Runtime, wasm: bytes, tmp_path: Path, pre: str, word: bytes) -> None:
    proxy = Proxy(runtime, wasm, load(runtime, tmp_path, pre))
    assert proxy.open_model() == 1
    data = word * (30_000 // len(word))
    assert tokenize(proxy, data) > 0
    ids = struct.unpack("<8i", proxy.read(IDS, 32))
    assert len(set(ids)) == len(word)
    assert tokenize(proxy, word * (1_000_000 // len(word))) == -Errno.ETOKEN
    assert tokenize(proxy, b"hello") == 5  # it goes on


def test_many_special_tokens(runtime: Runtime, wasm: bytes, tmp_path: Path) -> None:
    proxy = Proxy(runtime, wasm, load(runtime, tmp_path))
    assert proxy.open_model() == 1
    parse = int(TokenizeFlag.PARSE_SPECIAL)
    assert tokenize(proxy, b"<|im_start|>" * 80_000, parse) == 80_000
    assert set(struct.unpack("<80000i", proxy.read(IDS, 320_000))) == {1}
    assert tokenize(proxy, b"<|im_start|>a" * 50_000, parse) == 100_000


@pytest.mark.parametrize("data", [b"\xff", b"\xed\xa0\x80", b"a\xc3", b"\xf8\x88\x80\x80\x80"])
def test_bytes_that_are_no_text(runtime: Runtime, wasm: bytes, tmp_path: Path, data: bytes) -> None:
    proxy = Proxy(runtime, wasm, load(runtime, tmp_path))
    assert proxy.open_model() == 1
    assert tokenize(proxy, data) == -Errno.EINVAL
    assert tokenize(proxy, b"\0\0") == 2


def test_a_deadline_ends_tokenizing(
    runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However fast the machine is: here a message's deadline passes while it is tokenized."""
    encode = TextEncoder.encode
    calls = 0

    def slow(self: TextEncoder, *arguments: Any, check: Any, **more: Any) -> list[int]:
        def late() -> None:
            nonlocal calls
            while True:
                calls += 1
                check()

        return encode(self, *arguments, check=late, **more)

    monkeypatch.setattr(TextEncoder, "encode", slow)
    with (
        runtime.spawn(
            bytes(wasmtime.wat2wasm(HOLD)), models={"default": load(runtime, tmp_path)}
        ) as actor,
        pytest.raises(DeadlineExceeded),
    ):
        actor.send("go", deadline_s=0.2)
    assert calls > 1


def test_a_message_with_half_a_character(runtime: Runtime, tmp_path: Path) -> None:
    model = load(runtime, tmp_path)
    with runtime.spawn("chat", models={"default": model}, args={"n_ctx": 256}) as actor:
        with pytest.raises(SettingsError, match="half of a character"):
            actor.send("\ud800")
        assert actor.state == "idle"
