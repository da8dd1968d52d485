"""How much of a device's memory KV caches take at once."""

from __future__ import annotations

import pytest

from isthmus.device.buffer import Buffer
from isthmus.device.caches import CachePool, Stages
from isthmus.errors import DeviceFailed, Overloaded
from isthmus.native.loader import Library
from isthmus.units import GIB, MIB


@pytest.mark.parametrize(("memory", "n_slots"), [(141 * GIB, 8), (24 * GIB, 3), (8 * GIB, 1)])
def test_a_first_slab_has_eight_slots_of_a_large_memory(
    memory: int, n_slots: int, library: Library
) -> None:
    """One part in 32 at most: a lone agent takes no more."""
    asked: list[int] = []

    def allocate(nbytes: int) -> Buffer:
        asked.append(nbytes)
        raise DeviceFailed("full")

    pool = CachePool("it", allocate, memory, 64 * GIB, Stages(library, 0))
    with pytest.raises(Overloaded):
        pool.take(256 * MIB)
    assert asked[0] == n_slots * 256 * MIB
    pool.close()
