"""A guest's memory of which the KV caches lie in the device's own memory.

::

    guest's memory   │ heap │ logits │ reserved for a cache │ heap │ logits │ reserved for … │
                     └── segments ───┘          │           └── segments ──┘       │
    device's memory                    │ slot │◄┘                        │ slot │◄─┘

Everything above places tensors by host address, as always; an address in a reserved range means a
place in a slot. No segment covers such a range, so its pages are neither pinned nor used: the guest
finds zeroes there. Snapshots, forks and evictions move the rows in use, and count the bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from isthmus.counters import Counters
from isthmus.device.buffer import Binding, Buffer, Import, Rows, segment_nbytes
from isthmus.device.caches import STAGE_NBYTES, CachePool, Piece, Slot, Stage
from isthmus.errors import DeviceFailed, ModelUnsupported
from isthmus.memory import Image, Region
from isthmus.native._ggml import tensor_at
from isthmus.units import OS_PAGE, DeviceAddr, GuestPtr, HostAddr, align_up

_MOSTLY = 4
"""A slot of which one part in so many is in use is copied whole: one copy takes as long as the rows
of two layers."""


@dataclass(frozen=True)
class _Kept:
    """A reserved range, and the slots that it stands for."""

    begin: HostAddr
    nbytes: int
    slots: tuple[Slot, ...]
    begins: tuple[int, ...]
    """Where each slot's part begins in the range: a part has whole planes."""

    @property
    def end(self) -> HostAddr:
        return HostAddr(self.begin + self.nbytes)

    def find(self, host: HostAddr) -> tuple[Slot, int]:
        """The slot of an address, and its offset there."""
        at = host - self.begin
        index = bisect_right(self.begins, at) - 1
        return self.slots[index], at - self.begins[index]


