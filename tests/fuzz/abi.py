"""The guest ABI: a guest that calls every host function with whatever it is told.

An input is a script: records of 72 bytes, each a function's number (u32), a bit for each argument
that is the result of an earlier call (u32), and eight arguments (u64). The guest reads it as its
message and makes the calls one after another.
"""

from __future__ import annotations

import contextlib
import random
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import wasmtime

from isthmus import Limits, Runtime, abi
from isthmus.abi import Dtype, GrammarKind, Op
from isthmus.config import Environment
from isthmus.errors import IsthmusError
from isthmus.wasm import Guest
from tests.fuzz.surface import Surface, halves
from tests.tiny_gguf import TinyLlama

_RECORD = struct.Struct("<II8Q")
_DEADLINE_S = 2.0
_PAGES = 128
_SCRIPT, _RESULTS = 0x60_0000, 0x50_0000
"""Where the script lies, up to 2 MiB of it, and the results of its calls."""
AREA = 0x10_0000
_NAMES = [it.name for it in abi.HOST_FUNCTIONS]
_FURTHER = {"store": len(_NAMES), "fill": len(_NAMES) + 1, "grow": len(_NAMES) + 2}
"""Store the second argument at the first; fill (address, byte, length); grow by so many pages."""
_NASTY = (
    *(0, 1, 2, 3, 4, 8, 31, 32, 64, 255, 256, 4096, 65_536, AREA, AREA + 4, 2 * AREA),
    *(_PAGES * 65_536 - 4, _PAGES * 65_536, 2**31 - 1, 2**31, 2**32 - 4, 2**32 - 1, 2**63),
)


_CHATS = (
    b'[{"role":"user","content":"Hi"}]',
    b'[{"role":"assistant","tool_calls":[{"function":{"name":"echo","arguments":"{}"}}]}]',
    b'[{"role":3}]',
    b"[" * 500,
    b"\xff",
)
"""Conversations, most of them good."""


def call(name: str, *arguments: int, results: int = 0) -> bytes:
    """One record; `results` has a bit for each argument that names an earlier call."""
    number = _FURTHER[name] if name in _FURTHER else _NAMES.index(name)
    padded = [it & (1 << 64) - 1 for it in arguments] + [0] * (8 - len(arguments))
    return _RECORD.pack(number, results, *padded)


def text(at: int, data: bytes) -> list[bytes]:
    """Records that write bytes."""
    padded = data + bytes(-len(data) % 8)
    words = struct.unpack(f"<{len(padded) // 8}Q", padded)
    return [call("store", at + 8 * n, word) for n, word in enumerate(words)]


def _opened() -> list[bytes]:
    """The model as the result of call 1, a session of it as that of call 2."""
    return [
        *text(64, b"default"),
        call("model_open", 64, 7),
        call("session_open", 1, 256, AREA, AREA, results=1),
    ]


def _softmax_rows() -> bytes:
    """256 operations over 2^22 rows of one element."""
    found = [*_opened(), call("grow", 600)]
    for at, data in ((512, 8 * AREA), (544, 24 * AREA)):
        found += text(at, abi.TENSOR.pack(Dtype.F32, 0, data, 0, 1, 1 << 22, 1, 1))
    for n in range(256):
        found += text(1024 + 32 * n, abi.OPERATION.pack(Op.SOFTMAX, 512, 544, 0, 0.0, 0, 0, 0))
    return b"".join([*found, call("compute", 1024, 256)])


def _sessions_apart() -> bytes:
    """Sessions opened and closed one OS page apart."""
    found = [*text(64, b"default"), call("model_open", 64, 7)]
    for n in range(2000):
        at = AREA + 8192 * (n % 300)
        found.append(call("session_open", 1, 256, at, 2 * AREA, results=1))
        found.append(call("session_close", len(found) - 1, results=1))
    return b"".join(found)


