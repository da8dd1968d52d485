"""A guest with a 64-bit memory passes pointers and lengths that 32 bits could not hold."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import pytest
import wasmtime

from isthmus import Limits, abi
from isthmus.abi import Dtype, Errno, Op
from isthmus.errors import GuestInvalid, GuestTrapped, SettingsError
from isthmus.runtime import Runtime
from isthmus.units import GIB, WASM_PAGE
from tests.attacks.proxy import PAGES, Proxy, proxy_wat
from tests.tiny_gguf import TinyLlama

NBYTES = PAGES * WASM_PAGE
EDGES = (2**31, 2**32, 2**33, 2**63, 2**64)
NASTY = (
    *(edge + off for edge in EDGES for off in (-4096, -4, -1, 0, 4096) if edge + off < 2**64),
    *(2**32 + at for at in (64, 4096, 1 << 20)),  # what a cut to 32 bits would make good
    NBYTES - 4, NBYTES, NBYTES + 1, 0, 4096,
)  # fmt: skip


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    able = TinyLlama(with_tokenizer=True, overrides={"pooling_type": 3})
    path = able.write(tmp_path_factory.mktemp("able") / "able.gguf")
    wasm = bytes(wasmtime.wat2wasm(proxy_wat(is_64=True)))
    with Runtime(device="cpu", threads=1) as runtime:
        model = runtime.load_model(path)
        yield Proxy(runtime, wasm, model, limits=Limits(memory_nbytes=8 * GIB))


WIDE = [it for it in abi.HOST_FUNCTIONS if it.wasm_params_64 != it.wasm_params]


@pytest.mark.parametrize("function", WIDE, ids=lambda it: it.name)
def test_any_pointer_gives_a_value_or_a_documented_errno(
    function: abi.HostFunction, proxy: Proxy
) -> None:
    rng = random.Random(function.name)
    if not proxy.actor.sessions:
        assert proxy.open_session(proxy.open_model(), 1 << 20) > 0
    handles = proxy.actor.body.context.handles.numbers()
    documented = {-code for code in function.errors}
    for _ in range(400):
        arguments = [
            rng.choice(NASTY)
            if wide == "i64"
            else rng.choice((*handles, 0, 1, 5, 256, 2**31, 2**32 - 1))
            for wide in function.wasm_params_64
        ]
        result = proxy.call(function.name, *arguments)
        assert result >= 0 or result in documented, (arguments, result)
    assert proxy.actor.state == "idle"


@pytest.mark.parametrize("ptr", [p for p in NASTY if p > NBYTES])
def test_pointers_are_not_cut_to_32_bits(proxy: Proxy, ptr: int) -> None:
    """Their low words would often lie in memory."""
    assert proxy.call("random", ptr, 16) == -Errno.EFAULT
    assert proxy.call("random", 64, ptr) in (-Errno.EINVAL, -Errno.EFAULT)
    assert proxy.call("emit", 64, ptr) == -Errno.EFAULT
    assert proxy.call("session_open", 1, 256, ptr & ~4095, 1 << 20) < 0


def test_structs_hold_wide_pointers(proxy: Proxy) -> None:
    def tensor(at: int, data: int, reserved: int = 0) -> None:
        proxy.write(at, abi.TENSOR_64.pack(Dtype.F32, 0, data, reserved, 8, 1, 1, 1))

    def compute(dst: int, src: int) -> int:
        proxy.write(576, abi.OPERATION_64.pack(Op.SCALE, dst, src, 0, 2.0, 0, 0, 0))
        return proxy.call("compute", 576, 1)

    proxy.write(8192, struct.pack("<8f", *range(8)))
    tensor(512, 8192)
    tensor(640, 12_288)
    assert compute(640, 512) == 0
    assert struct.unpack("<8f", proxy.read(12_288, 32)) == tuple(2.0 * i for i in range(8))
    assert compute(640 + 2**32, 512) == -Errno.EFAULT
    for data in (2**32 + 8192, 2**63, 2**64 - 32):
        tensor(512, data)
        assert compute(640, 512) == -Errno.EFAULT


def test_more_rows_than_anybody_waits_for(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their numbers are copied and checked before the device gets any."""
    monkeypatch.setattr("isthmus.actor.tensor_unit.MAX_ROWS", 3)
    proxy.write(512, abi.TENSOR_64.pack(Dtype.F32, 0, 8192, 0, 8, 1, 1, 1))
    for n, expected in ((3, 0), (4, -Errno.ELIMIT)):
        proxy.write(640, abi.TENSOR_64.pack(Dtype.I32, 0, 12_288, 0, n, 1, 1, 1))
        proxy.write(768, abi.TENSOR_64.pack(Dtype.F32, 0, 16_384, 0, 8, n, 1, 1))
        proxy.write(896, abi.OPERATION_64.pack(Op.GET_ROWS, 768, 512, 640, 0.0, 0, 0, 0))
        proxy.write(12_288, bytes(16))
        assert proxy.call("compute", 896, 1) == expected
    proxy.write(640, abi.TENSOR_64.pack(Dtype.I32, 0, 12_288, 0, 2, 1, 1, 1))
    proxy.write(768, abi.TENSOR_64.pack(Dtype.F32, 0, 16_384, 0, 8, 2, 1, 1))
    twice = abi.OPERATION_64.pack(Op.GET_ROWS, 768, 512, 640, 0.0, 0, 0, 0) * 2
    proxy.write(896, twice)
    assert proxy.call("compute", 896, 1) == 0
    assert proxy.call("compute", 896, 2) == -Errno.ELIMIT