class OwnBinding(Binding):
    """See the module. Holds the slots of its caches until they are unsettled."""

    copies_from_others = False

    def __init__(
        self,
        make: Import,
        region: Region,
        pool: CachePool,
        counters: Counters,
        *,
        largest: int,
        seamless: bool = False,
    ) -> None:
        """`counters` are the device's; for the others see `Binding`."""
        self._region = region
        self._pool = pool
        self._counters = counters
        self._kept: list[_Kept] = []
        """Ascending."""
        self._source: Image | Binding | None = None
        super().__init__(make, region, largest=largest, seamless=seamless)

    # ------------------------------------------------------------------ addresses

    def place(self, tensor: int, host: HostAddr) -> None:
        struct = tensor_at(tensor)
        found = self._try_find(host, segment_nbytes(struct))
        if found is None:
            super().place(tensor, host)
            return
        slot, offset = found
        struct.buffer = slot.slab.buffer.handle
        struct.data = slot.address + offset

    def address(self, host: HostAddr) -> DeviceAddr:
        found = self._try_find(host, 1)
        if found is None:
            return super().address(host)
        slot, offset = found
        return DeviceAddr(slot.address + offset)

    def cover(self, host: HostAddr, nbytes: int) -> None:
        if self._try_find(host, nbytes) is None:
            super().cover(host, nbytes)

    # ------------------------------------------------------------------ KV caches

    def settle(self, host: HostAddr, planes: Sequence[int]) -> None:
        if max(planes) > self._pool.largest:
            raise ModelUnsupported(
                "the device has no buffers as large as the keys of one layer: use a smaller context"
            )
        parts = _parts(planes, self._pool.largest)
        with contextlib.ExitStack() as stack:
            slots = []
            for nbytes in parts:
                slot = self._pool.take(nbytes)
                stack.callback(self._pool.give, slot)
                slots.append(slot)
            stack.pop_all()
        begins = (*accumulate(parts[:-1], initial=0),)
        self._kept.append(_Kept(host, sum(planes), tuple(slots), begins))
        self._kept.sort(key=lambda it: it.begin)

    def unsettle(self, host: HostAddr) -> None:
        for kept in [it for it in self._kept if it.begin == host]:
            self._kept.remove(kept)
            for slot in kept.slots:
                self._pool.give(slot)

    @contextlib.contextmanager
    def thaw(self, source: Image | Binding | None) -> Iterator[None]:
        self._source = source
        try:
            yield
        finally:
            self._source = None
            self._forget_rows()

    def fill(self, rows: Rows) -> None:
        source = self._source
        if isinstance(source, OwnBinding):
            self._copy_rows(rows, source)
            return
        self._pool.stages.each(self._send, _pieces(rows))
        self._count(rows)

    @contextlib.contextmanager
    def on_host(self, rows: Rows) -> Iterator[None]:
        try:
            self._pool.stages.each(self._fetch, _pieces(rows))
            self._count(rows)
            yield
        finally:
            self._forget_rows()

    def read(self, host: HostAddr, nbytes: int) -> bytes:
        found = self._try_find(host, nbytes)
        if found is None:
            return super().read(host, nbytes)
        slot, offset = found
        data = (ctypes.c_ubyte * nbytes)()
        slot.fetch(HostAddr(ctypes.addressof(data)), offset, nbytes)
        self._counters.bytes_copied += nbytes
        return bytes(data)

    def write(self, host: HostAddr, data: bytes) -> None:
        found = self._try_find(host, len(data))
        if found is None:
            super().write(host, data)
            return
        slot, offset = found
        source = ctypes.create_string_buffer(data, len(data))
        slot.send(HostAddr(ctypes.addressof(source)), offset, len(data))
        self._counters.bytes_copied += len(data)

    def copy(self, target: HostAddr, source: HostAddr, nbytes: int) -> None:
        if self._try_find(target, nbytes) is None:
            super().copy(target, source, nbytes)
            return
        slot, offset = self._find(target, nbytes)
        slot.copy_from(offset, *self._find(source, nbytes), nbytes)
        self._counters.bytes_copied += nbytes

    def copy_to(self, target: HostAddr) -> None:
        base = self.memory.base
        ends = [it.end for it in self._kept]
        begins = [*(it.begin for it in self._kept), HostAddr(base + self._nbytes)]
        for begin, end in zip([base, *ends], begins, strict=True):
            ctypes.memmove(target + (begin - base), begin, end - begin)

    def clear(self, host: HostAddr, nbytes: int) -> None:
        """Gives pages that no segment has back to the system."""
        at, end = host, HostAddr(host + nbytes)
        for begin, stop in self._bound(host, end):
            self._empty(at, begin)
            super().clear(begin, stop - begin)
            at = stop
        self._empty(at, end)

    def close(self) -> None:
        for kept in list(self._kept):
            self.unsettle(kept.begin)
        super().close()

    # ------------------------------------------------------------------ parts

    def _try_find(self, host: HostAddr, nbytes: int) -> tuple[Slot, int] | None:
        """The slot of these bytes, and their offset in it; None if they lie in no cache.

        DeviceFailed if only part of them do: a guest's own tensor may end in a session.
        """
        index = bisect_right(self._kept, host, key=lambda it: it.begin) - 1
        kept = self._kept[index] if index >= 0 and host < self._kept[index].end else None
        ahead = self._kept[index + 1].begin if index + 1 < len(self._kept) else None
        if kept is None and (ahead is None or host + nbytes <= ahead):
            return None
        if kept is not None:
            slot, offset = kept.find(host)
            if offset + nbytes <= slot.nbytes:
                return slot, offset
        raise DeviceFailed(
            f"{nbytes} bytes lie partly in a KV cache, which is in the device's own memory: "
            "have tensors end before a session's span begins"
        )

    def _room(self, host: HostAddr) -> tuple[HostAddr, HostAddr]:
        lowest, highest = super()._room(host)
        for kept in self._kept:
            if kept.end <= host:
                lowest = HostAddr(max(lowest, kept.end // OS_PAGE * OS_PAGE))
            else:
                return lowest, HostAddr(min(highest, align_up(kept.begin, OS_PAGE)))
        return lowest, highest

    def _copy_rows(self, rows: Rows, source: OwnBinding) -> None:
        """Copies rows from where another binding has them; whole slots that are mostly in use."""
        slots: dict[tuple[Slot, Slot], list[tuple[int, int, int]]] = {}
        for host, nbytes in rows:
            there = HostAddr(source.memory.base + host - self.memory.base)
            (to, offset), (slot, begin) = self._find(host, nbytes), source._find(there, nbytes)
            slots.setdefault((to, slot), []).append((offset, begin, nbytes))
        for (to, slot), parts in slots.items():
            mostly = _MOSTLY * sum(nbytes for *_, nbytes in parts) >= to.nbytes == slot.nbytes
            for offset, begin, nbytes in [(0, 0, to.nbytes)] if mostly else parts:
                to.copy_from(offset, slot, begin, nbytes)
                self._counters.bytes_copied += nbytes

    def _send(self, stage: Stage, piece: Piece) -> None:
        """Never from the memory itself: CUDA copies nothing of which only some pages are pinned."""
        host, nbytes = piece
        if isinstance(self._source, Image):
            self._source.read(host - self.memory.base, stage.memory[:nbytes])
        else:
            ctypes.memmove(stage.address, host, nbytes)
        slot, offset = self._find(host, nbytes)
        slot.send(stage.address, offset, nbytes)

    def _fetch(self, stage: Stage, piece: Piece) -> None:
        host, nbytes = piece
        slot, offset = self._find(host, nbytes)
        slot.fetch(stage.address, offset, nbytes)
        ctypes.memmove(host, stage.address, nbytes)

    def _find(self, host: HostAddr, nbytes: int) -> tuple[Slot, int]:
        found = self._try_find(host, nbytes)
        assert found is not None, "rows of a cache lie in it"
        return found

    def _count(self, rows: Rows) -> None:
        self._counters.bytes_copied += sum(nbytes for _, nbytes in rows)

    def _forget_rows(self) -> None:
        """Leaves zeroes where caches are reserved."""
        for kept in self._kept:
            self.clear(kept.begin, kept.nbytes)

    def _bound(self, begin: HostAddr, end: HostAddr) -> list[tuple[HostAddr, HostAddr]]:
        """What of a range segments have, ascending, without overlaps."""
        found, at = [], begin
        for lowest, segment in sorted(self._segments, key=_begin):
            first, stop = max(lowest, at), min(HostAddr(lowest + segment.nbytes), end)
            if first < stop:
                found.append((first, stop))
                at = stop
        return found

    def _empty(self, begin: HostAddr, end: HostAddr) -> None:
        if begin < end:
            self._region.empty(GuestPtr(begin - self.memory.base), end - begin)


def _begin(segment: tuple[HostAddr, Buffer]) -> HostAddr:
    return segment[0]


def _pieces(rows: Rows) -> list[Piece]:
    """The same in pieces that fit a stage."""
    found = []
    for host, nbytes in rows:
        places = [*range(host, host + nbytes, STAGE_NBYTES), host + nbytes]
        found += [(HostAddr(at), stop - at) for at, stop in pairwise(places)]
    return found


def _parts(planes: Sequence[int], most: int) -> list[int]:
    """Bytes of runs of whole planes, each as long as `most` lets it be."""
    parts = [0]
    for nbytes in planes:
        if parts[-1] + nbytes > most:
            parts.append(0)
        parts[-1] += nbytes
    return parts
