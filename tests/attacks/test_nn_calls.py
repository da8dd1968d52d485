"""Whatever a guest passes to wasi-nn, it gets an errno, and no byte changes but those it offered.

Every function is called 600 times, and by `make test-attacks` 10,000 times, with pointers, sizes,
handles and JSON that are meant to hurt.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator

import pytest
import wasmtime

from isthmus import Limits
from isthmus.runtime import Runtime
from isthmus.wasm.wasi_nn import N_PARAMS, NnErrno
from tests.nn.guests import Nn
from tests.tiny_gguf import TinyLlama

N_CALLS, MANY_CALLS = 600, 10_000
PAGES = 2
MEMORY_NBYTES = PAGES * 65_536
"""Bytes that are the guest's own; behind them lie its sessions."""
NASTY = (
    *(0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 20, 100, 255, 256, 1024, 4096, 16_384, 65_535, 65_536),
    *(MEMORY_NBYTES - 20, MEMORY_NBYTES - 4, MEMORY_NBYTES - 1, MEMORY_NBYTES),
    *(0x7FFF_FFFF, 0x8000_0000, 0xFFFF_F000, 0xFFFF_FFEC, 0xFFFF_FFFC, 0xFFFF_FFFF),
)
NAMES = (b"default", b"preload:default", b"../x", b"/etc/passwd", b"", b"\xff", b"GGUF", b"d" * 300)
TEXTS = (
    *(b"the isthmus", b"", b"\xff\xfe", b"x" * 300, "größe 🌊".encode(), b"<|im_end|>", b"\0"),
    *(b"{", b"[]", b"[" * 900, b'{"ctx-size": 1e999}', b'{"temp": "x"}', b'{"grammar": "root"}'),
    *(b'{"reverse-prompt": "\\ud800"}', b'{"embedding": true}', b'{"embedding": false}'),
)
KEYS = ("ctx-size", "n-predict", "temp", "top-k", "top-p", "min-p", "seed", "repeat-penalty")
VALUES = (0, 1, -1, 2, 7, 256, 0.5, -0.5, 2**31, 2**40, 10**30, None, True, "x", [], {}, "")
TOUCHED = {"load": (4,), "load_by_name": (2,), "load_by_name_with_config": (4,)}
TOUCHED["init_execution_context"] = (1,)
"""Parameters that are places for four bytes."""

GOOD_TENSOR, GOOD_BUILDER, PLACE = 3072, 3104, 40_000
_OUTPUT = {1: 0, 2: 50_000, 3: 20_000, 4: PLACE}
GOOD = {
    "load": {0: GOOD_BUILDER, 1: 1, 2: 6, 3: 0, 4: PLACE},
    "load_by_name": {0: 0, 1: 7, 2: PLACE},
    "load_by_name_with_config": {0: 0, 1: 7, 2: 1024, 3: 33, 4: PLACE},
    "init_execution_context": {1: PLACE},
    "set_input": {1: 0, 2: GOOD_TENSOR},
    "get_output": _OUTPUT,
    "get_output_single": _OUTPUT,
}
"""Arguments that each function takes, but for the number of a graph or a context."""


def wat() -> str:
    """A guest with two pages that exports each function."""
    parts = []
    for name, n in N_PARAMS.items():
        params = f"(param {'i32 ' * n})"
        kind = f"(func $nn_{name} {params} (result i32))"
        parts.insert(0, f'(import "wasi_ephemeral_nn" "{name}" {kind})')
        gets = " ".join(f"(local.get {i})" for i in range(n))
        call = f"(call $nn_{name} {gets})"
        parts.append(f'(func (export "do_nn_{name}") {params} (result i32) {call})')
    return f"""(module {"".join(parts)} (memory (export "memory") {PAGES})
      (func (export "on_message") (param i32) (result i32) (i32.const 0)))"""


@pytest.fixture(scope="module")
def nn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nn]:
    tiny = TinyLlama(with_tokenizer=True, n_layer=1, overrides={"pooling_type": 3})
    path = tiny.write(tmp_path_factory.mktemp("able") / "able.gguf")
    limits = Limits(tokens=64, memory_nbytes=64 << 20)
    with Runtime(device="cpu", threads=1) as runtime:
        given = {"default": runtime.load_model(path)}
        yield Nn(runtime, bytes(wasmtime.wat2wasm(wat())), models=given, limits=limits)


def config(rng: random.Random) -> bytes:
    keys = rng.choices(KEYS, k=rng.randrange(4))
    return json.dumps({key: rng.choice(VALUES) for key in keys}).encode()


