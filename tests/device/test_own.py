"""KV caches in the device's own memory: a CUDA driver without a card, the processor's kernels.

What a guest can tell, and every bit, must be as on the processor. `test_gpu.py` asks real devices.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from isthmus import Actor, Limits, Model, Runtime
from isthmus.config import DeviceSettings
from isthmus.device import open_device
from isthmus.device.base import Device
from isthmus.device.buffer import Buffer
from isthmus.device.caches import CachePool, Slot, Stages
from isthmus.device.cuda import CudaDevice
from isthmus.errors import (
    ContextFull,
    DeviceFailed,
    GuestError,
    LimitExceeded,
    ModelUnsupported,
    Overloaded,
    SettingsError,
    SnapshotError,
)
from isthmus.memory import Region
from isthmus.native import libc
from isthmus.native.loader import Library
from isthmus.units import GIB, KIB, MIB, OS_PAGE, WASM_PAGE, GuestPtr, HostAddr, align_up
from tests.device.conftest import FakeDriver
from tests.exact.digest import digest

N_TOKENS = 24


@pytest.fixture
def gpu(driver: FakeDriver) -> Iterator[Runtime]:
    with Runtime(device="cuda", sharing="registered") as runtime:
        yield runtime
        assert pool_of(runtime).taken_nbytes == 0, "a test closes its actors"
    assert driver.n_registered == 0


@pytest.fixture
def model(gpu: Runtime, tiny: Path) -> Model:
    return gpu.load_model(tiny)


@pytest.fixture(scope="module")
def cpu() -> Iterator[Runtime]:
    with Runtime(device="cpu", threads=2) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def cpu_model(cpu: Runtime, tiny: Path) -> Model:
    return cpu.load_model(tiny)


def spawn(runtime: Runtime, model: Model, seed: int = 1, **given: object) -> Actor:
    actor = runtime.spawn(
        "bench", models={"default": model}, args=["n_ctx=512"], seed=1, clock_ns=10**18, **given
    )
    actor.send(f"prefill {N_TOKENS} {seed}")
    return actor


def pool_of(runtime: Runtime) -> CachePool:
    pool = runtime.device.caches
    assert pool is not None
    return pool


def rows_nbytes(actor: Actor) -> int:
    """Of the caches' rows that are in use."""
    return sum(it.n_tokens * it.layout.token_nbytes for it in actor.sessions)


def copied(actor: Actor) -> int:
    return actor.device.counters.bytes_copied


def limit_memory(monkeypatch: pytest.MonkeyPatch, pool: CachePool, n_caches: int) -> None:
    """Has the device hold so many caches of the size of the first one, each in its own slab."""
    allocate = pool._allocate

    def some(nbytes: int) -> Buffer:
        if pool_nbytes(pool) + nbytes > n_caches * nbytes:
            raise DeviceFailed("no memory left")
        return allocate(nbytes)

    monkeypatch.setattr(pool, "_slab_nbytes", 1)
    monkeypatch.setattr(pool, "_allocate", some)


def pool_nbytes(pool: CachePool) -> int:
    return sum(it.buffer.nbytes for slabs in pool._slabs.values() for it in slabs)


# ---------------------------------------------------------------------- where bytes lie


def test_a_cache_lies_in_the_device_s_own_memory(gpu: Runtime, model: Model) -> None:
    info = gpu.device.info
    assert (info.sharing, info.caches) == ("registered", "own")
    assert any(note.startswith("KV caches lie in the device's own memory") for note in info.notes)
    with spawn(gpu, model) as actor:
        session, region, binding = actor.sessions[0], actor.region, actor.binding
        assert binding.address(session.base) == session.base, "logits are the guest's"
        at = binding.address(HostAddr(session.base + session.layout.kv_offset))
        assert not region.base <= at < region.base + region.reserved_nbytes
        assert at == session.kv_base
        cache = session.base + session.layout.kv_offset
        assert libc.is_zero(cache, session.layout.kv_nbytes), "the guest finds nothing there"
        assert session.logits.any()


