"""Managed memory of CUDA that belongs to one side at a time.

Where the processor must not touch managed memory while any kernel runs (no concurrent managed
access), a guest's memory is the processor's alone, and the device's for as long as a submission
works in it. The guest waits for it meanwhile, and so does everybody else who reads its memory;
other guests' memory stays the processor's, so they run on.

Source: CUDA C++ Programming Guide, "Managing Data with Older GPUs" and `cuStreamAttachMemAsync`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from isthmus.device.buffer import Binding, Buffer
from isthmus.memory import Region
from isthmus.native.cuda import Cuda
from isthmus.units import HostAddr


def lent_region(cuda: Cuda, base: HostAddr, nbytes: int, free: Callable[[], object]) -> Region:
    """A Region of managed memory that is the processor's until it is lent."""
    cuda.attach(base, to_device=False)
    return Region(base, nbytes, 0, free, commit=_zero)


def _zero(address: int, nbytes: int) -> None:
    ctypes.memset(address, 0, nbytes)


class LentBinding(Binding):
    """Such a Region, lent for each submission."""

    lends = True

    def __init__(self, cuda: Cuda, at: Callable[[HostAddr, int], Buffer], region: Region) -> None:
        super().__init__(at, region)
        self._cuda = cuda

    def lend(self) -> None:
        self._cuda.attach(self.memory.base, to_device=True)

    def take_back(self) -> None:
        self._cuda.attach(self.memory.base, to_device=False)
