from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Iterator

import pytest

from isthmus.errors import GuestInvalid, GuestTrapped, RegionBusy, RegionError
from isthmus.memory import Region
from isthmus.units import GIB, MIB, OS_PAGE, WASM_PAGE, HostAddr
from isthmus.wasm import Engine
from isthmus.wasm.engine_config import GUARD_NBYTES, RESERVED_NBYTES
from tests.unit.wasm_guest import spawn, wasm

GROW = '(func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))'
SIZE = '(func (export "size") (result i32) (memory.size))'
LOAD = '(func (export "load") (param i32) (result i32) (i32.load (local.get 0)))'
STORE = '(func (export "store") (param i32 i32) (i32.store (local.get 0) (local.get 1)))'


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine() as engine:
        yield engine


def test_the_guest_and_the_region_are_the_same_bytes(engine: Engine) -> None:
    with spawn(engine, wasm(LOAD, STORE)) as instance:
        instance.call("store", 8, 0x01020304)
        assert ctypes.string_at(instance.region.base + 8, 4) == b"\x04\x03\x02\x01"
        ctypes.memmove(instance.region.base + 12, b"\x05\0\0\0", 4)
        assert instance.call("load", 12) == 5


def test_data_segments_land_in_the_region(engine: Engine) -> None:
    with spawn(engine, wasm('(data (i32.const 100) "hello")')) as instance:
        assert instance.memory.read(100, 5) == b"hello"


def test_wasmtime_asks_for_the_whole_32_bit_range_and_a_guard(engine: Engine) -> None:
    asked: list[tuple[int, int]] = []

    def reserve(reserved_nbytes: int, guard_nbytes: int) -> Region:
        asked.append((reserved_nbytes, guard_nbytes))
        return Region.reserve(reserved_nbytes, guard_nbytes)

    with spawn(engine, wasm(), reserve=reserve) as instance:
        assert asked == [(RESERVED_NBYTES, GUARD_NBYTES)]
        assert asked[0][0] == 4 * GIB
        assert instance.region.nbytes == WASM_PAGE


def test_growth_is_seen_at_once_and_ends_at_the_limit(engine: Engine) -> None:
    guest = wasm(GROW, SIZE, STORE)
    with spawn(engine, guest, memory_limit_nbytes=3 * WASM_PAGE) as instance:
        base = instance.region.base
        assert instance.call("grow", 1) == 1
        assert instance.region.nbytes == 2 * WASM_PAGE
        instance.call("store", 2 * WASM_PAGE - 4, 7)
        assert instance.call("grow", 2) == -1
        assert instance.call("size") == 2
        assert instance.region.nbytes == 2 * WASM_PAGE
        assert instance.call("grow", 1) == 2
        assert (instance.region.nbytes, instance.region.base) == (3 * WASM_PAGE, base)


def test_growth_ends_at_the_modules_own_maximum(engine: Engine) -> None:
    with spawn(engine, wasm(GROW, memory='(memory (export "memory") 1 2)')) as instance:
        assert instance.call("grow", 1) == 1
        assert instance.call("grow", 1) == -1


def test_a_memory_of_zero_pages(engine: Engine) -> None:
    guest = wasm(GROW, LOAD, memory='(memory (export "memory") 0)')
    with spawn(engine, guest) as instance:
        assert instance.region.nbytes == 0
        with pytest.raises(GuestTrapped, match="out-of-bounds memory access"):
            instance.call("load", 0)
        assert instance.call("grow", 1) == 0
        assert instance.call("load", 0) == 0


def test_a_minimum_above_the_limit_is_refused(engine: Engine) -> None:
    guest = wasm(memory='(memory (export "memory") 17)')
    with pytest.raises(GuestInvalid, match=r"17 pages \(1.1 MiB\).*may have 1.0 MiB"):
        spawn(engine, guest)
    assert engine.memory_creator.n_memories == 0


def test_an_error_of_the_factory_comes_out_unchanged(engine: Engine) -> None:
    error = RegionError("the device has no memory")

    def reserve(reserved_nbytes: int, guard_nbytes: int) -> Region:
        raise error

    with pytest.raises(RegionError) as caught:
        spawn(engine, wasm(), reserve=reserve)
    assert caught.value is error


