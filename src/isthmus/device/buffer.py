"""Memory as a device sees it: buffers over ranges that we own, and buffers that the device owns."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from isthmus.device.graph import TensorContext
from isthmus.errors import DeviceFailed
from isthmus.memory import FileMapping, Image, Region
from isthmus.native import _ggml
from isthmus.native._ggml import GgmlType, tensor_at
from isthmus.native.loader import Library
from isthmus.native.owned import Owned
from isthmus.units import KIB, OS_PAGE, DeviceAddr, GuestPtr, HostAddr, align_up, format_nbytes

_QUICK_NBYTES = 64 * KIB
"""Sending so much more takes less time than sending twice."""


class Buffer(Owned):
    """Owns one ggml buffer. `base` is its first byte as the device addresses it."""

    def __init__(self, library: Library, handle: int, nbytes: int) -> None:
        super().__init__(handle, library.ggml_backend_buffer_free)
        self.library = library
        self.nbytes = nbytes
        self.base = DeviceAddr(library.ggml_backend_buffer_get_base(handle))
        self.is_host = bool(library.ggml_backend_buffer_is_host(handle))

    def place(self, tensor: int, address: DeviceAddr) -> None:
        """Puts a tensor's elements at `address` inside this buffer, for good. Raises DeviceFailed
        if the device refuses."""
        status = self.library.ggml_backend_tensor_alloc(self.handle, tensor, address)
        if status != 0:
            raise DeviceFailed(f"the device refused to place a tensor (status {status})")

    def clear(self) -> None:
        """Zeroes all of it."""
        self.library.ggml_backend_buffer_clear(self.handle, 0)

    def mark_weights(self) -> None:
        """Tells the device that the contents do not change."""
        self.library.ggml_backend_buffer_set_usage(self.handle, _ggml.BUFFER_USAGE_WEIGHTS)


Import = Callable[[HostAddr, int], Buffer]
"""(address, nbytes), whole OS pages -> a buffer over exactly those bytes, without a copy."""
Rows = Sequence[tuple[HostAddr, int]]
"""(address, nbytes) of rows of KV caches, by the addresses that they have in guests' memory."""


