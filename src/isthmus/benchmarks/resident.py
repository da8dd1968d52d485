"""Resident memory of this process beside that of guests."""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence
from pathlib import Path

from isthmus.machine import exact_resident_nbytes
from isthmus.memory import Region
from isthmus.units import KIB

_SMAPS = Path("/proc/self/smaps")
_MAPPING = re.compile(rb"^([0-9a-f]+)-[0-9a-f]+ .*|^Rss: +(\d+) kB$", re.MULTILINE)


def resident_outside(regions: Sequence[Region]) -> int:
    """Bytes of resident memory that lie in none of the Regions; all bytes where only those are
    known, which is everywhere but on Linux.

    A first call may itself make the heap grow: take the second one before what is measured.
    """
    if not _SMAPS.exists():
        return exact_resident_nbytes()
    text = _SMAPS.read_bytes()  # all of it first: memory changes while it is looked at
    ends = {region.base: region.base + region.reserved_nbytes for region in regions}
    bases = sorted(ends)
    nbytes, outside = 0, True
    for found in _MAPPING.finditer(text):
        if found[1] is None:
            nbytes += int(found[2]) * KIB if outside else 0
            continue
        start = int(found[1], 16)
        at = bisect.bisect_right(bases, start) - 1
        outside = at < 0 or start >= ends[bases[at]]
    return nbytes
