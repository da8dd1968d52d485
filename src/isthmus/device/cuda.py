"""CUDA: kernels address guests' memory by the very pointers that guests and host use.

=============  =====================================================================================
sharing        how, best first
=============  =====================================================================================
`same`         ordinary memory, which the device reads through the host's page tables (Grace Hopper,
               GB10) or with the kernel's help (HMM)
`managed`      the driver supplies the memory; each page lies on the side where it is told to, and
               both sides use one address. Guests get explicit bounds checks: such pages cannot be
               protected
`registered`   ordinary memory, pinned and mapped: the same address, every access through PCIe
`copied`       the device computes on a copy
=============  =====================================================================================

Where managed pages lie decides the speed. A guest's heap, tokens and logits stay near the processor
and are mapped to the device; KV caches live in the device's memory. What kernels use for addressing
(ids, positions, row indices, masks), weights and activations lie in plain device memory.

A tensor's place is an address, so any of ggml's buffers on the device can stand for all of them:
one small buffer, `everywhere`, does.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from isthmus.config import DeviceSettings
from isthmus.device.base import Device, DeviceInfo
from isthmus.device.buffer import Binding, Buffer
from isthmus.device.copied import CopiedBinding
from isthmus.device.finding import Kind, Ladder, find_device
from isthmus.errors import DeviceFailed
from isthmus.memory import Region
from isthmus.native.cuda import CPU, LIBRARY, Advice, Attribute, Cuda
from isthmus.native.loader import Library
from isthmus.units import GIB, OS_PAGE, DeviceAddr, HostAddr, align_up, format_nbytes

KIND = Kind(
    name="cuda",
    registry="CUDA",
    driver=LIBRARY,
    install_library="docs/devices.md lists libraries that have it; give one by --ggml",
    install_driver="install NVIDIA's driver; nvidia-smi must list the card",
    nodes="/dev/nvidia[0-9]*",
)
REGION_NBYTES = 1 * GIB
"""Managed memory of one guest unless its limit asks for less: all of it counts as taken."""
_RESERVE_NBYTES = 1 * GIB
"""Device memory that managed memory leaves alone, for weights' workspace and kernels."""
_FIRST_ADDRESS = 1 << 16
_ADDRESSES_NBYTES = (1 << 47) - _FIRST_ADDRESS


def open_device(library: Library, settings: DeviceSettings, index: int = 0) -> Device:
    """Opens the CUDA device of that number. Raises DeviceUnavailable."""
    handle = find_device(library, KIND, index)
    return CudaDevice(library, settings, index, handle, Cuda(index))


class Everywhere(Buffer):
    """One small buffer of the device that stands for all addresses."""

    def __init__(self, library: Library, handle: int) -> None:
        super().__init__(library, handle, _ADDRESSES_NBYTES)
        self.base = DeviceAddr(_FIRST_ADDRESS)
        self.is_host = False


