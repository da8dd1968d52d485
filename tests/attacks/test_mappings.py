"""Guests, images and forks that want all mappings and files of the process.

Whoever asks for too much hears so, or is served in a way that needs less; neighbours go on.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import wasmtime

from isthmus.actor import Actor
from isthmus.config import Limits
from isthmus.errors import ActorClosed, Overloaded, RegionError
from isthmus.memory import Extent, Image, Region, SharedFile, touched_chunks
from isthmus.memory import region as regions
from isthmus.memory.quota import FILES, MAPPINGS, Quota, Share
from isthmus.native import libc
from isthmus.runtime import Runtime
from isthmus.snapshot import Store
from isthmus.units import MIB, OS_PAGE, GuestPtr
from tests.attacks.proxy import Proxy, proxy_wat

CHUNK = 16_384
linux = pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs Linux")
COUNTS = bytes(
    wasmtime.wat2wasm("""(module (import "isthmus" "reply" (func $r (param i32 i32) (result i32)))
  (memory (export "memory") 8) (data (i32.const 8) "@") (data (i32.const 300000) "far away")
  (func (export "on_message") (param i32) (result i32)
    (i32.store8 (i32.const 8) (i32.add (i32.load8_u (i32.const 8)) (i32.const 1)))
    (call $r (i32.const 8) (i32.const 1))))""")
)
"""Answers with A, B, C, …"""


def mappings_of(region: Region) -> int:
    """How many mappings the system has in a Region's addresses."""
    n, end = 0, region.base + region.reserved_nbytes
    for line in Path("/proc/self/maps").read_text().splitlines():
        first = int(line.split("-")[0], 16)
        n += region.base <= first < end
    return n


def n_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def filled(nbytes: int) -> Region:
    region = Region.reserve(2 * nbytes, nbytes=nbytes)
    with region.view(0, nbytes) as view:
        view.memory[:] = b"x" * nbytes
    return region


def in_pieces(n: int) -> Image:
    """An image whose chunks lie in the file the other way round, with gaps between them."""
    file = SharedFile(os.memfd_create("test"))
    os.pwrite(file.fd, b"".join(bytes([i % 250 + 1]) * CHUNK for i in range(n)), 0)
    return Image(
        2 * n * CHUNK,
        [Extent(2 * i * CHUNK, CHUNK, file, (n - 1 - i) * CHUNK) for i in range(n)],
        [],
    )


def is_whole(region: Region, n: int) -> bool:
    with region.view(0, 2 * n * CHUNK) as view:
        parts = [bytes(view.memory[i * CHUNK :][:CHUNK]) for i in range(2 * n)]
    expected = [bytes([(n - 1 - i) % 250 + 1]) * CHUNK for i in range(n)]
    return parts[::2] == expected and set(parts[1::2]) == {bytes(CHUNK)}


@contextlib.contextmanager
def left(quota: Quota, n: int) -> Iterator[None]:
    """While open, so many more may be taken."""
    before = quota.limit
    quota.limit = quota.n_taken + n
    try:
        yield
    finally:
        quota.limit = before


# ---------------------------------------------------------------------- pages cut out of an image


