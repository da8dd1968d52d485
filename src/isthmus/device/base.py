"""What every device is, on one screen.

A device file defines `open_device(library, settings, index) -> Device`, and `open_device` of the
package finds it by the device's kind. Ownership: a Device owns its threads; a Backend, a Binding
and a buffer own ggml's handles and are closed by whoever asked for them, before the Device.

===========  ==================================================================================
sharing      how a guest's linear memory reaches the device
===========  ==================================================================================
`same`       the device addresses the same bytes at the same addresses
`imported`   the same bytes under another address
`managed`    the device supplies the memory; the same address, pages move to who touches them
`registered` the same bytes, pinned and mapped to the device
`lent`       as `managed`; the memory is the device's while a submission works in it
`copied`     the device computes on a copy: the way that is left where no better one opens
`none`       the device computes nothing
===========  ==================================================================================

Where a device reads guests' memory through a bus, KV caches lie in its own memory: `own.py`.
"""

from __future__ import annotations

import ctypes
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from isthmus.config import DeviceSettings
from isthmus.counters import Counters
from isthmus.device.barriers import Barriers
from isthmus.device.buffer import Binding, Buffer, InputBuffer
from isthmus.device.caches import CachePool, Stages
from isthmus.device.compute_thread import ComputeThread
from isthmus.device.graph import Graph
from isthmus.errors import DeviceFailed, SettingsError
from isthmus.memory import FileMapping, Region
from isthmus.native import _ggml
from isthmus.native.loader import Library
from isthmus.native.owned import Owned
from isthmus.units import HostAddr, format_nbytes

CACHES_IN = {"guest": "guests' memory", "own": "its own memory"}
"""Where a device has KV caches, in words, by `DeviceInfo.caches`."""
_CAN_KEEP_CACHES = ("imported", "registered")
"""Ways to share in which KV caches can lie in the device's own memory."""


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
    batches: bool
    """Whether decode steps of several agents can be one pass."""
    caches: str = "guest"
    """Where KV caches lie: `guest`, in the guest's memory, or `own`, in the device's own."""
    driver: str = ""
    """The driver's version, where there is one that tells."""
    notes: tuple[str, ...] = ()
    """Why it does not share in a better way, and what else one should know."""


