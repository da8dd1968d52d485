"""What systems tell of a machine and of this process in different ways, each in one place.

==========================  ==================================================================
memory that is left         what is read
==========================  ==================================================================
/proc/meminfo               MemAvailable
/proc/self/cgroup, v2       memory.max less memory.current, for each group up to the root
/proc/self/cgroup, v1       memory.limit_in_bytes less memory.usage_in_bytes, likewise
macOS                       pages that are free or inactive (`host_statistics64`, HOST_VM_INFO64)
==========================  ==================================================================

The least of them counts. Pages of files that a group may drop at any time are counted as left. A
system that tells nothing has three quarters of its physical memory.

macOS has no /proc: it is asked by calls of its own (`mach/vm_statistics.h`, `sys/proc_info.h`).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

from isthmus.units import KIB, MIB

_ROOT = Path("/")
_MIN_RESERVE_NBYTES = 256 * MIB
_RESERVE_SHARE = 8
"""One part in so many of what is left is for the interpreter, graphs, and what else grows."""
_UNLIMITED = 1 << 60
"""Bytes from which on a control group's limit of version 1 means none."""
_HOST_VM_INFO64, _PROC_PIDTASKINFO = 4, 4
_libc = ctypes.CDLL(None)


class _VmStatistics(ctypes.Structure):
    """`struct vm_statistics64`, 152 bytes, of which the first four counters are used."""

    _fields_ = [
        *((f"{name}_count", ctypes.c_uint32) for name in ("free", "active", "inactive", "wire")),
        ("_rest", ctypes.c_uint8 * 136),
    ]


class _TaskInfo(ctypes.Structure):
    """`struct proc_taskinfo`, 96 bytes."""

    _fields_ = [
        ("virtual_size", ctypes.c_uint64),
        ("resident_size", ctypes.c_uint64),
        ("_times", ctypes.c_uint64 * 4),
        ("_counts", ctypes.c_int32 * 9),
        ("threadnum", ctypes.c_int32),
        ("_rest", ctypes.c_int32 * 2),
    ]


def default_memory_nbytes(root: Path = _ROOT) -> int:
    """Bytes that actors may have together, if nobody says how many; a reserve is left out.

    `root` is the folder in which `proc` and `sys` are.
    """
    left = min([*_available(root), *_control_groups(root)], default=_physical_nbytes() * 3 // 4)
    reserve = max(_MIN_RESERVE_NBYTES, left // _RESERVE_SHARE)
    return max(left - reserve, left // 4)


def available_nbytes(root: Path = _ROOT) -> int | None:
    """Bytes that the system could give to processes; None if it does not tell."""
    return next(_available(root), None)


def resident_nbytes(root: Path = _ROOT) -> int | None:
    """Bytes of this process that are in memory, those of mapped files too, by a counter that may
    lag behind; None if the system does not tell."""
    words = next(_lines(root / "proc/self/statm"), "").split()[1:2]
    if words and words[0].isdecimal():
        return int(words[0]) * os.sysconf("SC_PAGE_SIZE")
    task = _task_info()
    return task.resident_size if task else None


def exact_resident_nbytes(kind: str = "Rss", root: Path = _ROOT) -> int:
    """As `resident_nbytes`, counted anew, which takes some milliseconds; 0 if nobody tells.

    On Linux `kind` may be `Pss`, which counts a page that is mapped n times as n times an nth.
    """
    for line in _lines(root / "proc/self/smaps_rollup"):
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) * KIB
    return resident_nbytes(root) or 0


def n_threads(root: Path = _ROOT) -> int:
    """Threads of this process; those of Python alone if the system does not tell."""
    text = "\n".join(_lines(root / "proc/self/status"))
    if found := re.search(r"^Threads:\s+(\d+)$", text, re.MULTILINE):
        return int(found[1])
    task = _task_info()
    return task.threadnum if task else threading.active_count()


def sync_file(fd: int) -> None:
    """Has all that was written to a file, or to a folder, survive a loss of power.

    On macOS fsync(2) leaves it in the drive's own cache; `F_FULLFSYNC` of fcntl(2) does not. File
    systems that have no such request are synced as well as they can be.
    """
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, full)
            return
    os.fsync(fd)


def _available(root: Path) -> Iterator[int]:
    found = list(_meminfo(root))
    yield from found
    statistics, size = _VmStatistics(), ctypes.c_uint32(ctypes.sizeof(_VmStatistics) // 4)
    if found or not hasattr(_libc, "host_statistics64"):
        return
    arguments = _HOST_VM_INFO64, ctypes.byref(statistics), ctypes.byref(size)
    if _libc.host_statistics64(_libc.mach_host_self(), *arguments) == 0:
        n_pages = statistics.free_count + statistics.inactive_count
        yield n_pages * os.sysconf("SC_PAGE_SIZE")


def _task_info() -> _TaskInfo | None:
    """What macOS says of this process."""
    info = _TaskInfo()
    if not hasattr(_libc, "proc_pidinfo"):
        return None
    size = ctypes.sizeof(info)
    arguments = os.getpid(), _PROC_PIDTASKINFO, ctypes.c_uint64(0), ctypes.byref(info), size
    return info if _libc.proc_pidinfo(*arguments) == size else None


def _meminfo(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        name, _, value = line.partition(":")
        if name == "MemAvailable" and (words := value.split()) and words[0].isdecimal():
            yield int(words[0]) * 1024


def _control_groups(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            base, files = root / "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        parts = [part for part in path.strip().split("/") if part not in ("", "..")]
        for n in range(len(parts) + 1):
            yield from _left_in(base.joinpath(*parts[:n]), *files)


def _left_in(group: Path, limit_file: str, usage_file: str) -> Iterator[int]:
    limit, usage = _number(group / limit_file), _number(group / usage_file)
    if limit is None or usage is None or limit >= _UNLIMITED:
        return
    droppable = sum(
        int(words[1])
        for line in _lines(group / "memory.stat")
        if (words := line.split())[:1] in (["inactive_file"], ["active_file"])
        and len(words) > 1
        and words[1].isdecimal()
    )
    yield max(min(limit, limit - usage + droppable), 0)


def _number(file: Path) -> int | None:
    """What a file of a control group says; None if it says `max`, or is not there."""
    text = next(_lines(file), "").strip()
    return int(text) if text.isdecimal() else None


def _lines(file: Path) -> Iterator[str]:
    try:
        yield from file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return


def _physical_nbytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