@linux
def test_clearing_every_other_page_of_an_image() -> None:
    nbytes = 48 * MIB
    region = filled(nbytes)
    region.load(Image.freeze(region.base, nbytes, [(0, nbytes)]))
    for ptr in range(0, nbytes, 2 * OS_PAGE):
        region.clear(GuestPtr(ptr), OS_PAGE)
    assert nbytes // OS_PAGE > regions.MAX_MAPPINGS
    assert mappings_of(region) <= regions.MAX_MAPPINGS
    expected = (bytes(OS_PAGE) + b"x" * OS_PAGE) * (nbytes // OS_PAGE // 2)
    with region.view(0, nbytes) as view:
        assert view.memory == expected
    assert len(touched_chunks(region, CHUNK)) == nbytes // CHUNK
    region.close()


@linux
def test_clearing_the_same_place_again_and_again_gives_pages_back_each_time() -> None:
    region = filled(MIB)
    region.load(Image.freeze(region.base, MIB, [(0, MIB)]))
    for _ in range(2 * regions.MAX_MAPPINGS):
        region.clear(GuestPtr(OS_PAGE), OS_PAGE)
    assert mappings_of(region) < 10
    assert region._mappings.n <= regions.MAX_MAPPINGS
    assert region._may_cut()
    region.close()


@linux
def test_memory_without_an_image_stays_one_mapping() -> None:
    region = filled(4 * MIB)
    for ptr in range(0, 4 * MIB, 2 * OS_PAGE):
        region.clear(GuestPtr(ptr), OS_PAGE)
    for nbytes in range(4 * MIB, 8 * MIB, OS_PAGE):  # a storm of growth, page by page
        region.grow(nbytes)
    assert mappings_of(region) < 10
    region.close()


@linux
def test_what_many_cut_up_leaves_some_for_new_ones() -> None:
    with left(MAPPINGS, 400):
        hostile = [filled(MIB) for _ in range(10)]
        for region in hostile:
            region.load(Image.freeze(region.base, MIB, [(0, MIB)]))
            for ptr in range(0, MIB, 2 * OS_PAGE):
                region.clear(GuestPtr(ptr), OS_PAGE)
        assert sum(map(mappings_of, hostile)) <= 400
        fresh = Region.reserve(MIB, nbytes=MIB)
        fresh.load(Image.freeze(fresh.base, MIB, []))
        for region in (*hostile, fresh):
            region.close()


@linux
def test_a_guest_that_opens_sessions_a_page_apart(tiny: Path) -> None:
    wasm = bytes(wasmtime.wat2wasm(proxy_wat()))
    with Runtime(device="cpu", threads=1) as runtime:
        proxy = Proxy(runtime, wasm, runtime.load_model(tiny))
        neighbour = runtime.spawn(COUNTS)
        child = Proxy.over(proxy.actor.fork()[0])
        model = child.open_model()
        nbytes = child.call("session_nbytes", model, 1)
        before = mappings_of(child.actor.region)
        with left(MAPPINGS, 40):
            n = 0
            for ptr in range(1 << 20, (4 << 20) - nbytes, nbytes + OS_PAGE):
                session = child.call("session_open", model, 1, ptr, nbytes)
                assert session > 0
                assert child.read(ptr, nbytes) == bytes(nbytes)
                assert child.call("session_close", session) == 0
                n += 1
            assert n > 20  # each would be two mappings more
            assert mappings_of(child.actor.region) <= before + 40
            assert neighbour.send("x").text == "A"
            assert [it.send("x").text for it in neighbour.fork(2)] == ["B", "B"]


# ---------------------------------------------------------------------- images in many pieces


@linux
def test_images_in_many_pieces_of_many_memories() -> None:
    n = 200
    image = in_pieces(n)
    memories = []
    with left(MAPPINGS, 1500):
        for _ in range(20):
            region = Region.reserve(2 * n * CHUNK, nbytes=2 * n * CHUNK)
            assert region.load(image) == 0
            memories.append(region)
        assert sum(map(mappings_of, memories)) <= 1500
        assert len(image.extents) == 1
    assert all(is_whole(region, n) for region in memories)
    for region in memories:
        region.close()


def test_memories_beyond_all_mappings_are_refused_and_others_go_on(null_runtime: Runtime) -> None:
    first = null_runtime.spawn(COUNTS)
    assert first.send("x").text == "A"
    taken = MAPPINGS.n_taken
    more: list[Actor] = []
    with left(MAPPINGS, 30):
        with pytest.raises(Overloaded, match=r"mappings of memory are taken .*: close actors"):
            more.extend(child for _ in range(30) for child in first.fork())
        assert len(more) > 3
        assert first.send("x").text == "B"
        assert {it.send("x").text for it in more} == {"B"}
        for it in more:
            it.close()
        assert MAPPINGS.n_taken <= taken + 2  # the first's own image
        assert [it.send("x").text for it in first.fork()] == ["C"]
    first.close()


def test_shares_come_back_from_memories_that_nobody_closes() -> None:
    taken = MAPPINGS.n_taken
    region = filled(MIB)
    region.load(Image.freeze(region.base, MIB, [(0, MIB)]))
    assert MAPPINGS.n_taken > taken
    del region
    assert MAPPINGS.n_taken == taken


def test_a_quarter_is_left_to_those_who_cannot_do_without() -> None:
    quota = Quota("things", "the limit", lambda: 100)
    share = Share(quota)
    assert share.try_resize(75)
    assert not share.try_resize(76)
    share.resize(100)
    with pytest.raises(Overloaded, match="100 of 100 things are taken"):
        share.resize(101)
    share.resize(10)
    assert quota.n_left == 90
    share.close()
    share.close()
    assert quota.n_taken == 0


# ---------------------------------------------------------------------- loading that fails


def refuse(*_: object) -> None:
    raise RegionError("cannot map: no mappings are left (ENOMEM)")


@pytest.fixture
def unmappable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first extents are mapped, and then the system refuses."""
    real, calls = libc.map_copy_on_write, iter(range(3))

    def some(address: int, nbytes: int, fd: int, offset: int) -> None:
        if next(calls, None) is None:
            refuse()
        real(address, nbytes, fd, offset)

    monkeypatch.setattr(libc, "map_copy_on_write", some)


@pytest.mark.usefixtures("unmappable")
def test_an_image_that_cannot_be_mapped_is_copied() -> None:
    region = Region.reserve(4 * MIB, nbytes=4 * MIB)
    assert region.load(in_pieces(20)) == 20 * CHUNK
    assert is_whole(region, 20)
    assert (region.image, region.lost) == (None, False)
    region.close()


def test_pages_that_cannot_be_renewed_are_zeroed(monkeypatch: pytest.MonkeyPatch) -> None:
    region = filled(MIB)
    monkeypatch.setattr(libc, "renew", refuse)
    region.clear(GuestPtr(100), MIB - 200)
    with region.view(0, MIB) as view:
        assert bytes(view.memory) == b"x" * 100 + bytes(MIB - 200) + b"x" * 100
    with pytest.raises(RegionError, match="no mappings"):
        region.load(in_pieces(1))
    with region.view(0, 100) as view:
        assert (bytes(view.memory), region.lost) == (b"x" * 100, False)
    region.close()


@pytest.mark.parametrize("how", ["fork", "undo", "save"])
def test_an_actor_whose_memory_cannot_be_mapped_anew_keeps_it(
    null_runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    policy = "undo" if how == "undo" else "keep"
    actor = null_runtime.spawn(COUNTS, limits=Limits(on_failure=policy))
    assert actor.send("x").text == "A"
    with monkeypatch.context() as patch:
        patch.setattr(libc, "map_copy_on_write", refuse)
        if how == "fork":
            assert [it.send("x").text for it in actor.fork(2)] == ["B", "B"]
        elif how == "save":
            actor.snapshot(Store(tmp_path / "store"))
        assert actor.send("x").text == "B"
    assert actor.send("x").text == "C"
    actor.close()


def test_an_actor_whose_memory_is_lost_is_closed_and_its_neighbour_is_not(
    null_runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor, neighbour = null_runtime.spawn(COUNTS), null_runtime.spawn(COUNTS)
    assert actor.send("x").text == "A"
    with monkeypatch.context() as patch:
        patch.setattr(libc, "map_copy_on_write", refuse)
        patch.setattr(os, "preadv", lambda *_: (_ for _ in ()).throw(OSError(5, "I/O error")))
        with pytest.raises(RegionError, match="I/O error"):
            actor.fork()
    with pytest.raises(ActorClosed, match="its memory was lost"):
        actor.send("x")
    assert actor.state == "closed"
    assert neighbour.send("x").text == "A"
    actor.close()
    neighbour.close()


def test_a_store_is_saved_to_where_no_image_can_be_made(
    null_runtime: Runtime, tmp_path: Path
) -> None:
    """What only makes the next snapshot faster must not fail this one."""
    actor = null_runtime.spawn(COUNTS)
    assert actor.send("x").text == "A"
    with left(FILES, 8), left(MAPPINGS, 0):
        saved = actor.snapshot(Store(tmp_path / "store"), name="it")
    assert saved.n_chunks > 0
    assert actor.send("x").text == "B"
    back = null_runtime.restore(tmp_path / "store" / "it")
    assert back.send("x").text == "B"
    for it in (actor, back):
        it.close()


# ---------------------------------------------------------------------- files


@linux
def test_thousands_of_snapshots_and_forks_of_forks_keep_no_files(
    null_runtime: Runtime, tmp_path: Path
) -> None:
    actor = null_runtime.spawn(COUNTS)
    store = Store(tmp_path / "store")
    actor.snapshot(store, name="it")
    before, taken = n_files(), (FILES.n_taken, MAPPINGS.n_taken)
    for _ in range(200):
        actor.send("x")
        actor.snapshot(store, name="it")
        (child,) = actor.fork()
        actor.close()
        actor = child
    assert n_files() <= before + 4
    assert (FILES.n_taken, MAPPINGS.n_taken) <= (taken[0] + 4, taken[1] + 4)
    actor.close()


HOARDER = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
from isthmus.config import Limits
from isthmus.errors import Overloaded
from isthmus.runtime import Runtime
from tests.attacks.test_mappings import COUNTS

with Runtime(device="null", threads=1) as runtime:
    actors = []
    try:
        while len(actors) < 200:
            actors.append(runtime.spawn(COUNTS, limits=Limits(on_failure="undo")))
            actors[-1].send("x")  # frozen before its message: an image of its own
    except Overloaded as error:
        print("refused:", error)
    n = len(actors) - 1
    print("actors:", n, "answers:", {it.send("x").text for it in actors[:8]})
    print("free:", len([os.open("/", os.O_RDONLY) for _ in range(15)]))
"""


@linux
def test_images_leave_the_process_some_files() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HOARDER], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    refused, answers, free = done.stdout.splitlines()
    assert "56 of 75 open files are taken" in refused
    assert answers.endswith("{'B'}")
    assert free == "free: 15"