def test_passes_copy_nothing(gpu: Runtime, model: Model) -> None:
    with spawn(gpu, model) as actor, spawn(gpu, model, 2) as other:
        for stream in [it.stream("sequence 30") for it in (actor, other)]:
            assert len("".join(stream).split() or stream.reply.text.split()) == 30
        actor.send("prefill 200 3")
        actor.send("truncate 50")
        actor.send("tokens 3 4")
        assert actor.counters.bytes_copied == copied(actor) == 0


@pytest.mark.parametrize("sharing", ["managed", "lent", "copied"])
def test_ways_that_cannot_keep_caches_say_so(
    driver: FakeDriver, library: Library, sharing: str
) -> None:
    settings = DeviceSettings(sharing=sharing, caches="own")
    with pytest.raises(SettingsError, match=f"shares as {sharing}, has KV caches in guests'"):
        open_device("cuda", library, settings)
    with pytest.raises(SettingsError, match="device cpu"):
        open_device("cpu", library, DeviceSettings(caches="own"))
    with pytest.raises(SettingsError, match="give auto, guest, own"):
        DeviceSettings(caches="elsewhere")


def test_caches_can_stay_in_guests_memory(driver: FakeDriver, tiny: Path) -> None:
    with Runtime(device="cuda", sharing="registered", caches="guest") as runtime:
        assert runtime.device.info.caches == "guest"
        with spawn(runtime, runtime.load_model(tiny)) as actor:
            session = actor.sessions[0]
            assert session.kv_base == session.base + session.layout.kv_offset
            actor.fork()[0].close()
            assert copied(actor) == 0
    assert driver.n_registered == 0


# ---------------------------------------------------------------------- the same bits


def test_the_same_bits_wherever_caches_lie(driver: FakeDriver, tiny: Path, tmp_path: Path) -> None:
    """Alone, batched, forked, restored, truncated and copied."""
    own, guest = (everything(tiny, tmp_path, caches) for caches in ("own", "guest"))
    assert own == guest


def everything(tiny: Path, folder: Path, caches: str) -> list[object]:
    with Runtime(device="cuda", sharing="registered", caches=caches) as runtime:
        model = runtime.load_model(tiny)
        with spawn(runtime, model) as actor:
            saved = actor.snapshot(folder / "a.safetensors")
            with (
                actor.fork()[0] as fork,
                runtime.restore(saved, models={"default": model}) as lazy,
                runtime.restore(saved, models={"default": model}, verify="full") as verified,
            ):
                four = [actor, fork, lazy, verified]
                found: list[object] = [digest(actor)]
                assert all(digest(it) == found[0] for it in four)
                streams = [it.stream("sequence 300") for it in four]  # beyond 256 rows
                found += ["".join(it) or it.reply.text for it in streams]
                found += [digest(it) for it in four]
                fork.send("truncate 100")
                fork.send("tokens 5")
                found += [fork.send("sequence 40").text, fork.send("hash 3").text]
                found.append(lazy.send("branch 3 5").text)
    assert found[1:5] == found[1:2] * 4
    assert found[5:9] == found[5:6] * 4
    return found


@pytest.mark.parametrize("kv_type", ["q8_0", "f32"])
def test_other_types_of_cache(
    gpu: Runtime, cpu: Runtime, tiny: Path, kv_type: str, tmp_path: Path
) -> None:
    answers = []
    for runtime in (gpu, cpu):
        model = runtime.load_model(tiny, kv_type=kv_type)
        with spawn(runtime, model) as actor, actor.fork()[0] as fork:
            saved = fork.snapshot(tmp_path / "a.safetensors")
            with runtime.restore(saved, models={"default": model}) as again:
                answers.append([it.send("hash 5").text for it in (actor, fork, again)])
        model.close()
    assert len({answer for each in answers for answer in each}) == 1


