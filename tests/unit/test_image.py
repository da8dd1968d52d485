from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest

from isthmus.errors import RegionError
from isthmus.memory import Extent, Image, Region, SharedFile, touched_chunks, used_chunks
from isthmus.memory.image import MAX_EXTENTS
from isthmus.snapshot import CHUNK_NBYTES
from isthmus.snapshot.chunk import hash_chunks
from isthmus.units import KIB, MIB, OS_PAGE, GuestPtr, HostAddr

CHUNK = 16 * KIB
linux = pytest.mark.skipif(not os.path.exists("/proc/self/pagemap"), reason="needs Linux")


@pytest.fixture
def region() -> Iterator[Region]:
    region = Region.reserve(4 * MIB, nbytes=MIB)
    yield region
    region.close()


def write(region: Region, offset: int, data: bytes) -> None:
    with region.view(offset, len(data)) as view:
        view.memory[:] = data


def read(region: Region, offset: int, nbytes: int) -> bytes:
    with region.view(offset, nbytes) as view:
        return bytes(view.memory)


def test_an_image_is_what_the_region_was(region: Region) -> None:
    write(region, 5 * CHUNK + 7, b"before")
    image = Image.freeze(region.base, region.nbytes, [(5 * CHUNK, CHUNK)])
    write(region, 5 * CHUNK + 7, b"after!")
    child = Region.reserve(4 * MIB, nbytes=MIB)
    assert child.load(image) == 0
    assert read(child, 5 * CHUNK + 7, 6) == b"before"
    write(child, 5 * CHUNK + 7, b"child!")
    other = Region.reserve(4 * MIB, nbytes=MIB)
    other.load(image)
    assert read(other, 5 * CHUNK + 7, 6) == b"before"
    assert read(region, 5 * CHUNK + 7, 6) == b"after!"
    for it in (child, other):
        it.close()


def test_loading_forgets_what_was_there(region: Region) -> None:
    write(region, 0, b"x" * region.nbytes)
    image = Image(CHUNK, [], [])
    region.load(image)
    assert read(region, 0, region.nbytes) == bytes(region.nbytes)


def test_a_region_smaller_than_the_image_refuses(region: Region) -> None:
    with pytest.raises(RegionError):
        region.load(Image(2 * MIB, [], []))


def test_clearing_pages_of_an_image_gives_zero(region: Region) -> None:
    write(region, 0, b"x" * region.nbytes)
    region.load(Image.freeze(region.base, region.nbytes, [(0, region.nbytes)]))
    region.clear(GuestPtr(100), 3 * CHUNK)
    assert read(region, 0, 100) == b"x" * 100
    assert read(region, 100, 3 * CHUNK) == bytes(3 * CHUNK)
    assert read(region, 100 + 3 * CHUNK, 100) == b"x" * 100


def test_memory_that_cannot_be_remapped_is_copied() -> None:
    source = Region.reserve(MIB, nbytes=MIB)
    write(source, CHUNK, b"abc")
    image = Image.freeze(source.base, MIB, [(CHUNK, CHUNK)])
    target = Region.reserve(MIB, nbytes=MIB)
    target.remappable = False
    write(target, 0, b"old")
    assert target.load(image) == MIB
    assert read(target, 0, 3) == bytes(3)
    assert read(target, CHUNK, 3) == b"abc"
    assert target.image is None
    for it in (source, target):
        it.close()


@linux
def test_the_system_tells_which_chunks_were_touched(region: Region) -> None:
    assert touched_chunks(region, CHUNK).tolist() == []
    for number in (0, 3, 60):
        write(region, number * CHUNK + 1, b"x")
    assert touched_chunks(region, CHUNK).tolist() == [0, 3, 60]
    image = Image.freeze(region.base, region.nbytes, [(n * CHUNK, CHUNK) for n in (0, 3, 60)])
    region.load(image)
    assert touched_chunks(region, CHUNK).tolist() == []
    assert read(region, 3 * CHUNK, CHUNK).count(b"x") == 1
    assert touched_chunks(region, CHUNK).tolist() == []  # reading is no change
    write(region, 4 * CHUNK, b"y")
    write(region, 60 * CHUNK, b"y")
    assert touched_chunks(region, CHUNK).tolist() == [4, 60]
    assert used_chunks(region, CHUNK).tolist() == [0, 3, 4, 60]
    region.grow(2 * MIB)
    write(region, MIB, b"z")
    assert touched_chunks(region, CHUNK).tolist() == [4, 60, 64]


