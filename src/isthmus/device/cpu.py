"""The processor itself: shares memory as `same`, since it computes on the addresses it is given."""

from __future__ import annotations

import ctypes

from isthmus.config import DeviceSettings
from isthmus.device.barriers import barriers_of
from isthmus.device.base import Backend, Device, DeviceInfo
from isthmus.device.buffer import Binding, Buffer
from isthmus.device.graph import Graph
from isthmus.errors import DeviceFailed, DeviceUnavailable, SettingsError
from isthmus.memory import FileMapping, Region
from isthmus.native import _ggml
from isthmus.native.loader import Library
from isthmus.native.owned import Owned
from isthmus.units import ADDRESSES_NBYTES, FIRST_ADDRESS, HostAddr

_REPACK = b"CPU_REPACK"


def open_device(library: Library, settings: DeviceSettings, _index: int = 0) -> Device:
    """Opens the processor. There is one, so the index is not used."""
    return CpuDevice(library, settings)


class CpuDevice(Device):
    """Owns one ggml thread pool, which prefill, decode and tensor calls share."""

    kind = "cpu"

    def __init__(self, library: Library, settings: DeviceSettings) -> None:
        handle = library.ggml_backend_dev_by_type(_ggml.DeviceType.CPU)
        if not handle:
            raise DeviceUnavailable(f"{library!r} has no CPU backend")
        if settings.sharing not in (None, self.sharing):
            raise SettingsError(f"the device {self.kind} shares as {self.sharing} only")
        super().__init__(self.kind, handle, library, settings)
        self.keep_caches(far=False)
        self._procedures = library.procedures(handle, _ggml.CPU_PROCEDURES)
        self._threadpool = self._new_threadpool()
        self.barriers = barriers_of(library, settings.n_threads)
        self._everywhere = self._bind_everywhere()
        self._info = self._describe(threads=settings.n_threads, features=self._features())

    @property
    def info(self) -> DeviceInfo:
        return self._info

    def bind(self, region: Region) -> Binding:
        return Binding(self.import_memory, region)

    def bind_file(self, file: FileMapping) -> Binding:
        return Binding(self.import_memory, file)

    @property
    def everywhere(self) -> Buffer | None:
        return self._everywhere

    def new_backend(self, deterministic: bool = False) -> Backend:
        backend = Backend(self, self._new_ggml_backend())
        self._procedures["ggml_backend_set_n_threads"](backend.handle, self.settings.n_threads)
        self._procedures["ggml_backend_cpu_set_threadpool"](backend.handle, self._threadpool.handle)
        if deterministic:
            self._procedures["ggml_backend_cpu_set_use_ref"](backend.handle, True)
        return backend

    @property
    def kv_alignment(self) -> tuple[int, int]:
        """Measured: rows at 32 mod 64 are 10 to 25 % faster on the AVX2 kernels, 0 mod 64 are 4 to
        8 % faster on AVX-512. Results are the same; see `benchmarks/` and docs/rationale.md."""
        features = self.info.features
        return (64, 32) if "AVX2" in features and "AVX512" not in features else (64, 0)

    @property
    def remaps(self) -> bool:
        return True

    def refuses(self, graph: Graph) -> str:
        return ""  # every operation has a kernel for the processor

    @property
    def has_own_memory(self) -> bool:
        return False

    @property
    def splits_graphs(self) -> bool:
        return True

    @property
    def adopts(self) -> bool:
        return self.sharing == "same"

    @property
    def threadpool(self) -> int:
        return self._threadpool.handle

    @property
    def repack_buffer_type(self) -> int:
        list_types = self._procedures.get("ggml_backend_dev_get_extra_bufts")
        types = list_types(self._handle) if list_types else None
        index = 0
        while types and types[index]:
            if self.library.ggml_backend_buft_name(types[index]) == _REPACK:
                return int(types[index])
            index += 1
        return 0

    def close(self) -> None:
        super().close()
        self._everywhere.close()
        self._threadpool.close()

    def _bind_everywhere(self) -> Buffer:
        """ggml's buffer over host memory is an address and a length, and touches nothing."""
        return self.import_memory(HostAddr(FIRST_ADDRESS), ADDRESSES_NBYTES)

    def _new_threadpool(self) -> Owned:
        params = _ggml.ThreadpoolParams()
        self.library.ggml_threadpool_params_init(ctypes.byref(params), self.settings.n_threads)
        params.poll = self.settings.poll
        handle = self._procedures["ggml_threadpool_new"](ctypes.byref(params))
        if not handle:
            raise DeviceFailed(f"cannot start {self.settings.n_threads} threads")
        return Owned(handle, self._procedures["ggml_threadpool_free"])

    def _features(self) -> list[str]:
        registry = self.library.ggml_backend_dev_backend_reg(self._handle)
        features = self._procedures["ggml_backend_get_features"](registry)
        names, index = [], 0
        while features[index].name:
            if features[index].value != b"0":
                names.append(features[index].name.decode())
            index += 1
        return names