def test_agents_share_kernels_and_slabs(gpu: Runtime, tiny: Path) -> None:
    """A batch addresses caches by their places on the device, at equal distances."""
    model = gpu.load_model(tiny, exact=False)
    with spawn(gpu, model, 1) as one, spawn(gpu, model, 2) as two, spawn(gpu, model, 3) as three:
        actors = [one, two, three]
        places = [it.sessions[0].kv_base for it in actors]
        assert places[2] - places[1] == places[1] - places[0] > 0
        alone = []
        for actor in actors:
            fork = actor.fork()[0]
            alone.append(fork.send("sequence 40").text)
            fork.close()
        submissions = gpu.device.counters.submissions
        streams = [it.stream("sequence 40") for it in actors]
        assert ["".join(it) or it.reply.text for it in streams] == alone
        assert gpu.device.counters.submissions - submissions < 3 * 40
    model.close()


def test_between_processor_and_device(
    gpu: Runtime, model: Model, cpu: Runtime, cpu_model: Model, tmp_path: Path
) -> None:
    """A snapshot is the same bytes wherever it is made."""
    with spawn(cpu, cpu_model) as actor:
        saved = actor.snapshot(tmp_path / "cpu.safetensors")
        with gpu.restore(saved, models={"default": model}) as moved:
            assert digest(moved) == digest(actor)
            back = moved.snapshot(tmp_path / "gpu.safetensors")
            with cpu.restore(back, models={"default": cpu_model}) as again:
                assert digest(again) == digest(actor)
                texts = {it.send("sequence 12").text for it in (actor, moved, again)}
                assert len(texts) == 1
                assert digest(moved) == digest(again)


def test_rows_that_were_forgotten_are_zero_in_a_snapshot(gpu: Runtime, model: Model) -> None:
    with spawn(gpu, model) as actor:
        actor.send("truncate 10")
        session = actor.sessions[0]
        with actor.pinned() as body, body.on_host():
            for offset, nbytes in session.layout.rows(10, session.n_ctx - 10):
                assert libc.is_zero(session.base + offset, nbytes)
            offset, nbytes = session.layout.rows(0, 10)[0]
            assert not libc.is_zero(session.base + offset, nbytes)


