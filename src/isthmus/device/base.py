"""What every device is, on one screen.

A device file defines `open_device(library, settings) -> Device`; `device.open` finds it by the
device's kind. Ownership: a Device owns its thread pool; a Backend, a Binding and a buffer each own
one ggml handle and are closed by whoever asked for them, before the Device.

===========  ==================================================================================
sharing      how a guest's linear memory reaches the device
===========  ==================================================================================
`same`       the device addresses the same bytes at the same addresses
`imported`   the same bytes under another address
`managed`    the device supplies the memory; the same address, pages move to who touches them
`none`       the device computes nothing
===========  ==================================================================================
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass

from isthmus.config import DeviceSettings
from isthmus.counters import Counters
from isthmus.device.buffer import Binding, Buffer, InputBuffer
from isthmus.device.compute_thread import ComputeThread
from isthmus.errors import DeviceFailed
from isthmus.memory import FileMapping, Region
from isthmus.native.loader import Library
from isthmus.native.owned import Owned


@dataclass(frozen=True)
class DeviceInfo:
    """What `isthmus devices` tells of a device."""

    name: str
    """Such as `cpu` or `cuda:0`."""
    description: str
    """The hardware's own name."""
    sharing: str
    """How a guest's memory reaches it; see the module."""
    memory_nbytes: int
    """Memory that the device can address."""
    threads: int
    """CPU threads that compute; 0 where that means nothing."""
    features: tuple[str, ...]
    """Instruction sets and options that the library was built for."""
    library: str
    """The ggml library: version and source."""


class Device(ABC):
    """One ggml device. Safe to use from several threads: `compute_thread` submits one at a time."""

    library: Library
    settings: DeviceSettings
    info: DeviceInfo
    counters: Counters
    compute_thread: ComputeThread

    def reserve(self, reserved_nbytes: int, guard_nbytes: int) -> Region:
        """A Region that this device can bind. A device that must supply the memory overrides it."""
        return Region.reserve(reserved_nbytes, guard_nbytes)

    @abstractmethod
    def bind(self, memory: Region | FileMapping) -> Binding:
        """Makes a Region or a mapped file addressable by the device, without a copy."""

    @property
    def everywhere(self) -> Buffer | None:
        """A buffer over all addresses of this process, where the device computes on them as they
        are: a tensor in it is moved by writing its address. None where it cannot.
        """
        return None

    @abstractmethod
    def allocate_inputs(self, nbytes: int) -> InputBuffer:
        """Plain device memory that no guest can reach."""

    @abstractmethod
    def new_backend(self, deterministic: bool = False) -> Backend:
        """Something that computes graphs; `deterministic` as in ModelSettings."""

    @property
    @abstractmethod
    def buffer_type(self) -> int:
        """The ggml buffer type of this device's own memory."""

    @property
    def kv_alignment(self) -> tuple[int, int]:
        """(modulus, remainder) in bytes at which this device reads a KV cache fastest."""
        return 64, 0

    @property
    def remaps(self) -> bool:
        """Whether the pages under a binding may be replaced by others at the same addresses."""
        return False

    @property
    def threadpool(self) -> int:
        """The ggml thread pool that prefill and decode share, or 0 where that means nothing."""
        return 0

    @property
    def repack_buffer_type(self) -> int:
        """The ggml buffer type that repacks weights for the fastest kernels, or 0."""
        return 0

    @abstractmethod
    def close(self) -> None:
        """Frees what the device owns; a second call does nothing."""


class Backend(Owned):
    """Owns one ggml backend: a queue of graphs on a device."""

    def __init__(self, device: Device, handle: int) -> None:
        super().__init__(handle, device.library.ggml_backend_free)
        self.device = device
        self._submit = device.library.ggml_backend_graph_compute

    def compute(self, graph: int) -> None:
        """Computes a graph and waits for it. Raises DeviceFailed."""
        status = self.device.compute_thread.run(lambda: self._timed(graph))
        if status != 0:
            raise DeviceFailed(f"the device {self.device.info.name} failed with status {status}")

    def _timed(self, graph: int) -> int:
        counters = self.device.counters
        start = time.perf_counter_ns()
        status = self._submit(self.handle, graph)
        counters.kernel_ns += time.perf_counter_ns() - start
        counters.submissions += 1
        return int(status)