def prepare(nn: Nn, rng: random.Random) -> None:
    """Names, texts, tensors and builders that are nearly good, all over the memory, and now and
    then a good context with an input."""
    data = bytearray(rng.randbytes(64) * (MEMORY_NBYTES // 64))
    for at in range(0, 16_384, 1024):
        text = rng.choice((*NAMES, *TEXTS, config(rng)))
        data[at : at + len(text)] = text
    for at in range(16_384, 32_768, 32):
        place, size = rng.choice((rng.randrange(16) * 1024, rng.choice(NASTY))), rng.randrange(14)
        words = [rng.choice((0, 16, place)), rng.choice((1, 2, rng.choice(NASTY)))]
        words += [rng.choice((3, 5, 6, 0xFFFF_FF03)), place, rng.choice((size, rng.choice(NASTY)))]
        data[at : at + 20] = struct.pack("<5I", *words)
    data[:7], data[2048:2055] = b"default", b"the sea"
    small = b'{"ctx-size": 256, "n-predict": 3}'
    data[1024 : 1024 + len(small)] = small
    data[GOOD_TENSOR : GOOD_TENSOR + 20] = struct.pack("<5I", 2048, 1, 3, 2048, 7)
    data[GOOD_BUILDER : GOOD_BUILDER + 8] = struct.pack("<2I", 0, 7)
    nn.write(0, bytes(data))
    if rng.random() < 0.7:
        assert nn.nn("load_by_name_with_config", 0, 7, 1024, len(small), PLACE) == 0
        if nn.nn("init_execution_context", nn.u32(PLACE), PLACE) == 0:
            assert nn.nn("set_input", nn.u32(PLACE), 0, GOOD_TENSOR) == 0


def arguments(nn: Nn, name: str, rng: random.Random) -> list[int]:
    """Mostly what the function takes, often something like it, and now and then anything."""
    state = nn.actor.body._nn._contexts.state
    numbers = [*(state.graphs if name.startswith(("unload", "init")) else state.contexts)]
    found = []
    for i in range(N_PARAMS[name]):
        likely = [rng.randrange(16) * 1024, 16_384 + 32 * rng.randrange(512), 7, 0, 1, 6, PLACE]
        good = GOOD.get(name, {}).get(i)
        if i == 0 and not name.startswith("load"):
            good = rng.choice([0, *numbers[-3:]])
        words = NASTY if rng.random() < 0.2 else likely
        found.append(good if good is not None and rng.random() < 0.7 else rng.choice(words))
    return found


def offered(name: str, given: list[int]) -> list[tuple[int, int]]:
    """Ranges of memory that a call may write to."""
    found = [(given[i], given[i] + 4) for i in TOUCHED.get(name, ())]
    if name.startswith("get_output"):
        found += [(given[2], given[2] + given[3]), (given[4], given[4] + 4)]
    return found


def attack(nn: Nn, name: str, n_calls: int, seed: int) -> None:
    rng, errnos, seen = random.Random(seed), set(NnErrno), set()
    for i in range(n_calls):
        if i % 20 == 0:
            prepare(nn, rng)
        given = arguments(nn, name, rng)
        before = bytearray(nn.read(0, MEMORY_NBYTES))
        errno = nn.nn(name, *given)
        assert errno in errnos, (given, errno)
        seen.add(errno)
        after = bytearray(nn.read(0, MEMORY_NBYTES))
        for begin, end in offered(name, given):
            before[begin:end] = after[begin:end] = bytes(len(after[begin:end]))
        assert before == after, (given, errno)
        if i % 100 == 99:
            release(nn)
    assert {NnErrno.SUCCESS, NnErrno.INVALID_ARGUMENT} <= seen, "some calls are good, some bad"
    assert nn.actor.state == "idle"
    assert nn.actor.region.nbytes <= 64 << 20


def release(nn: Nn) -> None:
    """Unloads whatever is loaded."""
    for graph in [*nn.actor.body._nn._contexts.state.graphs]:
        assert nn.nn("unload", graph) == 0
    assert not nn.actor.sessions


@pytest.mark.parametrize("name", N_PARAMS)
def test_any_arguments(nn: Nn, name: str) -> None:
    attack(nn, name, N_CALLS, seed=len(name))


@pytest.mark.long
@pytest.mark.attacks
@pytest.mark.parametrize("name", N_PARAMS)
def test_any_arguments_many_times(nn: Nn, name: str) -> None:
    attack(nn, name, MANY_CALLS, seed=2026)