def test_stores_evictions_and_undo(
    gpu: Runtime, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(on_failure="undo", tokens=100)
    with spawn(gpu, model, limits=limits) as actor:
        before = digest(actor)
        with pytest.raises(LimitExceeded):
            actor.send("sequence 400")
        assert actor.usage.undone == 1
        assert digest(actor) == before
        assert actor.evict() > 0
        assert pool_of(gpu).taken_nbytes == 0
        assert digest(actor) == before
        (tmp_path / "store").mkdir()
        saved = actor.snapshot(tmp_path / "store", name="first")
        actor.send("sequence 5")
        after = actor.snapshot(tmp_path / "store", name="second", base=saved)
        assert after.n_chunks_written < after.n_chunks
        with gpu.restore(saved, models={"default": model}) as again:
            assert digest(again) == before
            again.send("sequence 5")
            assert digest(again) == digest(actor)


def test_what_is_copied_is_counted(gpu: Runtime, model: Model, tmp_path: Path) -> None:
    with spawn(gpu, model) as actor:
        rows = rows_nbytes(actor)
        assert rows == N_TOKENS * actor.sessions[0].layout.token_nbytes
        fork = actor.fork()[0]
        assert copied(actor) == rows
        fork.close()
        saved = actor.snapshot(tmp_path / "a.safetensors")
        assert copied(actor) == 2 * rows
        gpu.restore(saved, models={"default": model}).close()
        assert copied(actor) == 3 * rows
        actor.send("branch 2 1")
        assert copied(actor) == 5 * rows
        actor.send("prefill 300 3")  # a cache that is mostly in use is copied whole
        with actor.fork()[0] as fork:
            assert copied(actor) == 5 * rows + actor.sessions[0].layout.kv_nbytes
            assert digest(fork) == digest(actor)


def test_large_caches_lie_in_several_buffers(
    driver: FakeDriver,
    tiny: Path,
    cpu: Runtime,
    cpu_model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plane = cpu_model.layout(512).plane_nbytes[0]
    monkeypatch.setattr(Device, "largest_buffer", 3 * plane + 256)
    monkeypatch.setattr(CudaDevice, "everywhere", None)  # batches want a cache in one buffer
    with Runtime(device="cuda", sharing="registered", caches="own") as runtime:
        model = runtime.load_model(tiny)
        with spawn(runtime, model) as actor, actor.fork()[0] as fork:
            saved = actor.snapshot(tmp_path / "a.safetensors")
            with (
                runtime.restore(saved, models={"default": model}) as again,
                cpu.restore(saved, models={"default": cpu_model}) as moved,
            ):
                assert digest(actor) == digest(fork) == digest(again) == digest(moved)
        monkeypatch.setattr(runtime.device.caches, "largest", plane - 1)
        with pytest.raises(ModelUnsupported, match="as large as the keys of one layer"):
            spawn(runtime, model)


# ---------------------------------------------------------------------- memory


def test_idle_actors_give_way_when_the_device_is_full(
    gpu: Runtime, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = []
    for seed in range(3):
        with spawn(gpu, model, seed) as actor:
            expected.append(actor.send("sequence 5").text)
    limit_memory(monkeypatch, pool_of(gpu), 2)
    actors = [spawn(gpu, model, seed) for seed in range(3)]
    assert [it.state for it in actors] == ["evicted", "idle", "idle"]
    assert [it.send("sequence 5").text for it in actors] == expected
    for actor in actors:
        actor.close()


def test_a_full_device_is_an_error_that_teaches(
    gpu: Runtime, model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    limit_memory(monkeypatch, pool_of(gpu), 1)
    with spawn(gpu, model) as actor:
        saved = actor.snapshot(tmp_path / "a.safetensors")
        before = digest(actor)
        with actor.pinned():  # nobody can be evicted
            with pytest.raises(Overloaded, match="left for a KV cache, and none is idle"):
                spawn(gpu, model, 2)
            with pytest.raises(Overloaded, match="left for a KV cache"):
                gpu.restore(saved, models={"default": model})
        assert digest(actor) == before
        with pytest.raises(Overloaded, match="left for a KV cache"):
            actor.fork()
        assert digest(actor) == before
        actor.send("sequence 5")


def test_a_session_that_fails_to_open_leaves_nothing(
    gpu: Runtime, model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pool = pool_of(gpu)
    with spawn(gpu, model) as actor:
        saved = actor.snapshot(tmp_path / "a.safetensors")
        taken = pool.taken_nbytes

        def fails(*_: object) -> None:
            raise DeviceFailed("the bus is gone")

        for name in ("cover", "fill"):
            with monkeypatch.context() as patch:
                patch.setattr(f"isthmus.device.own.OwnBinding.{name}", fails)
                with pytest.raises(SnapshotError, match="the bus is gone"):
                    gpu.restore(saved, models={"default": model})
                assert pool.taken_nbytes == taken
        with pytest.raises(ContextFull):
            actor.send("prefill 600 1")
        assert pool.taken_nbytes == taken
    assert pool.taken_nbytes == 0


def test_a_guest_that_traps_or_closes_gives_its_cache_back(gpu: Runtime, model: Model) -> None:
    limits = Limits(on_failure="close")
    actor = spawn(gpu, model, limits=limits)
    with pytest.raises(GuestError):
        actor.send("trap 1")
    assert actor.state == "closed"
    opened = gpu.spawn("bench", models={"default": model}, args=["n_ctx=512"])
    opened.send("hostcall 1")  # a session without tokens
    fork = opened.fork()[0]
    opened.evict()
    opened.close()
    fork.close()


def test_a_slot_that_cannot_be_cleared_is_given_back(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_slot: Slot) -> None:
        raise DeviceFailed("the bus is gone")

    device = open_device("cpu", library, DeviceSettings(threads=1))
    pool = CachePool("it", device.allocate, GIB, GIB, Stages(library, 0))
    with monkeypatch.context() as patch:
        patch.setattr(Slot, "clear", fails)
        with pytest.raises(DeviceFailed, match="the bus is gone"):
            pool.take(MIB)
    assert pool.taken_nbytes == 0
    device.close()


def test_slots_lie_at_equal_distances_and_come_back(library: Library) -> None:
    device = open_device("cpu", library, DeviceSettings(threads=1))

    def allocate(nbytes: int) -> Buffer:
        if nbytes > 8 * MIB:
            raise DeviceFailed("too much at once")
        return device.allocate(nbytes)

    pool = CachePool("it", allocate, GIB, GIB, Stages(library, 0))
    slots = [pool.take(MIB) for _ in range(12)]
    places = [slot.address for slot in slots]
    assert [b - a for a, b in pairwise(places[:8])] == [MIB] * 7
    assert [b - a for a, b in pairwise(places[8:])] == [MIB] * 3
    assert pool.taken_nbytes == 16 * MIB, "a slab of as many as there were"
    ones = (ctypes.c_ubyte * KIB)(*[1] * KIB)
    slots[3].send(HostAddr(ctypes.addressof(ones)), 0, KIB)
    pool.give(slots[3])
    slots[3] = again = pool.take(MIB)
    assert again.address == places[3]
    again.fetch(HostAddr(ctypes.addressof(ones)), 0, KIB)
    assert not any(ones), "a slot begins with zeroes"
    for slot in slots:
        pool.give(slot)
    assert pool.taken_nbytes == 0
    device.close()


def test_pages_of_a_cache_are_neither_pinned_nor_kept(
    gpu: Runtime, model: Model, driver: FakeDriver
) -> None:
    with spawn(gpu, model) as actor:
        session = actor.sessions[0]
        cache = session.base + session.layout.kv_offset
        last = cache + session.layout.kv_nbytes - OS_PAGE
        inside = range(align_up(cache, OS_PAGE), last, OS_PAGE)
        assert len(inside) > 50
        for check in range(2):
            assert driver.is_registered(session.base)
            assert not any(driver.is_registered(page) for page in inside)
            with actor.pinned() as body, body.on_host():
                pass  # fetches rows, and leaves zeroes
            assert libc.is_zero(cache, session.layout.kv_nbytes), check


@pytest.mark.parametrize("verify", ["lazy", "full"])
def test_no_copy_is_of_memory_that_is_pinned_in_part(
    gpu: Runtime, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verify: str
) -> None:
    """CUDA refuses that, and ggml ends the process. A cache begins inside of a page."""
    touched: list[int] = []
    for name in ("send", "fetch"):
        move = getattr(Slot, name)

        def noted(slot: Slot, at: int, *rest: int, move: Callable[..., None] = move) -> None:
            touched.append(at)
            move(slot, at, *rest)

        monkeypatch.setattr(Slot, name, noted)
    with spawn(gpu, model) as actor:
        saved = actor.snapshot(tmp_path / "a.safetensors")
        with gpu.restore(saved, models={"default": model}, verify=verify) as again:
            assert len(touched) > len(again.sessions[0].layout.row_nbytes)
            for region in (actor.region, again.region):
                end = region.base + region.reserved_nbytes
                assert not any(region.base <= at < end for at in touched)


def test_tensors_across_ranges_that_were_registered_one_by_one(
    driver: FakeDriver, library: Library
) -> None:
    """CUDA refuses to register a page twice."""
    device = open_device("cuda", library, DeviceSettings(sharing="registered", caches="guest"))
    with Region.reserve(64 * WASM_PAGE, nbytes=2 * WASM_PAGE, remappable=False) as region:
        with device.bind(region) as binding:
            binding.cover(region.base, 100)
            region.grow(5 * WASM_PAGE)
            binding.cover(region.address(GuestPtr(2 * WASM_PAGE - 100), 200), 200)
            assert driver.n_registered == binding.n_segments == 2
            assert all(driver.is_registered(region.base + i * WASM_PAGE) for i in range(5))
        assert driver.n_registered == 0
    device.close()


def test_a_tensor_that_ends_in_a_cache_is_refused(gpu: Runtime, model: Model) -> None:
    with spawn(gpu, model) as actor:
        session, binding = actor.sessions[0], actor.binding
        cache = HostAddr(session.base + session.layout.kv_offset)
        with pytest.raises(DeviceFailed, match="lie partly in a KV cache"):
            binding.cover(HostAddr(cache - 64), 128)
        assert binding.address(HostAddr(cache + 8)) == binding.address(cache) + 8
