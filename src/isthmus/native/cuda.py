"""The few functions of NVIDIA's driver API (`libcuda.so.1`) that Isthmus calls itself.

ggml owns streams and kernels; what is here places guests' memory. All calls run in the device's
primary context, which is ggml's. Source: CUDA Driver API, memory management and unified addressing.
"""

from __future__ import annotations

import ctypes as c
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

from isthmus.errors import DeviceFailed, DeviceUnavailable
from isthmus.units import HostAddr

LIBRARY = "libcuda.so.1"
CPU = -1
"""`CU_DEVICE_CPU`."""
_OUT_OF_MEMORY = 2
_ATTACH_GLOBAL, _ATTACH_HOST = 1, 2
_REGISTER_PORTABLE_AND_MAPPED = 3


class Attribute(IntEnum):
    """`CUdevice_attribute`."""

    INTEGRATED = 18
    MANAGED_MEMORY = 83
    PAGEABLE_MEMORY_ACCESS = 88
    CONCURRENT_MANAGED_ACCESS = 89
    CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM = 91
    PAGEABLE_USES_HOST_PAGE_TABLES = 100


class Advice(IntEnum):
    """`CUmem_advise`."""

    SET_PREFERRED_LOCATION = 3
    UNSET_PREFERRED_LOCATION = 4
    SET_ACCESSED_BY = 5


_FUNCTIONS: dict[str, list[type]] = {
    "cuInit": [c.c_uint],
    "cuDriverGetVersion": [c.c_void_p],
    "cuDeviceGet": [c.c_void_p, c.c_int],
    "cuDeviceGetAttribute": [c.c_void_p, c.c_int, c.c_int],
    "cuDevicePrimaryCtxRetain": [c.c_void_p, c.c_int],
    "cuDevicePrimaryCtxRelease_v2": [c.c_int],
    "cuCtxPushCurrent_v2": [c.c_void_p],
    "cuCtxPopCurrent_v2": [c.c_void_p],
    "cuCtxSynchronize": [],
    "cuMemGetInfo_v2": [c.c_void_p, c.c_void_p],
    "cuMemAllocManaged": [c.c_void_p, c.c_size_t, c.c_uint],
    "cuMemFree_v2": [c.c_uint64],
    "cuMemAdvise": [c.c_uint64, c.c_size_t, c.c_int, c.c_int],
    "cuStreamAttachMemAsync": [c.c_void_p, c.c_uint64, c.c_size_t, c.c_uint],
    "cuMemPrefetchAsync": [c.c_uint64, c.c_size_t, c.c_int, c.c_void_p],
    "cuMemHostRegister_v2": [c.c_void_p, c.c_size_t, c.c_uint],
    "cuMemHostUnregister": [c.c_void_p],
    "cuMemcpy": [c.c_uint64, c.c_uint64, c.c_size_t],
    "cuMemcpyHtoD_v2": [c.c_uint64, c.c_void_p, c.c_size_t],
    "cuMemcpyDtoD_v2": [c.c_uint64, c.c_uint64, c.c_size_t],
    "cuMemsetD8_v2": [c.c_uint64, c.c_ubyte, c.c_size_t],
    "cuGetErrorName": [c.c_int, c.c_void_p],
}


