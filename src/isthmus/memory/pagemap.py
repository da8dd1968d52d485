"""Which pages of a Region may hold other bytes than its image, or than zero where it has none.

Linux tells for each page of a process whether it is absent, a page of a file, or one of our own
(https://docs.kernel.org/admin-guide/mm/pagemap.html): pages that nobody wrote to need not be read.
Elsewhere, and where the answer is withheld, every page may have changed.
"""

from __future__ import annotations

import sys

import numpy as np
import numpy.typing as npt

from isthmus.memory.region import Region
from isthmus.units import OS_PAGE

_PRESENT, _SWAPPED, _OF_A_FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))
_ENTRY_NBYTES = 8
_BLOCK = 1 << 20
"""Pages asked about at once: a large memory's answers would take 2 MiB for each GiB."""


def touched_chunks(region: Region, chunk_nbytes: int) -> npt.NDArray[np.intp]:
    """Numbers of the chunks, ascending, in which any page may have changed.

    `chunk_nbytes` is a multiple of the OS page. Without an image a page counts that is not absent.
    """
    n_chunks = -(-region.nbytes // chunk_nbytes)
    touched = _touched_pages(region) if n_chunks and chunk_nbytes % OS_PAGE == 0 else None
    if touched is None:
        return np.arange(n_chunks)
    padded = np.zeros(n_chunks * (chunk_nbytes // OS_PAGE), dtype=bool)
    padded[: len(touched)] = touched
    cleared = np.frombuffer(bytes(region.cleared), dtype=bool)
    padded[: len(cleared)] |= cleared
    return np.flatnonzero(padded.reshape(n_chunks, -1).any(axis=1))


def used_chunks(region: Region, chunk_nbytes: int) -> npt.NDArray[np.intp]:
    """Numbers of the chunks, ascending, that may hold anything but zero."""
    is_used = np.zeros(-(-region.nbytes // chunk_nbytes), dtype=bool)
    is_used[touched_chunks(region, chunk_nbytes)] = True
    for offset, nbytes in region.image.used if region.image is not None else ():
        is_used[offset // chunk_nbytes : -(-(offset + nbytes) // chunk_nbytes)] = True
    return np.flatnonzero(is_used)


def _touched_pages(region: Region) -> npt.NDArray[np.bool_] | None:
    if sys.platform != "linux" or not region.remappable:
        return None
    n_pages = -(-region.nbytes // OS_PAGE)
    touched = np.zeros(n_pages, dtype=bool)
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            pagemap.seek(region.base // OS_PAGE * _ENTRY_NBYTES)
            for begin in range(0, n_pages, _BLOCK):
                part = touched[begin : begin + _BLOCK]
                data = pagemap.read(len(part) * _ENTRY_NBYTES)
                if len(data) != len(part) * _ENTRY_NBYTES:
                    return None
                entries = np.frombuffer(data, dtype=np.uint64)
                here = (entries & (_PRESENT | _SWAPPED)) != 0
                part[:] = here & ((entries & _OF_A_FILE) == 0)
    except OSError:
        return None
    return touched