class Binding:
    """A Region or a mapped file, seen by the device without a copy. Holds it mapped until closed.

    Consists of segments, each made when a tensor is first placed in memory that none covers. A
    device that takes addresses which are not in use yet needs one, for the whole reservation;
    others get a further one when the guest's memory has grown, and for each `largest` bytes.
    """

    copies_from_others = True
    """Whether `copy` takes bytes of another Region of the same device."""
    copies = False
    """Whether the device computes on a copy, for which `send` and `fetch` are."""
    lends = False
    """Whether `lend` and `take_back` do something."""

    def __init__(
        self,
        make: Import,
        memory: Region | FileMapping,
        *,
        largest: int | None = None,
        seamless: bool = False,
    ) -> None:
        """`make` imports a range of at most `largest` bytes; None: the reservation at once.

        `seamless`: a tensor may lie across segments, which must not overlap.
        """
        self.memory = memory
        self._make = make
        self._largest = largest
        self._seamless = seamless
        self._segments: list[tuple[HostAddr, Buffer]] = []
        self._hold = memory.hold("a device binding") if isinstance(memory, Region) else None
        if largest is None:
            try:
                self._add(memory.base, self._limit)
            except BaseException:
                self.close()
                raise

    def place(self, tensor: int, host: HostAddr) -> None:
        """Puts a tensor's elements where they lie at `host`, for good.

        Its place is written directly: ggml's own call may clear what lies behind a quantised
        tensor, and behind it lies the guest's memory.
        """
        struct = tensor_at(tensor)
        begin, segment = self._segment(host, segment_nbytes(struct))
        struct.buffer = segment.handle
        struct.data = segment.base + (host - begin)

    def address(self, host: HostAddr) -> DeviceAddr:
        """Where the device sees the byte at `host`; `host` where it shares as `same`."""
        begin, segment = self._segment(host, 1)
        return DeviceAddr(segment.base + (host - begin))

    def cover(self, host: HostAddr, nbytes: int) -> None:
        """Has the device address these bytes, in which kernels work though no tensor is placed."""
        self._segment(host, nbytes)

    def send(self, host: HostAddr, nbytes: int) -> None:
        """Has the device see what was written at `host`; nothing to do in the same memory."""

    def fetch(self, host: HostAddr, nbytes: int) -> None:
        """Has the guest see what the device wrote at `host`; nothing to do in the same memory."""

    def lend(self) -> None:
        """Leaves the memory to the device: nobody touches it until `take_back`."""

    def take_back(self) -> None:
        """Ends what `lend` began."""

    # ------------------------------------------------------------------ KV caches

    def settle(self, host: HostAddr, planes: Sequence[int]) -> None:
        """Has a KV cache live where the device reads it fastest: planes of so many bytes, one
        behind the other.

        Raises Overloaded if the device has no room for it.
        """

    def unsettle(self, host: HostAddr) -> None:
        """Ends what `settle` began at `host`; a second call does nothing."""

    def thaw(self, source: Image | Binding | None) -> AbstractContextManager[None]:
        """While open, `fill` takes rows from `source`, by their place in it; None: from memory."""
        return nullcontext()

    def fill(self, rows: Rows) -> None:
        """Has settled caches begin with these rows, which lie in the memory or in what is thawed;
        nothing to do where caches lie in the memory."""

    def on_host(self, rows: Rows) -> AbstractContextManager[None]:
        """While open, the processor may read the memory from end to end, and finds these rows of
        caches there."""
        return nullcontext()

    def read(self, host: HostAddr, nbytes: int) -> bytes:
        """Bytes at `host`, as the device sees them."""
        self.fetch(host, nbytes)
        return ctypes.string_at(host, nbytes)

    def write(self, host: HostAddr, data: bytes) -> None:
        """Puts bytes at `host`, for the guest and the device."""
        ctypes.memmove(host, data, len(data))
        self.send(host, len(data))

    def copy(self, target: HostAddr, source: HostAddr, nbytes: int) -> None:
        """Copies within the memory."""
        ctypes.memmove(target, source, nbytes)

    def copy_to(self, target: HostAddr) -> None:
        """Copies all of the memory to `target`, where another Region begins; but for caches that
        lie elsewhere."""
        ctypes.memmove(target, self.memory.base, self._nbytes)

    def clear(self, host: HostAddr, nbytes: int) -> None:
        """Zeroes bytes of a Region."""
        assert isinstance(self.memory, Region)
        self.memory.clear(GuestPtr(host - self.memory.base), nbytes)

    def mark_weights(self) -> None:
        """Tells the device that the contents do not change, once all tensors are placed."""
        for _, segment in self._segments:
            segment.mark_weights()

    @property
    def n_segments(self) -> int:
        """How many ranges were imported."""
        return len(self._segments)

    def close(self) -> None:
        """Frees the buffers, then lets go of the memory; a second call does nothing."""
        while self._segments:
            self._segments.pop()[1].close()
        if self._hold is not None:
            self._hold.release()

    def __enter__(self) -> Binding:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def _limit(self) -> int:
        """Bytes that may be imported now."""
        if isinstance(self.memory, Region) and self._largest is None:
            return self.memory.reserved_nbytes
        return self._nbytes

    @property
    def _nbytes(self) -> int:
        """Bytes that are there now."""
        memory = self.memory
        return memory.mapped_nbytes if isinstance(memory, FileMapping) else memory.nbytes

    def _room(self, _host: HostAddr) -> tuple[HostAddr, HostAddr]:
        """The whole pages around `host` that a segment may have: where they begin and end."""
        return self.memory.base, HostAddr(self.memory.base + self._limit)

    def _segment(self, host: HostAddr, nbytes: int) -> tuple[HostAddr, Buffer]:
        if self._seamless:
            self._close_gaps(host, HostAddr(host + nbytes))
            nbytes = 1
        for begin, segment in self._segments:
            if begin <= host and host + nbytes <= begin + segment.nbytes:
                return begin, segment
        lowest, highest = self._room(host)
        largest = self._largest or highest - lowest
        ends = [at + it.nbytes for at, it in self._segments if lowest <= at < highest]
        covered = max(ends, default=lowest)
        page = HostAddr(host // OS_PAGE * OS_PAGE)
        if covered <= host and host + nbytes <= covered + largest:
            first, end = HostAddr(covered), highest
        else:  # across the end of a segment, or far behind the last one
            first, end = page, HostAddr(align_up(host + nbytes, OS_PAGE))
        if end - first > largest and host + nbytes > first + largest:
            raise DeviceFailed(
                f"the device addresses at most {format_nbytes(largest)} at once; "
                f"a tensor has {format_nbytes(nbytes)}"
            )
        return self._add(first, min(end - first, largest))

    def _close_gaps(self, host: HostAddr, end: HostAddr) -> None:
        """Adds segments until there is one at each address from `host` to `end`."""
        at = host
        while at < end:
            lowest, highest = self._room(at)
            for begin, segment in self._segments:
                stop = HostAddr(begin + segment.nbytes)
                if begin <= at < stop:
                    highest = stop
                    break
                lowest = max(lowest, stop) if stop <= at else lowest
                highest = min(highest, begin) if begin > at else highest
            else:
                assert lowest <= at < highest, "the bytes lie in the memory"
                self._add(lowest, highest - lowest)
            at = highest

    def _add(self, begin: HostAddr, nbytes: int) -> tuple[HostAddr, Buffer]:
        segment = begin, self._make(begin, nbytes)
        self._segments.append(segment)
        return segment


def segment_nbytes(tensor: _ggml.Tensor) -> int:
    """The bytes from a tensor's first element to its last, strides included."""
    last = sum((n - 1) * stride for n, stride in list(zip(tensor.ne, tensor.nb, strict=True))[1:])
    return int(last + tensor.nb[1])


class WholeTensor:
    """Owns the description of a tensor over all bytes of a buffer: how ggml moves raw bytes."""

    def __init__(self, buffer: Buffer) -> None:
        self._library = buffer.library
        self._context = TensorContext(buffer.library, 1)
        self._tensor = self._context.tensor(GgmlType.I32, buffer.nbytes // 4)
        buffer.place(self._tensor, buffer.base)

    def send(self, source: HostAddr, offset: int, nbytes: int) -> None:
        """Copies from the process's memory into the buffer, and waits for it."""
        self._library.ggml_backend_tensor_set(self._tensor, source, offset, nbytes)

    def enqueue(self, backend: int, source: HostAddr, offset: int, nbytes: int) -> None:
        """The same before what a backend is given next; `source` stays as it is until then."""
        set_async = self._library.ggml_backend_tensor_set_async
        set_async(backend, self._tensor, source, offset, nbytes)

    def fetch(self, target: HostAddr, offset: int, nbytes: int) -> None:
        """Copies from the buffer into the process's memory, and waits for it."""
        self._library.ggml_backend_tensor_get(self._tensor, target, offset, nbytes)

    def clear(self, offset: int, nbytes: int) -> None:
        """Zeroes bytes of the buffer, and waits for it."""
        self._library.ggml_backend_tensor_memset(self._tensor, 0, offset, nbytes)

    def close(self) -> None:
        """Frees the description."""
        self._context.close()


class InputBuffer(Buffer):
    """Plain device memory for what kernels use as addresses: ids, positions, indices, masks.

    A guest must not be able to change an index after it was checked, so these never lie in its
    memory. `stage` gives host-visible bytes; `push` sends them and `pull` fetches them, and both
    do nothing where the device's memory is the host's.
    """

    def __init__(self, library: Library, handle: int, nbytes: int, staging: int = 0) -> None:
        """`staging`: the ggml buffer type of host memory that the device fetches from; 0: any."""
        super().__init__(library, handle, nbytes)
        self._whole: WholeTensor | None = None
        self._pinned: Buffer | None = None
        self._queue = 0
        self._waiting: list[tuple[int, int]] = []
        """(begin, end) of what was pushed and not sent yet."""
        if self.is_host:
            self._staging = (ctypes.c_ubyte * nbytes).from_address(self.base)
            return
        self._whole = WholeTensor(self)
        if pinned := staging and library.ggml_backend_buft_alloc_buffer(staging, nbytes):
            self._pinned = Buffer(library, pinned, nbytes)
            self._staging = (ctypes.c_ubyte * nbytes).from_address(self._pinned.base)
        else:
            self._staging = (ctypes.c_ubyte * nbytes)()

    @property
    def stage(self) -> memoryview:
        """All of the buffer's bytes on the host side, writable."""
        return memoryview(self._staging).cast("B")

    def zero(self, begin: int, end: int) -> None:
        """Zeroes bytes on the device, and waits for it."""
        if self._whole is None:
            ctypes.memset(self._staged(begin), 0, end - begin)
        else:
            self._whole.clear(begin, end - begin)

    def order_with(self, backend: int) -> None:
        """From now on what is pushed is sent by `flush`, which waits for nothing.

        What is submitted to that backend comes after it; what was staged must stay until then.
        """
        self._queue = backend

    def push(self, offset: int, nbytes: int) -> None:
        """Sends staged bytes to the device."""
        if self._whole is None:
            return
        if self._queue:
            self._waiting.append((offset, offset + nbytes))
        else:
            self._whole.send(self._staged(offset), offset, nbytes)

    def flush(self) -> None:
        """Sends all that was pushed since the last time, in as few pieces as is quick."""
        if not self._waiting or self._whole is None:
            return
        self._waiting.sort()
        begin, end = self._waiting[0]
        for first, last in (*self._waiting[1:], (sys.maxsize, 0)):
            if first - end <= _QUICK_NBYTES:
                end = max(end, last)
                continue
            self._whole.enqueue(self._queue, self._staged(begin), begin, end - begin)
            begin, end = first, last
        self._waiting.clear()

    def pull(self, offset: int, nbytes: int) -> None:
        """Fetches bytes from the device."""
        if self._whole is not None:
            self._whole.fetch(self._staged(offset), offset, nbytes)

    def close(self) -> None:
        if self._whole is not None:
            self._whole.close()
        if self._pinned is not None:
            self._pinned.close()
        super().close()

    def _staged(self, offset: int) -> HostAddr:
        return HostAddr(ctypes.addressof(self._staging) + offset)
