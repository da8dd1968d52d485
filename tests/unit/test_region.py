from __future__ import annotations

import ctypes
import gc
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from isthmus.errors import RegionBusy, RegionError
from isthmus.memory import FileMapping, Region
from isthmus.units import MIB, OS_PAGE, GuestPtr


def test_starts_empty_and_grows_without_moving() -> None:
    region = Region.reserve(4 * MIB)
    base = region.base
    assert base % OS_PAGE == 0
    assert region.nbytes == 0
    region.grow(OS_PAGE)
    ctypes.memmove(base, b"kept", 4)
    region.grow(2 * MIB)
    assert (region.base, region.nbytes) == (base, 2 * MIB)
    assert ctypes.string_at(base, 4) == b"kept"
    region.close()


def test_fresh_pages_are_zero() -> None:
    region = Region.reserve(4 * MIB)
    region.grow(MIB)
    assert ctypes.string_at(region.base, MIB) == bytes(MIB)
    region.close()


def test_grow_never_shrinks() -> None:
    region = Region.reserve(MIB, nbytes=2 * OS_PAGE)
    region.grow(OS_PAGE)
    assert region.nbytes == 2 * OS_PAGE
    region.close()


def test_growth_within_an_os_page_keeps_what_is_there() -> None:
    region = Region.reserve(MIB)
    region.grow(100)
    ctypes.memmove(region.base, b"x" * 100, 100)
    region.grow(OS_PAGE + 1)
    assert ctypes.string_at(region.base, 101) == b"x" * 100 + b"\0"
    region.close()


def test_growth_past_the_reservation_changes_nothing() -> None:
    region = Region.reserve(MIB)
    with pytest.raises(RegionError, match="1048576 are reserved"):
        region.grow(MIB + 1)
    assert region.nbytes == 0
    region.close()


def test_address_is_bounded_by_the_bytes_in_use() -> None:
    region = Region.reserve(MIB, nbytes=OS_PAGE)
    assert region.address(GuestPtr(OS_PAGE), 0) == region.base + OS_PAGE
    for ptr, nbytes in [(0, OS_PAGE + 1), (OS_PAGE, 1), (-1, 1), (0, -1)]:
        with pytest.raises(RegionError):
            region.address(GuestPtr(ptr), nbytes)
    region.close()


def test_a_view_sees_the_same_bytes() -> None:
    region = Region.reserve(MIB, nbytes=OS_PAGE)
    with region.view(8, 4) as view:
        view.memory[:] = b"view"
        assert ctypes.string_at(region.base + 8, 4) == b"view"
    region.close()


def test_close_is_refused_while_held_and_says_by_whom() -> None:
    region = Region.reserve(MIB, nbytes=OS_PAGE)
    hold = region.hold("the device cpu")
    with pytest.raises(RegionBusy, match="the device cpu"):
        region.close()
    assert not region.closed
    ctypes.memmove(region.base, b"alive", 5)
    hold.release()
    hold.release()
    region.close()
    assert region.closed


def test_close_is_refused_while_viewed() -> None:
    region = Region.reserve(MIB, nbytes=OS_PAGE)
    with region.view(0, 16), pytest.raises(RegionBusy, match="16 bytes at offset 0"):
        region.close()
    region.close()
    assert region.closed


def test_closing_twice_is_once() -> None:
    freed: list[int] = []
    region = Region.reserve(MIB)
    counted = Region(region.base, MIB, 0, lambda: freed.append(1))
    counted.close()
    counted.close()
    assert freed == [1]
    region.close()


def test_use_after_close_is_refused() -> None:
    region = Region.reserve(MIB, nbytes=OS_PAGE)
    region.close()
    for use in (
        lambda: region.grow(2 * OS_PAGE),
        lambda: region.address(GuestPtr(0), 1),
        lambda: region.view(0, 1),
        lambda: region.hold("late"),
    ):
        with pytest.raises(RegionError, match="closed"):
            use()


def test_a_dropped_region_is_freed() -> None:
    freed: list[int] = []
    region = Region.reserve(MIB)
    Region(region.base, MIB, 0, lambda: freed.append(1))
    gc.collect()
    assert freed == [1]
    region.close()


def test_a_range_of_zero_bytes_is_refused() -> None:
    with pytest.raises(RegionError, match="0 bytes"):
        Region.reserve(0)


def test_more_than_the_address_space_is_refused() -> None:
    with pytest.raises(RegionError, match="cannot reserve"):
        Region.reserve(1 << 62)


@pytest.mark.parametrize("offset", ["region.nbytes", "region.reserved_nbytes"])
def test_touching_beyond_the_bytes_in_use_kills(offset: str) -> None:
    code = f"""
import ctypes
from isthmus.memory import Region
region = Region.reserve(1 << 20, 1 << 20)
region.grow(1 << 16)
ctypes.string_at(region.base + region.nbytes - 1, 1)
print("inside", flush=True)
ctypes.string_at(region.base + {offset}, 1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.stdout == b"inside\n"
    assert done.returncode in (-signal.SIGSEGV, -signal.SIGBUS)


def test_a_file_is_mapped_whole(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    data = bytes(range(256)) * 20
    path.write_bytes(data)
    with FileMapping(path) as mapping:
        assert (mapping.nbytes, mapping.mapped_nbytes % OS_PAGE) == (len(data), 0)
        assert ctypes.string_at(mapping.base, mapping.nbytes) == data
    assert mapping.closed
    mapping.close()


def test_an_empty_or_missing_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(RegionError, match="cannot map"):
        FileMapping(tmp_path / "empty")
    with pytest.raises(FileNotFoundError):
        FileMapping(tmp_path / "missing")


def test_writing_to_a_mapped_file_kills(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"weights")
    code = f"""
import ctypes
from pathlib import Path
from isthmus.memory import FileMapping
mapping = FileMapping(Path({str(tmp_path / "weights")!r}))
print(ctypes.string_at(mapping.base, 7).decode(), flush=True)
ctypes.memmove(mapping.base, b"x", 1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.stdout == b"weights\n"
    assert done.returncode in (-signal.SIGSEGV, -signal.SIGBUS)
    assert (tmp_path / "weights").read_bytes() == b"weights"