def _empty_messages() -> bytes:
    """40,000 of them, rendered at 3 MiB and made tokens of."""
    found, n, room = [*_opened(), call("fill", AREA, 0, 40_000 * 16)], 40_000, 1 << 20
    found.append(call("chat_template", 1, AREA, n, 1, 3 * AREA, room, results=1))
    for _ in range(3):
        found.append(call("tokenize", 1, 3 * AREA, 960_000, 2, 4 * AREA, 250_000, results=1))
    return b"".join(found)


def _changing_their_minds() -> bytes:
    """Candidates that are asked for and no longer, between two steps, each time elsewhere."""
    found = [*_opened(), *text(4096, struct.pack("<Ii", 2, 5))]
    for n in range(2000):
        found.append(call("session_top_k", 2, n % 257, 4 * AREA + 32 * n, results=1))
        if n % 20 == 0:
            found.append(call("decode", 2, 5, results=1))
            found.append(call("decode_batch", 4096, 1))
    return b"".join(found)


def _repeated(name: str, n: int, *arguments: int) -> Callable[[], bytes]:
    """The same call again and again; its first argument is the model, if it takes one."""
    takes = abi.HOST_FUNCTIONS[_NAMES.index(name)].params[0].type == "handle"
    return lambda: b"".join([*_opened(), *[call(name, *arguments, results=takes)] * n])


class Fuzz(Surface):
    """Has the guest make its calls, with limits, and goes on with it afterwards."""

    corpus: ClassVar = {
        "softmax-rows-of-one": _softmax_rows,
        "sessions-apart": _sessions_apart,
        "40000-empty-messages": _empty_messages,
        "tokenize-1-mib": _repeated("tokenize", 20, 1, 3 * AREA, 1 << 20, 0, 4 * AREA, 0),
        "random-1-mib": _repeated("random", 20_000, 3 * AREA, 1 << 20),
        "log-in-a-loop": _repeated("log", 20_000, 2, 64, 7),
        "embed-in-a-loop": _repeated("embed", 20_000, 1, 3 * AREA, 200, 0, 4 * AREA, 1000),
        "changing-their-minds": _changing_their_minds,
        "open-4-gib": _repeated("session_open", 500, 1, 2**31, AREA, 2**32 - 1),
    }
    cpu_s = 20.0
    n_short = 15

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        environment = Environment(cache=folder / "cache")
        self.runtime = Runtime(device="cpu", threads=1, environment=environment)
        able = TinyLlama(n_layer=1, with_tokenizer=True, overrides={"pooling_type": 3})
        self.model = self.runtime.load_model(able.write(folder / "able.gguf"))
        self.guests = [
            self.runtime.load_guest(bytes(wasmtime.wat2wasm(interpreter(is_64=it))))
            for it in (False, True)
        ]

    def close(self) -> None:
        self.runtime.close()

    def make(self, rng: random.Random) -> bytes:
        records = [*_opened(), call("session_open", 1, 256, 2 * AREA, AREA, results=1)]
        grammar = rng.choice([b"root ::= [a-z]+", b"{}", b"(a|b)*", b"\xff", b'{"type":"object"}'])
        records += [*text(256, grammar), call("store", 4096, 5 | 6 << 32)]
        handles = {"destination": 2, "source": 3, "grammar": len(records), "model": 1}
        kind = rng.choice([*GrammarKind, 9])
        records.append(call("grammar_open", 1, kind, 256, len(grammar), results=1))
        records.append(call("prefill", 2, 4096, 2, results=1))
        if rng.random() < 0.5:
            chat = rng.choice(_CHATS)
            records += text(2048, chat)
            flags = rng.choice([0, 1, 1, 3, 3, 4])
            records.append(call("chat_tokens", 1, 2048, len(chat), flags, 3 * AREA, 512, results=1))
        for function in rng.choices(abi.HOST_FUNCTIONS, k=rng.choice([3, 20, 100])):
            if rng.random() < 0.3:
                records += text(rng.choice([512, 1024, 4096]), _structs(rng))
            words, results = _arguments(rng, function.params, handles)
            records.append(call(function.name, *words, results=results))
        return b"".join(records)

    def run(self, data: bytes) -> str:
        rng = random.Random(len(data))
        limits = Limits(
            memory_nbytes=64 << 20,
            kv_nbytes=rng.choice([None, 4 << 20]),
            tokens=rng.choice([None, 300]),
            deadline_s=_DEADLINE_S,
            on_failure=rng.choice(["keep", "undo"]),
        )
        return " ".join(self._use(guest, data[:0x20_0000], limits) for guest in self.guests)

    def _use(self, guest: Guest, script: bytes, limits: Limits) -> str:
        given: dict[str, Any] = {"models": {"default": self.model}, "tools": {"echo": bytes}}
        with self.runtime.spawn(guest, limits=limits, seed=1, clock_ns=1, **given) as actor:
            before = time.process_time()
            try:
                actor.send(script)
                said = "answer"
            except IsthmusError as error:
                said = type(error).__name__
            seconds = time.process_time() - before
            assert seconds < 4 * _DEADLINE_S, f"it ran for {seconds} s of processor time"
            if actor.state != "closed":
                path = actor.snapshot(self.folder / "it.safetensors").path
                (child,) = actor.fork()
                with child, contextlib.suppress(IsthmusError):
                    child.send(script)
                self.runtime.restore(path, **given).close()
        return said

    def smaller(self, data: bytes) -> Iterator[bytes]:
        size = _RECORD.size
        records = [data[at : at + size] for at in range(0, len(data), size)]
        yield from (b"".join(it) for it in halves(records))