GROWING = """(module (memory (export "memory") i64 1)
  (func (export "on_message") (param i32) (result i32) (i32.const 0))
  (func (export "grow") (param i32) (result i32)
    (i32.wrap_i64 (memory.grow (i64.extend_i32_u (local.get 0)))))
  (func (export "poke") (param i32 i32) (result i32) (local $at i64)
    (local.set $at (i64.or (i64.extend_i32_u (local.get 0))
                           (i64.shl (i64.extend_i32_u (local.get 1)) (i64.const 32))))
    (i32.store (local.get $at) (i32.const 7)) (i32.load (local.get $at))))"""


@pytest.mark.parametrize("fuel", [None, 1_000_000])
def test_every_access_is_inside_or_traps(fuel: int | None) -> None:
    wasm = bytes(wasmtime.wat2wasm(GROWING))
    limits = Limits(memory_nbytes=6 * GIB, fuel=fuel)
    with Runtime(device="null") as runtime:
        actor = runtime.spawn(wasm, limits=limits)
        instance = actor.instance
        if fuel:
            instance.fuel = fuel
        assert instance.call("grow", (5 * GIB) // WASM_PAGE) == 1
        end = 5 * GIB + WASM_PAGE
        assert actor.region.nbytes == end
        for at in (0, 2**32 - 2, 2**32, end - 4):
            assert instance.call("poke", at & 0xFFFF_FFFF, at >> 32) == 7
        for at in (end - 3, end, 6 * GIB, 2**40, 2**63, 2**64 - 4, 2**64 - 1):
            with pytest.raises(GuestTrapped, match="out-of-bounds"):
                instance.call("poke", at & 0xFFFF_FFFF, at >> 32)
        assert instance.call("grow", GIB // WASM_PAGE) == -1
        assert actor.region.nbytes == end


def test_imports_must_fit_the_memory() -> None:
    wide = proxy_wat(is_64=True)
    narrow_memory = wide.replace('(memory (export "memory") i64', '(memory (export "memory")')
    narrow_memory = narrow_memory.replace(str(1 << 20), "1024").replace(
        "i64.const 8", "i32.const 8"
    )
    with (
        Runtime(device="null") as runtime,
        pytest.raises(GuestInvalid, match="types for a 64-bit memory, and its memory is 32-bit"),
    ):
        runtime.load_guest(bytes(wasmtime.wat2wasm(narrow_memory)))


def test_a_32_bit_guest_cannot_have_more_than_its_pointers_reach() -> None:
    with (
        Runtime(device="null") as runtime,
        pytest.raises(SettingsError, match=r"its memory is 32-bit.*wasm64"),
    ):
        runtime.spawn("bench", limits=Limits(memory_nbytes=5 * GIB))
