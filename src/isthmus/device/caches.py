"""KV caches in a device's own memory, for devices that read guests' memory through a bus.

::

    pool ── slots of 32 MiB ── slab │ slot │ slot │ free │ slot │   one buffer of the device
         │                  └─ slab │ free │ slot │ free │ free │
         └─ slots of 1 GiB ─── slab │ slot │

Slots of a slab lie at equal distances, so that sessions in them can share a kernel of attention
(`model/passes/joining.py`). A slab has as many slots as are taken of its kind, within bounds, and
is freed with its last one. A pool owns its slabs; whoever took a slot gives it back.
"""

from __future__ import annotations

import contextlib
import ctypes
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from isthmus.device.buffer import Buffer, WholeTensor
from isthmus.device.graph import TensorContext
from isthmus.errors import DeviceFailed, Overloaded
from isthmus.native._ggml import GgmlType
from isthmus.native.loader import Library
from isthmus.units import GIB, MIB, DeviceAddr, HostAddr, align_up, format_nbytes

_ALIGNMENT = 256
"""What every device wants of a tensor's place."""
_FIRST_NBYTES = 128 * MIB
"""A first slab, if so much holds several slots."""
_FIRST_SLOTS = 8
"""Slots of a first slab, if they take less than one part in `_SLABS_OF_ALL` of the memory: what is
in one slab is one run of attention, and each run is filled up to whole groups."""
_SLAB_NBYTES = 1 * GIB
_SLABS_OF_ALL = 32
"""A slab takes one part in so many of the device's memory, or `_SLAB_NBYTES` if that is more."""
STAGE_NBYTES = 4 * MIB
"""Bytes that are moved at once."""
_FEW_NBYTES = 16 * MIB
"""Moved by the calling thread alone."""
_N_STAGES = 8
"""Threads that move rows of one session: one alone reads a file at a tenth of a bus's speed."""

MakeRoom = Callable[[int], tuple[int, str]]
"""nbytes -> how many bytes were freed by evicting idle actors, and why it was not more."""
Piece = tuple[HostAddr, int]
"""(address, nbytes) of bytes in a guest's memory, at most `STAGE_NBYTES`."""


class Slab:
    """One buffer of the device, cut into slots of one size."""

    def __init__(self, buffer: Buffer, slot_nbytes: int) -> None:
        self.buffer = buffer
        self.slot_nbytes = slot_nbytes
        self.n_slots = buffer.nbytes // slot_nbytes
        self.free = list(range(self.n_slots))
        """The numbers of slots that nobody has, ascending."""
        self.whole = WholeTensor(buffer)

    def close(self) -> None:
        """Frees the buffer."""
        self.whole.close()
        self.buffer.close()


