"""Memory as a device sees it: buffers over ranges that we own, and buffers that the device owns."""

from __future__ import annotations

import ctypes

from isthmus.errors import DeviceFailed
from isthmus.memory import FileMapping, Region
from isthmus.native import _ggml
from isthmus.native.loader import Library
from isthmus.native.owned import Owned
from isthmus.units import DeviceAddr, HostAddr


class Buffer(Owned):
    """Owns one ggml buffer. `base` is its first byte as the device addresses it."""

    def __init__(self, library: Library, handle: int, nbytes: int) -> None:
        super().__init__(handle, library.ggml_backend_buffer_free)
        self.library = library
        self.nbytes = nbytes
        self.base = DeviceAddr(library.ggml_backend_buffer_get_base(handle))
        self.is_host = bool(library.ggml_backend_buffer_is_host(handle))

    def place(self, tensor: int, address: DeviceAddr) -> None:
        """Puts a tensor's elements at `address` inside this buffer, for good."""
        status = self.library.ggml_backend_tensor_alloc(self.handle, tensor, address)
        if status != 0:
            raise DeviceFailed(f"the device refused to place a tensor (status {status})")

    def mark_weights(self) -> None:
        """Tells the device that the contents do not change."""
        self.library.ggml_backend_buffer_set_usage(self.handle, _ggml.BUFFER_USAGE_WEIGHTS)


class Binding(Buffer):
    """A Region or a mapped file, seen by the device without a copy. Holds it mapped until closed.

    `address` translates; on a device that shares as `same` it returns the number that it was given.
    """

    def __init__(
        self, library: Library, handle: int, memory: Region | FileMapping, nbytes: int
    ) -> None:
        super().__init__(library, handle, nbytes)
        self.memory = memory
        self._hold = memory.hold("a device binding") if isinstance(memory, Region) else None

    def close(self) -> None:
        """Frees the buffer, then lets go of the memory."""
        super().close()
        if self._hold is not None:
            self._hold.release()

    def address(self, host: HostAddr) -> DeviceAddr:
        """Where the device sees the byte at `host`."""
        return DeviceAddr(self.base + (host - self.memory.base))


class InputBuffer(Buffer):
    """Plain device memory for what kernels use as addresses: ids, positions, indices, masks.

    A guest must not be able to change an index after it was checked, so these never lie in its
    memory. `stage` gives host-visible bytes; `push` sends them, and does nothing where the
    device's memory is the host's.
    """

    def __init__(self, library: Library, handle: int, nbytes: int) -> None:
        super().__init__(library, handle, nbytes)
        if self.is_host:
            self._staging = (ctypes.c_ubyte * nbytes).from_address(self.base)
        else:
            self._staging = (ctypes.c_ubyte * nbytes)()

    @property
    def stage(self) -> memoryview:
        """All of the buffer's bytes on the host side, writable."""
        return memoryview(self._staging).cast("B")

    def push(self, tensor: int, offset: int, start: int = 0, nbytes: int | None = None) -> None:
        """Sends `nbytes` from `start` of the tensor staged at `offset` of this buffer."""
        if not self.is_host:
            source = ctypes.addressof(self._staging) + offset + start
            count = self.library.ggml_nbytes(tensor) - start if nbytes is None else nbytes
            self.library.ggml_backend_tensor_set(tensor, source, start, count)