@linux
def test_after_clearing_the_rest_is_still_the_images(region: Region) -> None:
    write(region, 0, b"x" * region.nbytes)
    region.load(Image.freeze(region.base, region.nbytes, [(0, region.nbytes)]))
    region.clear(GuestPtr(2 * CHUNK + 5), CHUNK)
    assert touched_chunks(region, CHUNK).tolist() == [2, 3]
    assert used_chunks(region, CHUNK).tolist() == list(range(region.nbytes // CHUNK))
    assert read(region, 2 * CHUNK, 6) == b"xxxxx\0"
    region.load(Image.freeze(region.base, region.nbytes, [(0, region.nbytes)]))
    assert touched_chunks(region, CHUNK).tolist() == []


def test_without_the_systems_word_everything_may_have_changed() -> None:
    region = Region.reserve(MIB, nbytes=3 * CHUNK)
    region.remappable = False
    assert touched_chunks(region, CHUNK).tolist() == [0, 1, 2]
    region.close()


def test_an_image_in_many_pieces_is_brought_together(region: Region) -> None:
    fd = os.memfd_create("test") if hasattr(os, "memfd_create") else os.open(".", os.O_TMPFILE)
    n = MAX_EXTENTS + 10
    data = b"".join(bytes([i % 250 + 1]) * OS_PAGE for i in range(n))
    os.pwrite(fd, data, 0)
    file = SharedFile(fd)
    pieces = [Extent(2 * i * OS_PAGE, OS_PAGE, file, (n - 1 - i) * OS_PAGE) for i in range(n)]
    image = Image(2 * n * OS_PAGE, pieces, [])
    assert len(image.extents) == 1
    whole = Region.reserve(2 * n * OS_PAGE, nbytes=2 * n * OS_PAGE)
    assert whole.load(image) == 0
    for i in (0, 1, n - 1):
        expected = bytes([(n - 1 - i) % 250 + 1]) * OS_PAGE + bytes(OS_PAGE)
        assert read(whole, 2 * i * OS_PAGE, 2 * OS_PAGE) == expected
    whole.close()


def test_neighbouring_extents_are_one_mapping() -> None:
    file = SharedFile(os.memfd_create("test"))
    os.ftruncate(file.fd, 4 * OS_PAGE)
    pieces = [Extent(i * OS_PAGE, OS_PAGE, file, i * OS_PAGE) for i in range(4)]
    assert Image(4 * OS_PAGE, pieces, []).extents == [Extent(0, 4 * OS_PAGE, file, 0)]


def test_a_file_that_became_shorter_is_noticed_when_copied() -> None:
    file = SharedFile(os.memfd_create("test"))
    image = Image(2 * OS_PAGE, [Extent(0, 2 * OS_PAGE, file, 0)], [])
    region = Region.reserve(MIB, nbytes=MIB)
    region.remappable = False
    with pytest.raises(RegionError, match="shorter"):
        region.load(image)
    region.close()


def test_an_image_without_some_ranges() -> None:
    """What is apart is left zero, and can be read by itself."""
    data = np.random.default_rng(0).bytes(8 * OS_PAGE)
    pieces = [(0, data[: 3 * OS_PAGE]), (5 * OS_PAGE, data[5 * OS_PAGE :])]
    image = Image.gather(8 * OS_PAGE, pieces, [(0, 8 * OS_PAGE)])
    expected = data[: 3 * OS_PAGE] + bytes(2 * OS_PAGE) + data[5 * OS_PAGE :]
    apart = [(OS_PAGE + 100, 200), (2 * OS_PAGE, 4 * OS_PAGE)]
    left = bytearray(expected)
    for offset, nbytes in apart:
        left[offset : offset + nbytes] = bytes(nbytes)
    with Region.reserve(8 * OS_PAGE, nbytes=8 * OS_PAGE, remappable=False) as region:
        write(region, 0, b"before")
        region.load(image, apart)
        assert read(region, 0, 8 * OS_PAGE) == left
    for offset, nbytes in (*apart, (0, 8 * OS_PAGE), (3 * OS_PAGE, OS_PAGE)):
        target = bytearray(b"\xff" * nbytes)
        image.read(offset, memoryview(target))
        assert target == expected[offset : offset + nbytes]


def test_pages_are_given_back_and_read_as_zero() -> None:
    with Region.reserve(8 * OS_PAGE, nbytes=8 * OS_PAGE, remappable=False) as region:
        write(region, 0, b"x" * 8 * OS_PAGE)
        region.empty(GuestPtr(100), 200)
        region.empty(GuestPtr(OS_PAGE + 7), 4 * OS_PAGE)
        kept = read(region, 0, 8 * OS_PAGE)
    assert kept.count(0) == 200 + 4 * OS_PAGE
    assert not any(kept[OS_PAGE + 7 : 5 * OS_PAGE + 7])


def test_hashes_by_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = np.zeros((40, CHUNK_NBYTES), np.uint8)
    memory[::3] = np.arange(14)[:, None] + 1
    base = HostAddr(memory.ctypes.data)
    alone = hash_chunks(base, memory.nbytes, range(40), {1: b"known", 5: b"unlike"})
    monkeypatch.setattr("isthmus.snapshot.chunk._PART", 7)
    assert hash_chunks(base, memory.nbytes, range(40), {1: b"known", 5: b"unlike"}) == alone
    assert list(alone) == list(range(0, 40, 3))
