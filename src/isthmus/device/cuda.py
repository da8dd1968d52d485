"""CUDA: kernels address guests' memory by the very pointers that guests and host use.

=============  =====================================================================================
sharing        how, best first
=============  =====================================================================================
`same`         ordinary memory, which the device reads through the host's page tables (Grace Hopper,
               GB10) or with the kernel's help (HMM)
`managed`      the driver supplies the memory; each page lies on the side where it is told to, and
               both sides use one address. Guests get explicit bounds checks: such pages cannot be
               protected
`registered`   ordinary memory, pinned and mapped: the same address, every access through PCIe; KV
               caches lie in the device's own memory, `own.py`
`lent`         managed memory that is the device's while a submission works in it, `lent.py`: where
               both sides must not touch managed memory at the same time, and nothing registers
`copied`       the device computes on a copy
=============  =====================================================================================

Where pages lie decides the speed; for managed ones `managed.py` says it. What kernels use for
addressing (ids, positions, row indices, masks), weights and activations lie in plain device memory.

A tensor's place is an address, so any of ggml's buffers on the device can stand for all of them:
one small buffer, `everywhere`, does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from isthmus.config import DeviceSettings, Limits
from isthmus.device.base import Device, DeviceInfo
from isthmus.device.buffer import Binding, Buffer
from isthmus.device.copied import CopiedBinding
from isthmus.device.finding import Kind, Ladder, find_device
from isthmus.device.lent import LentBinding, lent_region
from isthmus.device.managed import ManagedBinding, ManagedRegion
from isthmus.device.own import OwnBinding
from isthmus.errors import DeviceFailed
from isthmus.memory import Region
from isthmus.native._ggml import tensor_at
from isthmus.native.cuda import LIBRARY, Attribute, Cuda
from isthmus.native.loader import Library
from isthmus.units import (
    ADDRESSES_NBYTES,
    FIRST_ADDRESS,
    GIB,
    OS_PAGE,
    DeviceAddr,
    HostAddr,
    align_up,
    format_nbytes,
)

KIND = Kind(
    name="cuda",
    registry="CUDA",
    driver=LIBRARY,
    install_library="docs/devices.md lists libraries that have it; give one by --ggml",
    install_driver="install NVIDIA's driver; nvidia-smi must list the card",
    nodes="/dev/nvidia[0-9]*",
)
REGION_NBYTES = 1 * GIB
"""Managed memory of one guest that has no limit of its own: all of it counts as taken."""
_RESERVE_NBYTES = 1 * GIB
"""Device memory that managed memory leaves alone, for weights' workspace and kernels."""
_SOFT_CAP, _SOFT_CAP_HEADS = 2, (128, 256)
"""Where a soft cap is among attention's parameters, and the sizes of heads with kernels for it.
Source: `fattn-vec.cuh`, `fattn-tile.cuh` and `fattn-mma-f16.cuh` of ggml 0.25."""


def open_device(library: Library, settings: DeviceSettings, index: int = 0) -> Device:
    """Opens the CUDA device of that number. Raises DeviceUnavailable."""
    handle = find_device(library, KIND, index)
    return CudaDevice(library, settings, index, handle, Cuda(index))


class Everywhere(Buffer):
    """One small buffer of the device that stands for all addresses."""

    def __init__(self, library: Library, handle: int) -> None:
        super().__init__(library, handle, ADDRESSES_NBYTES)
        self.base = DeviceAddr(FIRST_ADDRESS)
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
            lent=self._why_not_lent,
            copied=lambda: "",
        )
        self._everywhere = Everywhere(library, self._allocate(OS_PAGE))
        why_own = self.keep_caches(far=not cuda.attribute(Attribute.INTEGRATED))
        notes = [*ladder.notes, *filter(None, [why_own])]
        self._info = self._describe(notes=notes, driver=cuda.driver_version)

    @property
    def info(self) -> DeviceInfo:
        return self._info

    # ------------------------------------------------------------------ a guest's memory

    @property
    def guard_pages(self) -> bool:
        return not self._supplies

    @property
    def remaps(self) -> bool:
        return self.sharing in ("same", "copied")

    def reserve(self, reserved_nbytes: int, guard_nbytes: int) -> Region:
        if not self._supplies:
            return Region.reserve(reserved_nbytes, guard_nbytes, remappable=self.remaps)
        nbytes = REGION_NBYTES if reserved_nbytes == Limits.memory_nbytes else reserved_nbytes
        nbytes = align_up(nbytes, OS_PAGE)
        self._take(nbytes)
        try:
            base = self.cuda.allocate_managed(nbytes)
        except BaseException:
            self._take(-nbytes)
            raise
        make = ManagedRegion if self.sharing == "managed" else lent_region
        return make(self.cuda, base, nbytes, lambda: self._free(base, nbytes))

    def bind(self, region: Region) -> Binding:
        if self.sharing == "copied":
            return CopiedBinding(self.allocate, region, self.counters, self.largest_buffer)
        if self.caches is not None:
            return OwnBinding(
                self._register,
                region,
                self.caches,
                self.counters,
                largest=ADDRESSES_NBYTES,
                seamless=True,
            )
        if self.sharing == "registered":
            return Binding(self._register, region, largest=ADDRESSES_NBYTES, seamless=True)
        if self.sharing == "managed":
            return ManagedBinding(self.cuda, self.at, region)
        if self.sharing == "lent":
            return LentBinding(self.cuda, self.at, region)
        return Binding(self.at, region)

    @property
    def everywhere(self) -> Buffer | None:
        return None if self.sharing == "copied" else self._everywhere

    def _claims_wrongly(self, node: int) -> bool:
        """Attention with a soft cap is compiled for these sizes of heads, and promised for all."""
        if self.library.ggml_op_desc(node) != b"FLASH_ATTN_EXT":
            return False
        struct = tensor_at(node)
        soft_cap = struct.op_params[_SOFT_CAP]
        return soft_cap != 0 and tensor_at(struct.src[0]).ne[0] not in _SOFT_CAP_HEADS

    @property
    def kv_alignment(self) -> tuple[int, int]:
        return 256, 0

    @property
    def joins_sequences(self) -> bool:
        return True

    @property
    def finds_top(self) -> bool:
        return True

    @property
    def logits_are_far(self) -> bool:
        return self.sharing in ("managed", "registered")

    @property
    def _supplies(self) -> bool:
        """Whether guests' memory is the driver's own."""
        return self.sharing in ("managed", "lent")

    def close(self) -> None:
        super().close()
        if not self._everywhere.closed:
            self._everywhere.close()
            self.cuda.close()

    def at(self, base: HostAddr, nbytes: int) -> Buffer:
        """A buffer over addresses that the device can use as they are."""
        return Window(self._everywhere, base, nbytes)

    def _register(self, base: HostAddr, nbytes: int) -> Buffer:
        self.cuda.register(base, nbytes)
        return Window(self._everywhere, base, nbytes, lambda: self.cuda.unregister(base))

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

    def _why_not_lent(self) -> str:
        if self.cuda.attribute(Attribute.MANAGED_MEMORY):
            return ""
        return "the driver has no managed memory"

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
