"""What a machine and its control groups have left, read from made-up files."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from pathlib import Path

import pytest

from isthmus import machine as machine_module
from isthmus.machine import (
    available_nbytes,
    default_memory_nbytes,
    exact_resident_nbytes,
    n_threads,
    resident_nbytes,
    sync_file,
)
from isthmus.units import GIB, MIB


def write(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def machine(root: Path, available_nbytes: int, groups: str = "") -> Path:
    write(root, "proc/meminfo", f"MemTotal: 9 kB\nMemAvailable:   {available_nbytes // 1024} kB\n")
    write(root, "proc/self/cgroup", groups)
    return root


def less_reserve(nbytes: int) -> int:
    return nbytes - max(256 * MIB, nbytes // 8)


def test_a_machine_without_groups(tmp_path: Path) -> None:
    assert default_memory_nbytes(machine(tmp_path, 16 * GIB)) == less_reserve(16 * GIB)


@pytest.mark.parametrize("where", ["", "a", "a/b"])
def test_the_tightest_group_of_version_2_counts(tmp_path: Path, where: str) -> None:
    """Also one that is not the process's own but one above it."""
    root = machine(tmp_path, 16 * GIB, "0::/a/b\n")
    for name in ("", "a", "a/b"):
        group = f"sys/fs/cgroup/{name}"
        write(root, f"{group}/memory.max", str(2 * GIB) if name == where else "max\n")
        write(root, f"{group}/memory.current", str(GIB))
        write(root, f"{group}/memory.stat", f"anon 5\ninactive_file {GIB // 2}\nfile 7\n")
    assert default_memory_nbytes(root) == less_reserve(2 * GIB - GIB // 2)


def test_groups_of_version_1(tmp_path: Path) -> None:
    root = machine(tmp_path, 16 * GIB, "12:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/x\n")
    base = "sys/fs/cgroup/memory"
    write(root, f"{base}/memory.limit_in_bytes", str(0x7FFF_FFFF_FFFF_F000))
    write(root, f"{base}/memory.usage_in_bytes", str(3 * GIB))
    write(root, f"{base}/docker/abc/memory.limit_in_bytes", str(4 * GIB))
    write(root, f"{base}/docker/abc/memory.usage_in_bytes", str(GIB))
    assert default_memory_nbytes(root) == less_reserve(3 * GIB)


@pytest.mark.parametrize("text", ["", "nonsense", "-5", "9" * 40])
def test_files_that_say_nothing_of_use(tmp_path: Path, text: str) -> None:
    root = machine(tmp_path, 16 * GIB, "0::/../../a\nwhat\n:::\n")
    write(root, "sys/fs/cgroup/a/memory.max", text)
    write(root, "sys/fs/cgroup/a/memory.current", text)
    assert default_memory_nbytes(root) == less_reserve(16 * GIB)


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    assert default_memory_nbytes(tmp_path) > 0


def test_a_machine_that_has_nothing_left_gives_some_of_it(tmp_path: Path) -> None:
    assert default_memory_nbytes(machine(tmp_path, 100 * MIB)) == 25 * MIB


# ------------------------------------------------------------------ macOS, stood in for


class FakeLibSystem:
    """The calls by which macOS tells what Linux has in /proc."""

    def __init__(self) -> None:
        self.refuses = False

    def mach_host_self(self) -> int:
        return 7

    def host_statistics64(self, host: int, flavor: int, info: object, count: object) -> int:
        """Counters of pages: free, active, inactive, wired, …"""
        assert (host, flavor) == (7, 4)
        pages = ctypes.cast(info, ctypes.POINTER(ctypes.c_uint32))  # type: ignore[arg-type]
        pages[0], pages[1], pages[2], pages[3] = 1000, 50_000, 3000, 60_000
        return 5 if self.refuses else 0

    def proc_pidinfo(self, pid: int, flavor: int, _arg: object, info: object, nbytes: int) -> int:
        assert (pid, flavor, nbytes) == (os.getpid(), 4, 96)
        ctypes.cast(info, ctypes.POINTER(ctypes.c_uint64))[1] = 123 * MIB  # type: ignore[arg-type]
        ctypes.cast(info, ctypes.POINTER(ctypes.c_int32))[21] = 9  # type: ignore[arg-type]
        return 0 if self.refuses else nbytes


@pytest.fixture
def macos(monkeypatch: pytest.MonkeyPatch) -> FakeLibSystem:
    fake = FakeLibSystem()
    monkeypatch.setattr(machine_module, "_libc", fake)
    return fake


def test_what_macos_says_of_itself(macos: FakeLibSystem, tmp_path: Path) -> None:
    assert available_nbytes(tmp_path) == 4000 * os.sysconf("SC_PAGE_SIZE")
    left = available_nbytes(tmp_path) or 0
    assert default_memory_nbytes(tmp_path) == max(left - 256 * MIB, left // 4)
    assert resident_nbytes(tmp_path) == exact_resident_nbytes(root=tmp_path) == 123 * MIB
    assert n_threads(tmp_path) == 9


def test_what_macos_does_not_say(macos: FakeLibSystem, tmp_path: Path) -> None:
    macos.refuses = True
    assert available_nbytes(tmp_path) is resident_nbytes(tmp_path) is None
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert default_memory_nbytes(tmp_path) == less_reserve(physical * 3 // 4)
    assert exact_resident_nbytes(root=tmp_path) == 0
    assert n_threads(tmp_path) >= 1


def test_a_file_is_synced_into_the_drive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By F_FULLFSYNC on macOS, and by fsync where a file system has no such request."""
    asked: list[object] = []
    answer: list[OSError] = []

    def full(_fd: int, command: int) -> int:
        asked.append(command)
        if answer:
            raise answer[0]
        return 0

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", full)
    monkeypatch.setattr(os, "fsync", lambda _fd: asked.append("fsync"))
    sync_file(3)
    answer.append(OSError(errno.ENOTSUP, "no such request"))
    sync_file(3)
    assert asked == [51, 51, "fsync"]
