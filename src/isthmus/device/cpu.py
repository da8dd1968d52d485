"""The processor itself: shares memory as `same`, since it computes on the addresses it is given."""

from __future__ import annotations

import ctypes

from isthmus.config import DeviceSettings
from isthmus.counters import Counters
from isthmus.device.base import Backend, Device, DeviceInfo
from isthmus.device.buffer import Binding, Buffer, InputBuffer
from isthmus.device.compute_thread import ComputeThread
from isthmus.errors import DeviceFailed, DeviceUnavailable
from isthmus.memory import FileMapping, Region
from isthmus.native import _ggml
from isthmus.native.loader import Library
from isthmus.native.owned import Owned

_REPACK = b"CPU_REPACK"
_FIRST_ADDRESS = 1 << 16
_ADDRESSES_NBYTES = (1 << 47) - _FIRST_ADDRESS
"""What a process may use on x86-64 and arm64."""


def open_device(library: Library, settings: DeviceSettings, _index: int = 0) -> Device:
    """Opens the processor. There is one, so the index is not used."""
    return CpuDevice(library, settings)


class CpuDevice(Device):
    """Owns one ggml thread pool, which prefill, decode and tensor calls share."""

    sharing = "same"
    name = "cpu"

    def __init__(self, library: Library, settings: DeviceSettings) -> None:
        self.library = library
        self.settings = settings
        self.counters = Counters()
        self.compute_thread = ComputeThread(f"isthmus {self.name}")
        self._device = library.ggml_backend_dev_by_type(_ggml.DeviceType.CPU)
        if not self._device:
            raise DeviceUnavailable(f"{library!r} has no CPU backend")
        self._procedures = library.procedures(self._device, _ggml.CPU_PROCEDURES)
        self._threadpool = self._new_threadpool()
        self._everywhere = self._bind_everywhere()
        self.info = self._describe()

    def bind(self, memory: Region | FileMapping) -> Binding:
        nbytes = (
            memory.reserved_nbytes if isinstance(memory, Region) else memory.mapped_nbytes
        )  # one buffer covers the whole reservation: parts committed later need no rebinding
        handle = self.library.ggml_backend_dev_buffer_from_host_ptr(
            self._device, memory.base, nbytes, nbytes
        )
        if not handle:
            raise DeviceFailed(f"the device {self.name} refused to bind {nbytes} bytes")
        return Binding(self.library, handle, memory, nbytes)

    @property
    def everywhere(self) -> Buffer | None:
        return self._everywhere

    def allocate_inputs(self, nbytes: int) -> InputBuffer:
        handle = self.library.ggml_backend_buft_alloc_buffer(self.buffer_type, nbytes)
        if not handle:
            raise DeviceFailed(f"the device {self.name} has no {nbytes} bytes left")
        return InputBuffer(self.library, handle, nbytes)

    def new_backend(self, deterministic: bool = False) -> Backend:
        backend = Backend(self, self._new_ggml_backend())
        self._procedures["ggml_backend_set_n_threads"](backend.handle, self.settings.n_threads)
        self._procedures["ggml_backend_cpu_set_threadpool"](backend.handle, self._threadpool.handle)
        if deterministic:
            self._procedures["ggml_backend_cpu_set_use_ref"](backend.handle, True)
        return backend

    @property
    def buffer_type(self) -> int:
        return int(self.library.ggml_backend_dev_buffer_type(self._device))

    @property
    def kv_alignment(self) -> tuple[int, int]:
        """Measured: rows at 32 mod 64 are 10 to 25 % faster on the AVX2 kernels, 0 mod 64 are 4 to
        8 % faster on AVX-512. Results are the same; see `benchmarks/` and docs/rationale.md."""
        features = self.info.features
        return (64, 32) if "AVX2" in features and "AVX512" not in features else (64, 0)

    @property
    def remaps(self) -> bool:
        return True

    @property
    def threadpool(self) -> int:
        return self._threadpool.handle

    @property
    def repack_buffer_type(self) -> int:
        list_types = self._procedures.get("ggml_backend_dev_get_extra_bufts")
        types = list_types(self._device) if list_types else None
        index = 0
        while types and types[index]:
            if self.library.ggml_backend_buft_name(types[index]) == _REPACK:
                return int(types[index])
            index += 1
        return 0

    def close(self) -> None:
        self.compute_thread.close()
        self._everywhere.close()
        self._threadpool.close()

    def _bind_everywhere(self) -> Buffer:
        """ggml's buffer over host memory is an address and a length, and touches nothing."""
        handle = self.library.ggml_backend_dev_buffer_from_host_ptr(
            self._device, _FIRST_ADDRESS, _ADDRESSES_NBYTES, _ADDRESSES_NBYTES
        )
        if not handle:
            raise DeviceFailed(f"the device {self.name} refused to bind all addresses")
        return Buffer(self.library, handle, _ADDRESSES_NBYTES)

    def _new_ggml_backend(self) -> int:
        handle = self.library.ggml_backend_dev_init(self._device, None)
        if not handle:
            raise DeviceFailed(f"the device {self.name} gave no backend")
        return int(handle)

    def _new_threadpool(self) -> Owned:
        params = _ggml.ThreadpoolParams()
        self.library.ggml_threadpool_params_init(ctypes.byref(params), self.settings.n_threads)
        params.poll = self.settings.poll
        handle = self._procedures["ggml_threadpool_new"](ctypes.byref(params))
        if not handle:
            raise DeviceFailed(f"cannot start {self.settings.n_threads} threads")
        return Owned(handle, self._procedures["ggml_threadpool_free"])

    def _describe(self) -> DeviceInfo:
        props = _ggml.DeviceProps()
        self.library.ggml_backend_dev_get_props(self._device, ctypes.byref(props))
        return DeviceInfo(
            name=self.name,
            description=props.description.decode(errors="replace"),
            sharing=self.sharing,
            memory_nbytes=props.memory_total,
            threads=self.settings.n_threads,
            features=tuple(self._features()),
            library=f"ggml {self.library.version} ({self.library.source})",
        )

    def _features(self) -> list[str]:
        registry = self.library.ggml_backend_dev_backend_reg(self._device)
        features = self._procedures["ggml_backend_get_features"](registry)
        names, index = [], 0
        while features[index].name:
            if features[index].value != b"0":
                names.append(features[index].name.decode())
            index += 1
        return names