def test_too_small_or_used_regions_are_refused_and_closed(engine: Engine) -> None:
    made: list[Region] = []

    def small(reserved_nbytes: int, guard_nbytes: int) -> Region:
        made.append(Region.reserve(MIB))
        return made[-1]

    def used(reserved_nbytes: int, guard_nbytes: int) -> Region:
        made.append(Region.reserve(reserved_nbytes, guard_nbytes, nbytes=OS_PAGE))
        return made[-1]

    with pytest.raises(RegionError, match="are needed"):
        spawn(engine, wasm(), reserve=small)
    with pytest.raises(RegionError, match="in use already"):
        spawn(engine, wasm(), reserve=used)
    assert [region.closed for region in made] == [True, True]


def test_failing_data_segments_free_everything(engine: Engine) -> None:
    made: list[Region] = []

    def reserve(reserved_nbytes: int, guard_nbytes: int) -> Region:
        made.append(Region.reserve(reserved_nbytes, guard_nbytes))
        return made[-1]

    with pytest.raises(GuestTrapped, match="out-of-bounds memory access"):
        spawn(engine, wasm('(data (i32.const 65535) "xy")'), reserve=reserve)
    assert made[0].closed
    assert engine.memory_creator.n_memories == 0


def test_no_memory_outlives_its_instance(engine: Engine) -> None:
    guest = engine.compile(wasm(), "guest")
    instances = [spawn(engine, guest) for _ in range(5)]
    assert engine.memory_creator.n_memories == 5
    instances.pop().close()
    assert engine.memory_creator.n_memories == 4
    instances.clear()
    gc.collect()
    assert engine.memory_creator.n_memories == 0


def test_a_held_region_keeps_its_bytes_after_close(engine: Engine) -> None:
    instance = spawn(engine, wasm('(data (i32.const 0) "held")'))
    hold = instance.region.hold("a device")
    with pytest.raises(RegionBusy, match="a device"):
        instance.close()
    assert instance.closed
    assert engine.memory_creator.n_memories == 0
    assert ctypes.string_at(instance.region.base, 4) == b"held"
    hold.release()
    instance.close()
    assert instance.region.closed


def test_instances_do_not_share_memory(engine: Engine) -> None:
    store = '(func (export "store") (param i32) (i32.store (i32.const 0) (local.get 0)))'
    guest = engine.compile(wasm(store), "guest")
    with spawn(engine, guest) as one, spawn(engine, guest) as other:
        one.call("store", 1)
        assert (one.memory.read(0, 1), other.memory.read(0, 1)) == (b"\1", b"\0")
        assert abs(one.region.base - other.region.base) > RESERVED_NBYTES


def test_requests_of_different_threads_do_not_mix(engine: Engine) -> None:
    guest = engine.compile(wasm(GROW), "guest")
    wrong: list[int] = []

    def work(n_pages: int) -> None:
        for _ in range(20):
            with spawn(engine, guest, memory_limit_nbytes=n_pages * WASM_PAGE) as instance:
                grown = instance.call("grow", n_pages - 1), instance.call("grow", 1)
                if grown != (1, -1) or instance.region.nbytes != n_pages * WASM_PAGE:
                    wrong.append(n_pages)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


class UnprotectedRegion(Region):
    """Memory that a device supplies: all of it accessible from the start, never protected."""

    def grow(self, nbytes: int) -> None:
        if nbytes > self.reserved_nbytes:
            raise RegionError("full")
        self.nbytes = nbytes


def test_without_guard_pages_bounds_are_checked_by_comparison() -> None:
    backing = Region.reserve(4 * MIB, nbytes=4 * MIB)

    def reserve(reserved_nbytes: int, guard_nbytes: int) -> Region:
        assert (reserved_nbytes, guard_nbytes) == (2 * WASM_PAGE, 0)
        return UnprotectedRegion(HostAddr(backing.base), reserved_nbytes, 0, lambda: None)

    with Engine(guard_pages=False) as engine:
        guest = wasm(GROW, LOAD, STORE)
        limit = 2 * WASM_PAGE
        with spawn(engine, guest, reserve=reserve, memory_limit_nbytes=limit) as instance:
            assert instance.region.base == backing.base
            with pytest.raises(GuestTrapped, match="out-of-bounds memory access"):
                instance.call("load", WASM_PAGE)
            assert instance.call("grow", 1) == 1
            instance.call("store", WASM_PAGE, 9)
            assert ctypes.string_at(backing.base + WASM_PAGE, 1) == b"\x09"
            assert instance.call("grow", 1) == -1
            with pytest.raises(GuestTrapped, match="out-of-bounds memory access"):
                instance.call("load", 2 * WASM_PAGE - 3)
    backing.close()
