"""macOS as a host, stood in for: each thing that it lacks or has otherwise, taken from Linux.

Numbers of memory, and how a file is synced, are in test_machine.py. docs/devices.md has a table.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import sys
from pathlib import Path

import pytest

from isthmus.config import DeviceSettings
from isthmus.device.barriers import ProcessorTimes
from isthmus.memory import FileMapping, Image, Region, guard, quota, touched_chunks
from isthmus.memory.lease import State, try_take
from isthmus.native import libc
from isthmus.snapshot.reader import _data_ranges
from isthmus.trial import _limit
from isthmus.units import MIB, OS_PAGE


@pytest.fixture
def darwin(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(sys, "platform", "darwin")
    return monkeypatch


def test_pages_are_given_back_by_a_fresh_mapping(darwin: pytest.MonkeyPatch) -> None:
    """madvise(2) of macOS promises no zeroes; a mapping in the place of another does."""
    asked: list[str] = []
    renew = libc.renew
    darwin.setattr(libc, "renew", lambda *it: asked.append("renewed") or renew(*it))
    with Region.reserve(MIB, nbytes=MIB) as region:
        ctypes.memset(region.base, 7, MIB)
        libc.empty(region.base, OS_PAGE)
        assert ctypes.string_at(region.base, OS_PAGE + 1) == bytes(OS_PAGE) + b"\x07"
    assert asked == ["renewed"]


def test_every_page_may_have_changed(darwin: pytest.MonkeyPatch) -> None:
    with Region.reserve(MIB, nbytes=MIB) as region:
        assert touched_chunks(region, MIB // 4).tolist() == [0, 1, 2, 3]


def test_images_lie_in_files_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    with Region.reserve(MIB, nbytes=MIB) as region, Region.reserve(MIB, nbytes=MIB) as other:
        ctypes.memset(region.base, 5, 10)
        image = Image.freeze(region.base, MIB, [(0, OS_PAGE)])
        assert os.fstat(image.extents[0].file.fd).st_nlink == 0
        assert other.load(image) == 0
        assert ctypes.string_at(other.base, 11) == b"\x05" * 10 + b"\0"


def test_files_are_watched_where_there_are_no_leases(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("F_SETLEASE", "F_GETLEASE", "F_SETSIG"):
        monkeypatch.delattr(fcntl, name, raising=False)
    file = tmp_path / "weights"
    file.write_bytes(b"x" * 100)
    with file.open("rb") as opened:
        assert try_take(opened.fileno()) == errno.ENOSYS
    with FileMapping(file) as mapping:
        assert mapping._file.state is State.WATCHED
        assert mapping.intact
        file.write_bytes(b"y")
        assert not mapping.intact


def test_no_list_of_mappings_and_no_limit_of_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(guard, "_MAPS", tmp_path / "maps")
    monkeypatch.setattr(quota, "_MAX_MAP_COUNT", tmp_path / "max_map_count")
    assert list(guard._shared_mappings()) == []
    assert quota._find_most_mappings() == quota._UNLIMITED


def test_processors_without_affinity_or_times(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert DeviceSettings().n_threads == os.cpu_count()
    assert ProcessorTimes(tmp_path / "stat").idle() == 1.0


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_whose_holes_nobody_knows_is_data(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def lseek(*_given: int) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "lseek", lseek)
    assert list(_data_ranges(3, 100, 900)) == [(100, 900)]


def test_a_child_without_prctl_ends_with_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks who its parent is once it has begun; later its processor time ends it."""
    ended: list[int] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    monkeypatch.setattr(os, "_exit", lambda status: ended.append(status) or sys.exit(status))
    with pytest.raises(SystemExit):
        _limit(limits=None, parent=os.getppid() + 1)  # type: ignore[arg-type]
    assert ended == [1]