def _arguments(
    rng: random.Random, params: Sequence[abi.Param], handles: Mapping[str, int]
) -> tuple[list[int], int]:
    """Arguments that are nearly good, and which of them are earlier results.

    `handles` says which calls give them, by the names of parameters.
    """
    words, results = [], 0
    for n, param in enumerate(params):
        if param.type == "handle" and rng.random() < 0.95:
            results |= 1 << n
            words.append(rng.choice([handles.get(param.name, 2)] * 9 + [1, 2, 3]))
        elif param.type == "ptr" and rng.random() < 0.8:
            words.append(rng.choice([64, 256, 512, 1024, 4096, 3 * AREA, 4 * AREA, AREA]))
        elif rng.random() < 0.75:
            words.append(rng.choice([0, 1, 2, 3, 4, 5, 7, 8, 16, 31, 300]))
        else:
            words.append(rng.choice([*_NASTY, rng.getrandbits(32), rng.getrandbits(64)]))
    return words, results


def _structs(rng: random.Random) -> bytes:
    """Tensors, operations or token ids, nearly good."""
    if rng.random() < 0.3:
        return struct.pack("<16i", *(rng.choice([0, 5, 319, 320, -1]) for _ in range(16)))
    if rng.random() < 0.5:
        ne = [rng.choice((1, 2, 32, 64, 1 << 20, 2**32 - 1)) for _ in range(4)]
        data = rng.choice((8192, 3 * AREA, AREA, rng.choice(_NASTY) & 0xFFFF_FFFF))
        return abi.TENSOR.pack(rng.choice((*Dtype, 99)), 0, data, 0, *ne)
    where = [rng.choice([512, 1024, 4096]) for _ in range(3)]
    return abi.OPERATION.pack(rng.choice((*Op, 0, 77)), *where, rng.choice((0.0, -1.0)), 0, 0, 0)


