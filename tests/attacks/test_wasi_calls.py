"""Whatever a guest passes to WASI, it gets an errno, and a call that fails changes no byte.

Every function is called 100 times, and by `make test-attacks` 10,000 times.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import pytest

from isthmus.units import WASM_PAGE
from isthmus.wasm import Engine, Instance
from isthmus.wasm.wasi_table import FUNCTIONS, WasiFunction
from tests.unit.test_wasi import forwarding_guest
from tests.unit.wasm_guest import quiet_wasi, spawn

N_CALLS, MANY_CALLS = 100, 10_000
MAX_ERRNO = 76
NASTY = (
    *(0, 1, 2, 3, 4, 8, 47, 64, 1023, 1024, 1025, 4096, 65_535, 65_536, 262_144, 262_145),
    *(WASM_PAGE - 4, WASM_PAGE - 8, WASM_PAGE - 31, 0x7FFF_FFFF, -1, -4, -(2**31)),
)
CALLED = [it for it in FUNCTIONS if it.name != "proc_exit"]


@pytest.fixture(scope="module")
def instance() -> Iterator[Instance]:
    wasi = quiet_wasi(
        args=["chat", "größe"],
        environ=["A=b", "C="],
        random=lambda n: b"\xab" * n,
        read=lambda n: b"\xee" * min(n, 100),
    )
    with Engine() as engine, spawn(engine, forwarding_guest(), wasi=wasi) as instance:
        yield instance


def prepare(instance: Instance, rng: random.Random) -> None:
    """Parts of memory, subscriptions and noise, all over the memory."""
    data = bytearray(rng.randbytes(256) * (WASM_PAGE // 256))
    for at in range(0, 8192, 8):
        place = rng.choice((rng.randrange(WASM_PAGE), rng.choice(NASTY)))
        size = rng.choice((rng.randrange(200), rng.choice(NASTY)))
        data[at : at + 8] = struct.pack("<II", place & 0xFFFF_FFFF, size & 0xFFFF_FFFF)
    for at in range(8192, 16_384, 48):
        kind, number = rng.choice((0, 0, 1, 2, 9)), rng.choice((0, 1, 2, 3, 99))
        timeout, flags = rng.choice((0, 5, 2**63, 2**64 - 1)), rng.choice((0, 1, 0xFFFF))
        data[at : at + 48] = struct.pack("<QB7xI4xQQH6x", at, kind, number, timeout, 0, flags)
    instance.memory.write(0, bytes(data))


def attack(instance: Instance, name: str, params: str, n_calls: int) -> None:
    rng = random.Random(n_calls + len(name))
    for i in range(n_calls):
        if i % 20 == 0:
            prepare(instance, rng)
        likely = (0, 1, 2, 3, 8 * rng.randrange(1024), 8192 + 48 * rng.randrange(170), 32_768)
        given = [rng.choice(likely if rng.random() < 0.8 else NASTY) for _ in params]
        before = instance.memory.read(0, WASM_PAGE)
        errno = instance.call(name, *given)
        assert 0 <= errno <= MAX_ERRNO, given
        if errno:
            assert instance.memory.read(0, WASM_PAGE) == before, (given, errno)


@pytest.mark.parametrize("function", CALLED, ids=lambda it: it.name)
def test_any_arguments(instance: Instance, function: WasiFunction) -> None:
    attack(instance, function.name, function.params, N_CALLS)


@pytest.mark.long
@pytest.mark.attacks
@pytest.mark.parametrize("function", CALLED, ids=lambda it: it.name)
def test_any_arguments_many_times(instance: Instance, function: WasiFunction) -> None:
    attack(instance, function.name, function.params, MANY_CALLS)