class Device(ABC):
    """One ggml device. Safe to use from several threads: `compute_thread` submits one at a time.

    What is here fits a device that addresses the process's own memory; a device file says only
    what is different on its device.
    """

    sharing = "same"

    def __init__(self, name: str, handle: int, library: Library, settings: DeviceSettings) -> None:
        self.name = name
        self.library = library
        self.settings = settings
        self.counters = Counters()
        self.compute_thread = ComputeThread(f"isthmus {name}")
        self.barriers = Barriers(None)
        self._handle = handle
        self.caches: CachePool | None = None
        """The device's own memory for KV caches; None if they lie in guests' memory."""

    @property
    def ggml_device(self) -> int:
        """ggml's handle of it, for whoever calls libllama on the same device."""
        return self._handle

    @property
    @abstractmethod
    def info(self) -> DeviceInfo:
        """What `isthmus devices` tells of it."""

    def new_backend(self, deterministic: bool = False) -> Backend:
        """Something that computes graphs; `deterministic` as in ModelSettings.

        Raises SettingsError where the device has no such mode.
        """
        if deterministic:
            raise SettingsError(f"the device {self.name} has no deterministic mode; the cpu has")
        return Backend(self, self._new_ggml_backend())

    def timed(self, submit: Callable[..., int], *arguments: object) -> int:
        """The status of a submission, which is counted. Only on the device's thread."""
        counters = self.counters
        start, running = time.perf_counter_ns(), time.thread_time_ns()
        status = submit(*arguments)
        running = time.thread_time_ns() - running
        end = time.perf_counter_ns()
        self.barriers.note(end, end - start, running)
        counters.kernel_ns += end - start
        counters.submissions += 1
        return int(status)

    def refuses(self, graph: Graph) -> str:
        """The first operation of a graph that it has no kernel for; empty where it has all.

        ggml aborts the process on such a graph.
        """
        supports = self.library.ggml_backend_dev_supports_op
        for index in range(graph.n_nodes):
            node = self.library.ggml_graph_node(graph.pointer, index)
            if not supports(self._handle, node) or self._claims_wrongly(node):
                return self.library.ggml_op_desc(node).decode()  # type: ignore[no-any-return]
        return ""

    def _claims_wrongly(self, _node: int) -> bool:
        """Whether the device says of this operation that it has a kernel, and has none."""
        return False

    # ------------------------------------------------------------------ a guest's memory

    def reserve(self, reserved_nbytes: int, guard_nbytes: int) -> Region:
        """A Region that this device can bind. A device that must supply the memory overrides it."""
        return Region.reserve(reserved_nbytes, guard_nbytes)

    @property
    def guard_pages(self) -> bool:
        """Whether pages of its Regions can be without access, so that a guest traps there."""
        return True

    @property
    def remaps(self) -> bool:
        """Whether the pages under a binding may be replaced by others at the same addresses."""
        return False

    @abstractmethod
    def bind(self, region: Region) -> Binding:
        """Makes a Region addressable by the device, without a copy."""

    @property
    def joins_sequences(self) -> bool:
        """Whether attention of several sequences at once is faster there than one by one; the bits
        are others."""
        return False

    @property
    def everywhere(self) -> Buffer | None:
        """A buffer over all addresses of this process, where the device computes on them as they
        are: a tensor in it is moved by writing its address. None where it cannot.
        """
        return None

    # ------------------------------------------------------------------ other memory

    def bind_file(self, file: FileMapping) -> Binding | None:
        """Makes a mapped file addressable by the device; None where it wants a copy of it."""
        return None

    def allocate(self, nbytes: int) -> Buffer:
        """The device's own memory, which no guest can reach. Raises DeviceFailed."""
        return Buffer(self.library, self._allocate(nbytes), nbytes)

    def allocate_inputs(self, nbytes: int, *, often: bool = False) -> InputBuffer:
        """As `allocate`, for what the host writes; `often`: at each step."""
        pinned = self.library.ggml_backend_dev_host_buffer_type(self._handle) if often else None
        return InputBuffer(self.library, self._allocate(nbytes), nbytes, pinned or 0)

    def import_memory(self, base: HostAddr, nbytes: int) -> Buffer:
        """A buffer over memory of the process, without a copy. Raises DeviceFailed.

        An error that the library logs is a refusal, also if it gives a handle: that of Metal does,
        and ends the process when the handle is used or freed (`ggml-metal.cpp` of ggml 0.25,
        `ggml_backend_metal_device_buffer_mapped`).
        """
        with self.library.errors() as lines:
            handle = self.library.ggml_backend_dev_buffer_from_host_ptr(
                self._handle, base, nbytes, nbytes
            )
        if lines or not handle:
            said = f": {lines[0]}" if lines else ""
            raise DeviceFailed(
                f"the device {self.name} refused to address {format_nbytes(nbytes)} of the "
                f"process's memory in place{said}"
            )
        return Buffer(self.library, handle, nbytes)

    @property
    def largest_buffer(self) -> int:
        """Bytes that one buffer of this device may have."""
        return int(self.library.ggml_backend_buft_get_max_size(self.buffer_type))

    @property
    def buffer_type(self) -> int:
        """The ggml buffer type of this device's own memory."""
        return int(self.library.ggml_backend_dev_buffer_type(self._handle))

    @property
    def repack_buffer_type(self) -> int:
        """The ggml buffer type that repacks weights for the fastest kernels, or 0."""
        return 0

    # ------------------------------------------------------------------ how it computes

    @property
    def kv_alignment(self) -> tuple[int, int]:
        """(modulus, remainder) in bytes at which this device reads a KV cache fastest."""
        return 64, 0

    @property
    def logits_are_far(self) -> bool:
        """Whether logits lie behind a bus: it takes whole rows sooner than a product's elements."""
        return False

    @property
    def finds_top(self) -> bool:
        """Whether it finds the most probable tokens sooner than guests: see `sampling/top.py`."""
        return False

    @property
    def has_own_memory(self) -> bool:
        """Whether `allocate` takes memory that is not the process's."""
        return True

    @property
    def splits_graphs(self) -> bool:
        """Whether a graph may be computed part by part. Devices that fuse operations look at who
        else uses a result, which a part does not know."""
        return False

    @property
    def adopts(self) -> bool:
        """Whether libllama's own graphs can compute there over guests' memory."""
        return False

    @property
    def threadpool(self) -> int:
        """The ggml thread pool that prefill and decode share, or 0 where that means nothing."""
        return 0

    def keep_caches(self, *, far: bool) -> str:
        """Decides where KV caches lie, once it is known how memory is shared; says why.

        `far`: whether the device reads guests' memory through a bus. SettingsError if they are to
        lie in its own memory and cannot.
        """
        wanted = self.settings.caches
        if self.sharing not in _CAN_KEEP_CACHES:
            if wanted == "own":
                raise SettingsError(
                    f"the device {self.name}, which shares as {self.sharing}, has KV caches in "
                    f"guests' memory only; with {' or '.join(_CAN_KEEP_CACHES)} it could have them "
                    "in its own"
                )
            return ""
        if wanted == "guest" or (wanted == "auto" and not far):
            return ""
        total, largest = self._props().memory_total, self.largest_buffer
        pinned = self.library.ggml_backend_dev_host_buffer_type(self._handle)
        stages = Stages(self.library, pinned or 0)
        self.caches = CachePool(self.name, self.allocate, total, largest, stages)
        why = "it reads guests' memory through a bus" if wanted == "auto" else "that was asked for"
        return f"KV caches lie in the device's own memory: {why}"

    def close(self) -> None:
        """Frees what the device owns; a second call does nothing."""
        if self.caches is not None:
            self.caches.close()
        self.compute_thread.close()
        self.barriers.close()

    def _allocate(self, nbytes: int) -> int:
        handle = self.library.ggml_backend_buft_alloc_buffer(self.buffer_type, nbytes)
        if not handle:
            raise DeviceFailed(
                f"the device {self.name} has no {format_nbytes(nbytes)} of memory left: close "
                "agents or models, or use a smaller context, KV type or model"
            )
        return int(handle)

    def _new_ggml_backend(self) -> int:
        handle = self.library.ggml_backend_dev_init(self._handle, None)
        if not handle:
            raise DeviceFailed(f"the device {self.name} gave no backend")
        return int(handle)

    def _props(self) -> _ggml.DeviceProps:
        props = _ggml.DeviceProps()
        self.library.ggml_backend_dev_get_props(self._handle, ctypes.byref(props))
        return props

    def _describe(
        self,
        *,
        threads: int = 0,
        features: Sequence[str] = (),
        notes: Sequence[str] = (),
        driver: str = "",
    ) -> DeviceInfo:
        props = self._props()
        return DeviceInfo(
            name=self.name,
            description=props.description.decode(errors="replace"),
            sharing=self.sharing,
            memory_nbytes=props.memory_total,
            threads=threads,
            features=tuple(features),
            library=f"ggml {self.library.version} ({self.library.source})",
            batches=self.everywhere is not None,
            caches="own" if self.caches is not None else "guest",
            driver=driver,
            notes=tuple(notes),
        )


class Backend(Owned):
    """Owns one ggml backend: a queue of graphs on a device."""

    def __init__(self, device: Device, handle: int) -> None:
        super().__init__(handle, device.library.ggml_backend_free)
        self.device = device
        self._submit = device.library.ggml_backend_graph_compute

    def compute(self, graph: int, *memories: Binding) -> None:
        """Computes a graph and waits for it. Raises DeviceFailed.

        `memories` are those of guests in which it works, for devices to which they are lent.
        """
        status = self.device.compute_thread.run(lambda: self._lent(graph, memories))
        if status != 0:
            raise DeviceFailed(f"the device {self.device.info.name} failed with status {status}")

    def _lent(self, graph: int, memories: Sequence[Binding]) -> int:
        for memory in memories:
            memory.lend()
        try:
            return self._timed(graph)
        finally:
            for memory in memories:
                memory.take_back()

    def _timed(self, graph: int) -> int:
        return self.device.timed(self._submit, self.handle, graph)