class _Text:
    """Parts of the guest's text, for a memory that is 64-bit or not."""

    def __init__(self, *, is_64: bool) -> None:
        self.is_64 = is_64
        self.width = "i64" if is_64 else "i32"

    def address(self, number: str) -> str:
        """An i32 as an address."""
        return f"(i64.extend_i32_u {number})" if self.is_64 else number

    def field(self, offset: str) -> str:
        """The address of a field of the record that is run; `offset` is an i32."""
        return self.address(f"(i32.add (global.get $at) {offset})")

    def result(self, number: str) -> str:
        """The address of a call's result."""
        return self.address(f"(i32.add (i32.const {_RESULTS}) (i32.mul {number} (i32.const 8)))")

    def given(self, n: int, kind: str) -> str:
        """An argument as that type."""
        wide = f"(call $a (i32.const {n}))"
        return wide if kind == "i64" else f"(i32.wrap_i64 {wide})"

    def case(self, name: str, number: int) -> str:
        """What is done if the record names that function."""
        if name in _FURTHER:
            first, third = (self.given(n, self.width) for n in (0, 2))
            second = self.given(1, "i32")
            then = {
                "store": f"(i64.store {first} (call $a (i32.const 1)))",
                "fill": f"(memory.fill {first} {second} {third})",
                "grow": f"(drop (memory.grow {first}))",
            }[name]
        else:
            function = abi.HOST_FUNCTIONS[number]
            kinds = function.wasm_params_64 if self.is_64 else function.wasm_params
            arguments = " ".join(self.given(n, kind) for n, kind in enumerate(kinds))
            made = f"(call $h{number} {arguments})"
            wide = made if function.wasm_result == "i64" else f"(i64.extend_i32_s {made})"
            then = f"(local.set $r {wide})"
        found = f"(i32.eq (i32.load {self.field('(i32.const 0)')}) (i32.const {number}))"
        return f"(if {found} (then {then}))"

    def imports(self) -> str:
        """Every host function, as $h and its number."""
        out = []
        for number, it in enumerate(abi.HOST_FUNCTIONS):
            kinds = it.wasm_params_64 if self.is_64 else it.wasm_params
            params = f"(param {' '.join(kinds)})" if kinds else ""
            kind = f"(func $h{number} {params} (result {it.wasm_result}))"
            out.append(f'(import "isthmus" "{it.name}" {kind})')
        return "".join(out)


def interpreter(*, is_64: bool) -> str:
    """The guest's text: it runs the script that its message is."""
    t = _Text(is_64=is_64)
    offset = "(i32.add (i32.const 8) (i32.mul (local.get $i) (i32.const 8)))"
    bits = f"(i32.shr_u (i32.load {t.field('(i32.const 4)')}) (local.get $i))"
    cases = "".join(t.case(it, n) for n, it in enumerate([*_NAMES, *_FURTHER]))
    size = f"i64 {_PAGES} 1024" if is_64 else f"{_PAGES} 1024"
    return f"""(module {t.imports()} (memory (export "memory") {size})
      (global $at (mut i32) (i32.const 0))
      (func $a (param $i i32) (result i64) (local $v i64)
        (local.set $v (i64.load {t.field(offset)}))
        (if (result i64) (i32.and {bits} (i32.const 1))
          (then (i64.load {t.result("(i32.wrap_i64 (local.get $v))")}))
          (else (local.get $v))))
      (func (export "on_message") (param $nbytes i32) (result i32) (local $n i32) (local $r i64)
        (drop (call $h{_NAMES.index("message_read")} ({t.width}.const {_SCRIPT})
          {t.address("(local.get $nbytes)")}))
        (global.set $at (i32.const {_SCRIPT}))
        (block $done (loop $next
          (br_if $done (i32.gt_u (i32.add (global.get $at) (i32.const {_RECORD.size}))
            (i32.add (i32.const {_SCRIPT}) (local.get $nbytes))))
          (local.set $r (i64.const 0))
          {cases}
          (i64.store {t.result("(local.get $n)")} (local.get $r))
          (local.set $n (i32.add (local.get $n) (i32.const 1)))
          (global.set $at (i32.add (global.get $at) (i32.const {_RECORD.size})))
          (br $next)))
        (i32.const 0)))"""