class CudaDevice(Device):
    """Owns the hold of the primary context, and the buffer that stands for all addresses."""

    def __init__(
        self, library: Library, settings: DeviceSettings, index: int, handle: int, cuda: Cuda
    ) -> None:
        super().__init__(f"{KIND.name}:{index}", handle, library, settings)
        self.cuda = cuda
        self._taken_nbytes = 0
        self._lock = threading.Lock()
        ladder = Ladder(settings.sharing)
        self.sharing = ladder.take(
            same=self._why_not_same,
            managed=self._why_not_managed,
            registered=self._why_not_registered,
            copied=lambda: "",
        )
        self._everywhere = Everywhere(library, self._allocate(OS_PAGE))
        self._info = self._describe(notes=ladder.notes, driver=cuda.driver_version)

    @property
    def info(self) -> DeviceInfo:
        return self._info

    # ------------------------------------------------------------------ a guest's memory

    @property
    def guard_pages(self) -> bool:
        return self.sharing != "managed"

    @property
    def remaps(self) -> bool:
        return self.sharing in ("same", "copied")

    def reserve(self, reserved_nbytes: int, guard_nbytes: int) -> Region:
        if self.sharing != "managed":
            return Region.reserve(reserved_nbytes, guard_nbytes, remappable=self.remaps)
        nbytes = align_up(min(reserved_nbytes, REGION_NBYTES), OS_PAGE)
        self._take(nbytes)
        try:
            base = self.cuda.allocate_managed(nbytes)
        except BaseException:
            self._take(-nbytes)
            raise
        return Region(base, nbytes, 0, lambda: self._free(base, nbytes), commit=self._commit)

    def bind(self, region: Region) -> Binding:
        if self.sharing == "copied":
            return CopiedBinding(self.allocate, region, self.counters, self.largest_buffer)
        if self.sharing == "registered":
            return Binding(self._register, region, largest=_ADDRESSES_NBYTES)
        return ManagedBinding(self, region) if self.sharing == "managed" else self._bind(region)

    @property
    def everywhere(self) -> Buffer | None:
        return None if self.sharing == "copied" else self._everywhere

    def copy(self, target: HostAddr, source: HostAddr, nbytes: int) -> None:
        if self.sharing == "managed":
            self.cuda.copy(target, source, nbytes)
        else:
            super().copy(target, source, nbytes)

    @property
    def kv_alignment(self) -> tuple[int, int]:
        return 256, 0

    def close(self) -> None:
        super().close()
        if not self._everywhere.closed:
            self._everywhere.close()
            self.cuda.close()

    def at(self, base: HostAddr, nbytes: int) -> Buffer:
        """A buffer over addresses that the device can use as they are."""
        return Window(self._everywhere, base, nbytes)

    def _bind(self, region: Region) -> Binding:
        return Binding(self.at, region)

    def _register(self, base: HostAddr, nbytes: int) -> Buffer:
        self.cuda.register(base, nbytes)
        return Window(self._everywhere, base, nbytes, lambda: self.cuda.unregister(base))

    def _commit(self, address: int, nbytes: int) -> None:
        """Zeroes what a guest grows into, and keeps it near the processor, mapped to the device."""
        base = HostAddr(address)
        ctypes.memset(base, 0, nbytes)
        self.cuda.advise(base, nbytes, Advice.SET_PREFERRED_LOCATION, CPU)
        self.cuda.advise(base, nbytes, Advice.SET_ACCESSED_BY, self.cuda.device)

    def _take(self, nbytes: int) -> None:
        """Managed memory beyond what the device has free can hang it: never ask for more."""
        with self._lock:
            free = self.cuda.free_nbytes() - _RESERVE_NBYTES - self._taken_nbytes
            if nbytes > free:
                raise DeviceFailed(
                    f"{self.name} has {format_nbytes(max(0, free))} left for guests' memory, "
                    f"and a guest may take {format_nbytes(nbytes)}: give it a smaller limit "
                    "(--memory, Limits.memory_nbytes), or close agents or models"
                )
            self._taken_nbytes += nbytes

    def _free(self, base: HostAddr, nbytes: int) -> None:
        self.cuda.free(base)
        with self._lock:
            self._taken_nbytes -= nbytes

    # ------------------------------------------------------------------ the ladder

    def _why_not_same(self) -> str:
        if self.cuda.attribute(Attribute.PAGEABLE_MEMORY_ACCESS):
            return ""
        return "the device does not read ordinary memory (no ATS, no HMM)"

    def _why_not_managed(self) -> str:
        if not self.cuda.attribute(Attribute.MANAGED_MEMORY):
            return "the driver has no managed memory"
        if not self.cuda.attribute(Attribute.CONCURRENT_MANAGED_ACCESS):
            return "guests could not run while any kernel does (no concurrent managed access)"
        return ""

    def _why_not_registered(self) -> str:
        if self.cuda.attribute(Attribute.CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM):
            return ""
        return "the device sees registered memory at other addresses, or not at all"


class Window(Buffer):
    """A range of addresses, in the name of `everywhere`. `release` undoes what it took."""

    def __init__(
        self,
        everywhere: Buffer,
        base: HostAddr,
        nbytes: int,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self._everywhere = everywhere
        self._release = release
        self.library = everywhere.library
        self.nbytes = nbytes
        self.base = DeviceAddr(base)
        self.is_host = False

    @property
    def handle(self) -> int:
        return self._everywhere.handle

    def close(self) -> None:
        release, self._release = self._release, lambda: None
        release()


class ManagedBinding(Binding):
    """A Region of managed memory, and where its pages live."""

    def __init__(self, device: CudaDevice, region: Region) -> None:
        super().__init__(device.at, region)
        self._cuda = device.cuda
        self._on_device: dict[HostAddr, int] = {}

    def settle(self, host: HostAddr, nbytes: int) -> None:
        begin, size = _inner_pages(host, nbytes)
        if size:
            self._on_device[host] = nbytes
            self._cuda.advise(begin, size, Advice.SET_PREFERRED_LOCATION, self._cuda.device)
            self._cuda.prefetch(begin, size, self._cuda.device)

    def unsettle(self, host: HostAddr) -> None:
        begin, size = _inner_pages(host, self._on_device.pop(host, 0))
        if size:
            self._cuda.advise(begin, size, Advice.SET_PREFERRED_LOCATION, CPU)

    @contextmanager
    def on_host(self) -> Iterator[None]:
        ranges = [_inner_pages(host, nbytes) for host, nbytes in self._on_device.items()]
        for begin, size in ranges:
            self._cuda.prefetch(begin, size, CPU)
        try:
            yield
        finally:
            for begin, size in ranges:
                self._cuda.prefetch(begin, size, self._cuda.device)


def _inner_pages(host: HostAddr, nbytes: int) -> tuple[HostAddr, int]:
    """The whole pages inside a range: (address, nbytes)."""
    begin = align_up(host, OS_PAGE)
    return HostAddr(begin), max(0, (host + nbytes) // OS_PAGE * OS_PAGE - begin)
