"""What a machine and its control groups have left, read from made-up files."""

from __future__ import annotations

from pathlib import Path

import pytest

from isthmus.machine import default_memory_nbytes
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