class Cuda:
    """One device's primary context. Safe to use from several threads."""

    def __init__(self, index: int, library: str = LIBRARY) -> None:
        try:
            self._library = c.CDLL(library)
        except OSError as error:
            raise DeviceUnavailable(f"NVIDIA's driver is missing ({error})") from None
        for name, parameters in _FUNCTIONS.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = c.c_int, parameters
        self._call("cuInit", 0)
        device, context = c.c_int(), c.c_void_p()
        self._call("cuDeviceGet", c.byref(device), index)
        self._device = device.value
        self._call("cuDevicePrimaryCtxRetain", c.byref(context), self._device)
        self._context = context

    @property
    def driver_version(self) -> str:
        """The newest CUDA release that the driver can run, such as `13.0`."""
        version = c.c_int()
        self._call("cuDriverGetVersion", c.byref(version))
        return f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"

    @property
    def device(self) -> int:
        """The device as `advise` and `prefetch` name it."""
        return self._device

    def attribute(self, which: Attribute) -> bool:
        """Whether the device has a property."""
        value = c.c_int()
        self._call("cuDeviceGetAttribute", c.byref(value), which, self._device)
        return bool(value.value)

    def free_nbytes(self) -> int:
        """Device memory that nobody uses."""
        free, total = c.c_size_t(), c.c_size_t()
        with self._current():
            self._call("cuMemGetInfo_v2", c.byref(free), c.byref(total))
        return free.value

    def allocate_managed(self, nbytes: int) -> HostAddr:
        """Memory at one address for processor and device; its contents are undefined."""
        address = c.c_uint64()
        with self._current():
            self._call("cuMemAllocManaged", c.byref(address), nbytes, _ATTACH_GLOBAL)
        return HostAddr(address.value)

    def free(self, address: HostAddr) -> None:
        """Frees managed memory."""
        with self._current():
            self._call("cuMemFree_v2", address)

    def register(self, address: HostAddr, nbytes: int) -> None:
        """Pins whole pages of the process and maps them to the device."""
        with self._current():
            self._call("cuMemHostRegister_v2", address, nbytes, _REGISTER_PORTABLE_AND_MAPPED)

    def unregister(self, address: HostAddr) -> None:
        """Takes `register` back."""
        with self._current():
            self._call("cuMemHostUnregister", address)

    def advise(self, address: HostAddr, nbytes: int, advice: Advice, where: int) -> None:
        """Says where managed pages are to live, or who maps them."""
        with self._current():
            self._call("cuMemAdvise", address, nbytes, advice, where)

    def prefetch(self, address: HostAddr, nbytes: int, where: int) -> None:
        """Moves managed pages to `where`, and waits for it."""
        with self._current():
            self._call("cuMemPrefetchAsync", address, nbytes, where, None)
            self._call("cuCtxSynchronize")

    def attach(self, address: HostAddr, *, to_device: bool) -> None:
        """Lets the device alone touch a managed allocation, or the processor alone."""
        flags = _ATTACH_GLOBAL if to_device else _ATTACH_HOST
        with self._current():
            self._call("cuStreamAttachMemAsync", None, address, 0, flags)
            self._call("cuCtxSynchronize")

    def copy(self, target: HostAddr, source: HostAddr, nbytes: int) -> None:
        """Copies wherever the bytes lie."""
        with self._current():
            self._call("cuMemcpy", target, source, nbytes)
            self._call("cuCtxSynchronize")

    def copy_to_device(self, target: HostAddr, source: HostAddr, nbytes: int) -> None:
        """Copies ordinary memory to where the target's pages lie in the device's memory."""
        with self._current():
            self._call("cuMemcpyHtoD_v2", target, source, nbytes)

    def copy_on_device(self, target: HostAddr, source: HostAddr, nbytes: int) -> None:
        """Copies bytes that both lie in the device's memory, at its speed."""
        with self._current():
            self._call("cuMemcpyDtoD_v2", target, source, nbytes)
            self._call("cuCtxSynchronize")

    def clear(self, address: HostAddr, nbytes: int) -> None:
        """Zeroes bytes on the device."""
        with self._current():
            self._call("cuMemsetD8_v2", address, 0, nbytes)
            self._call("cuCtxSynchronize")

    def close(self) -> None:
        """Lets the context go; ggml keeps its own hold of it."""
        self._library.cuDevicePrimaryCtxRelease_v2(self._device)

    @contextmanager
    def _current(self) -> Iterator[None]:
        self._call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent_v2", c.byref(c.c_void_p()))

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        if status == _OUT_OF_MEMORY:
            raise DeviceFailed(f"the device has no memory left ({name})")
        if status != 0:
            raise DeviceFailed(f"{name} failed: {self._error_name(status)}")

    def _error_name(self, status: int) -> str:
        text = c.c_char_p()
        self._library.cuGetErrorName(status, c.byref(text))
        return text.value.decode() if text.value else f"error {status}"
