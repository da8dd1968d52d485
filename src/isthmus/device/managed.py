"""Managed memory of CUDA: one address for both sides, and each page where it is told to live.

A guest's heap, tokens and logits stay near the processor and are mapped to the device; KV caches
live in the device's memory. What a guest grows into is zeroed by the device, and stays there until
the processor touches it: a KV cache is then where it belongs without having moved.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from isthmus.device.buffer import Binding, Buffer, Rows
from isthmus.memory import Image, LiveImage, Region
from isthmus.native.cuda import CPU, Advice, Cuda
from isthmus.units import MIB, OS_PAGE, HostAddr, align_up

_LARGE_NBYTES = 1 * MIB
"""From here on the device zeroes faster than the processor, which faults on each page."""


class ManagedRegion(Region):
    """A Region whose pages the driver supplies. They cannot be protected, nor mapped over."""

    def __init__(self, cuda: Cuda, base: HostAddr, nbytes: int, free: Callable[[], object]) -> None:
        super().__init__(base, nbytes, 0, free, commit=self._begin)
        self._cuda = cuda

    def _place(self, image: Image | LiveImage, apart: Sequence[tuple[int, int]]) -> int:
        """What comes from files goes to the device, from where the processor has it come back."""
        if isinstance(image, LiveImage):
            return super()._place(image, apart)
        for extent in image.extents:
            target = HostAddr(self.base + extent.offset)
            with extent.mapped() as source:
                self._cuda.copy_to_device(target, source, extent.nbytes)
        return sum(extent.nbytes for extent in image.extents)

    def _begin(self, address: int, nbytes: int) -> None:
        """Zeroes what a guest grows into, to live near the processor and mapped to the device."""
        base = HostAddr(address)
        self._zero(base, nbytes)
        self._cuda.advise(base, nbytes, Advice.SET_PREFERRED_LOCATION, CPU)
        self._cuda.advise(base, nbytes, Advice.SET_ACCESSED_BY, self._cuda.device)

    def _zero(self, address: HostAddr, nbytes: int) -> None:
        if nbytes < _LARGE_NBYTES:
            ctypes.memset(address, 0, nbytes)
            return
        begin, size = _inner_pages(address, nbytes)
        self._cuda.prefetch(begin, size, self._cuda.device)  # all at once, not fault by fault
        self._cuda.clear(address, nbytes)


class ManagedBinding(Binding):
    """A Region of managed memory, and which of its pages live in the device's memory."""

    copies_from_others = False

    def __init__(self, cuda: Cuda, at: Callable[[HostAddr, int], Buffer], region: Region) -> None:
        super().__init__(at, region)
        self._cuda = cuda
        self._settled: dict[HostAddr, int] = {}

    def settle(self, host: HostAddr, planes: Sequence[int]) -> None:
        nbytes = sum(planes)
        begin, size = _inner_pages(host, nbytes)
        if size:
            self._settled[host] = nbytes
            self._cuda.advise(begin, size, Advice.SET_PREFERRED_LOCATION, self._cuda.device)
            self._cuda.prefetch(begin, size, self._cuda.device)

    def unsettle(self, host: HostAddr) -> None:
        begin, size = _inner_pages(host, self._settled.pop(host, 0))
        if size:
            self._cuda.advise(begin, size, Advice.SET_PREFERRED_LOCATION, CPU)

    @contextmanager
    def on_host(self, rows: Rows) -> Iterator[None]:
        ranges = self._on_device
        for begin, size in ranges:
            self._cuda.prefetch(begin, size, CPU)
        try:
            yield
        finally:
            for begin, size in ranges:
                self._cuda.prefetch(begin, size, self._cuda.device)

    def copy(self, target: HostAddr, source: HostAddr, nbytes: int) -> None:
        self._cuda.copy(target, source, nbytes)

    def copy_to(self, target: HostAddr) -> None:
        base, at = self.memory.base, self.memory.base
        for begin, size in self._on_device:
            self._copy_near_processor(target + (at - base), at, begin - at)
            self._cuda.copy_on_device(HostAddr(target + (begin - base)), begin, size)
            at = HostAddr(begin + size)
        self._copy_near_processor(target + (at - base), at, base + self._nbytes - at)

    def _copy_near_processor(self, target: int, source: HostAddr, nbytes: int) -> None:
        begin, size = _inner_pages(HostAddr(target), nbytes)
        if size:
            self._cuda.prefetch(begin, size, CPU)
        ctypes.memmove(target, source, nbytes)

    @property
    def _on_device(self) -> list[tuple[HostAddr, int]]:
        """(address, nbytes) of the whole pages that live there, ascending."""
        found = [_inner_pages(host, nbytes) for host, nbytes in self._settled.items()]
        return sorted(each for each in found if each[1])


def _inner_pages(host: HostAddr, nbytes: int) -> tuple[HostAddr, int]:
    """The whole pages inside a range: (address, nbytes)."""
    begin = align_up(host, OS_PAGE)
    return HostAddr(begin), max(0, (host + nbytes) // OS_PAGE * OS_PAGE - begin)
