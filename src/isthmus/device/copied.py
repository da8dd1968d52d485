"""The way that is left where a device can address no memory of ours: it computes on a copy.

The guest's memory stays the truth: what a session needs is sent when it opens, and what a pass
wrote is fetched after it. Every byte is counted.
"""

from __future__ import annotations

from collections.abc import Callable

from isthmus.counters import Counters
from isthmus.device.buffer import Binding, Buffer, WholeTensor
from isthmus.memory import Region
from isthmus.units import HostAddr

Allocate = Callable[[int], Buffer]
"""nbytes -> so much of the device's own memory."""


class CopiedBinding(Binding):
    """A Region, and the device's copies of those parts in which tensors were placed."""

    copies = True
    copies_from_others = False

    def __init__(
        self, allocate: Allocate, region: Region, counters: Counters, largest: int
    ) -> None:
        self._allocate = allocate
        self._counters = counters
        self._wholes: dict[int, WholeTensor] = {}
        super().__init__(self._new_copy, region, largest=largest)

    def send(self, host: HostAddr, nbytes: int) -> None:
        begin, segment = self._segment(host, nbytes)
        self._wholes[segment.handle].send(host, host - begin, nbytes)
        self._counters.bytes_copied += nbytes

    def fetch(self, host: HostAddr, nbytes: int) -> None:
        begin, segment = self._segment(host, nbytes)
        self._wholes[segment.handle].fetch(host, host - begin, nbytes)
        self._counters.bytes_copied += nbytes

    def close(self) -> None:
        for whole in self._wholes.values():
            whole.close()
        self._wholes.clear()
        super().close()

    def _new_copy(self, _base: HostAddr, nbytes: int) -> Buffer:
        """Cleared, since attention reads rows that nothing was written to, and weighs them 0."""
        segment = self._allocate(nbytes)
        segment.clear()
        self._wholes[segment.handle] = WholeTensor(segment)
        return segment