class Slot:
    """A part of a slab that belongs to one KV cache, or to part of a large one."""

    def __init__(self, slab: Slab, index: int, nbytes: int) -> None:
        self.slab = slab
        self.index = index
        self.nbytes = nbytes
        self.offset = index * slab.slot_nbytes
        """Where it begins in the slab."""

    @property
    def address(self) -> DeviceAddr:
        """Its first byte as the device addresses it."""
        return DeviceAddr(self.slab.buffer.base + self.offset)

    def send(self, source: HostAddr, offset: int, nbytes: int) -> None:
        """Copies from the process's memory to `offset` of the slot."""
        self.slab.whole.send(source, self.offset + offset, nbytes)

    def fetch(self, target: HostAddr, offset: int, nbytes: int) -> None:
        """Copies from `offset` of the slot into the process's memory."""
        self.slab.whole.fetch(target, self.offset + offset, nbytes)

    def copy_from(self, offset: int, source: Slot, begin: int, nbytes: int) -> None:
        """Copies within the device: from byte `begin` of `source` to `offset` of this one.

        `nbytes` is even, as rows of every type are.
        """
        library = self.slab.buffer.library
        with TensorContext(library, 2) as context:
            places = ((source, begin), (self, offset))
            tensors = [context.tensor(GgmlType.F16, nbytes // 2) for _ in places]
            for tensor, (slot, at) in zip(tensors, places, strict=True):
                slot.slab.buffer.place(tensor, DeviceAddr(slot.address + at))
            library.ggml_backend_tensor_copy(*tensors)

    def clear(self) -> None:
        """Zeroes it."""
        self.slab.whole.clear(self.offset, self.slab.slot_nbytes)


class CachePool:
    """See the module. Safe to use from several threads."""

    def __init__(
        self,
        name: str,
        allocate: Callable[[int], Buffer],
        memory_nbytes: int,
        largest: int,
        stages: Stages,
    ) -> None:
        """`name` is the device's, `allocate` takes its own memory or raises DeviceFailed.
        `memory_nbytes` is all that it has, `largest` what one buffer can have. The pool closes
        `stages`."""
        self.stages = stages
        """What rows pass through."""
        self.largest = largest
        """Bytes that one slot can have."""
        self.make_room: MakeRoom = lambda _nbytes: (0, "nobody can be evicted")
        self._name = name
        self._allocate = allocate
        part = memory_nbytes // _SLABS_OF_ALL
        self._slab_nbytes = min(max(_SLAB_NBYTES, part), largest)
        self._part_nbytes = part
        self._lock = threading.Lock()
        self._slabs: dict[int, list[Slab]] = {}
        """By the size of their slots."""

    @property
    def taken_nbytes(self) -> int:
        """The device's memory in slabs, whether their slots are taken or not."""
        with self._lock:
            return sum(it.buffer.nbytes for slabs in self._slabs.values() for it in slabs)

    def take(self, nbytes: int) -> Slot:
        """A slot of zeroes; idle actors are evicted if there is no room for it. Overloaded."""
        while True:
            with self._lock:
                slot = self._try_take(nbytes)
            if slot is not None:
                with contextlib.ExitStack() as stack:
                    stack.callback(self.give, slot)
                    slot.clear()
                    stack.pop_all()
                return slot
            freed, why = self.make_room(nbytes)  # without the lock: it gives slots back
            if not freed:
                raise Overloaded(
                    f"the device {self._name} has no {format_nbytes(nbytes)} of its memory left "
                    f"for a KV cache, and {why}: close agents or models, or use a smaller "
                    "context, KV type or model"
                )

    def give(self, slot: Slot) -> None:
        """Takes a slot back."""
        slab = slot.slab
        with self._lock:
            slab.free = sorted([*slab.free, slot.index])
            if len(slab.free) < slab.n_slots:
                return
            slabs = self._slabs[slab.slot_nbytes]
            slabs.remove(slab)
            if not slabs:
                del self._slabs[slab.slot_nbytes]
        slab.close()

    def close(self) -> None:
        """Frees the stages, once all slots are given back."""
        self.stages.close()

    def _try_take(self, nbytes: int) -> Slot | None:
        """A slot as it is; None if the device has no memory left."""
        slot_nbytes = align_up(nbytes, _ALIGNMENT)
        slabs = self._slabs.get(slot_nbytes, [])
        slab = next((it for it in slabs if it.free), None)
        if slab is None:
            slab = self._try_slab(slot_nbytes, sum(it.n_slots for it in slabs))
            if slab is None:
                return None
            self._slabs.setdefault(slot_nbytes, []).append(slab)
        return Slot(slab, slab.free.pop(0), nbytes)

    def _try_slab(self, slot_nbytes: int, n_before: int) -> Slab | None:
        """A new slab of as many slots as there are, or of fewer if memory is short."""
        most = max(1, self._slab_nbytes // slot_nbytes)
        few = min(_FIRST_SLOTS, self._part_nbytes // slot_nbytes)
        first = max(_FIRST_NBYTES // slot_nbytes, few)
        n = min(max(n_before, first, 1), most)
        while n:
            with contextlib.suppress(DeviceFailed):
                return Slab(self._allocate(n * slot_nbytes), slot_nbytes)
            n //= 2
        return None


class Stages:
    """Pieces of memory that a device reads and writes fastest, through which rows are moved.

    Owned by a device; each is used by one thread at a time.
    """

    def __init__(self, library: Library, buffer_type: int) -> None:
        """`buffer_type`: ggml's, of pinned memory; 0 if the device has no such type."""
        self._library = library
        self._type = buffer_type
        self._idle: queue.LifoQueue[Stage] = queue.LifoQueue(_N_STAGES)

    def each(self, work: Callable[[Stage, Piece], None], pieces: Sequence[Piece]) -> None:
        """Calls `work` for each piece, with a stage; several at a time if they are large."""

        def one(piece: Piece) -> None:
            with self._stage() as stage:
                work(stage, piece)

        if sum(nbytes for _, nbytes in pieces) <= _FEW_NBYTES:
            for piece in pieces:
                one(piece)
            return
        with ThreadPoolExecutor(_N_STAGES, "isthmus rows") as pool:
            for _ in pool.map(one, pieces):
                pass

    def close(self) -> None:
        """Frees the memory."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()

    @contextlib.contextmanager
    def _stage(self) -> Iterator[Stage]:
        try:
            stage = self._idle.get_nowait()
        except queue.Empty:
            stage = Stage(self._library, self._type)
        try:
            yield stage
        finally:
            try:
                self._idle.put_nowait(stage)
            except queue.Full:
                stage.close()


class Stage:
    """One piece of such memory, `STAGE_NBYTES` long."""

    def __init__(self, library: Library, buffer_type: int) -> None:
        self._pinned: Buffer | None = None
        if buffer_type and (
            handle := library.ggml_backend_buft_alloc_buffer(buffer_type, STAGE_NBYTES)
        ):
            self._pinned = Buffer(library, handle, STAGE_NBYTES)
            self._bytes = (ctypes.c_ubyte * STAGE_NBYTES).from_address(self._pinned.base)
        else:
            self._bytes = (ctypes.c_ubyte * STAGE_NBYTES)()
        self.memory = memoryview(self._bytes).cast("B")
        """u8 [STAGE_NBYTES], writable."""
        self.address = HostAddr(ctypes.addressof(self._bytes))

    def close(self) -> None:
        """Frees the memory."""
        self.memory.release()
        if self._pinned is not None:
            self._pinned.close()
