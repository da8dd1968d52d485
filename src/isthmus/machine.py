"""How much memory this process may still take: what its control groups and the machine have left.

==========================  ==================================================================
what is read                what is left
==========================  ==================================================================
/proc/meminfo               MemAvailable
/proc/self/cgroup, v2       memory.max less memory.current, for each group up to the root
/proc/self/cgroup, v1       memory.limit_in_bytes less memory.usage_in_bytes, likewise
==========================  ==================================================================

The least of them counts. Pages of files that a group may drop at any time are counted as left. A
system that tells nothing (macOS) has three quarters of its physical memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from isthmus.units import MIB

_LEAST_RESERVE_NBYTES = 256 * MIB
_RESERVE_SHARE = 8
"""One part in so many of what is left is for the interpreter, graphs, and what else grows."""
_UNLIMITED = 1 << 60
"""Bytes from which on a control group's limit of version 1 means none."""


def default_memory_nbytes(root: Path = Path("/")) -> int:
    """Bytes that actors may have together, if nobody says how many; a reserve is left out.

    `root` is the folder in which `proc` and `sys` are.
    """
    left = min([*_meminfo(root), *_control_groups(root)], default=_physical_nbytes() * 3 // 4)
    reserve = max(_LEAST_RESERVE_NBYTES, left // _RESERVE_SHARE)
    return max(left - reserve, left // 4)


def resident_nbytes(root: Path = Path("/")) -> int | None:
    """Bytes of this process that are in memory, those of mapped files too; None if the system does
    not tell (macOS)."""
    words = next(_lines(root / "proc/self/statm"), "").split()[1:2]
    return int(words[0]) * os.sysconf("SC_PAGE_SIZE") if words and words[0].isdecimal() else None


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
