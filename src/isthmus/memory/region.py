"""A reserved, page-aligned range of host addresses: the only owner of guest-visible bytes.

::

    base                       base + nbytes           base + reserved_nbytes
     │ committed: read, write   │ reserved: no access   │ guard: no access │
     └──────────────────────────┴───────────────────────┴──────────────────┘

========  =============================================================================
state     what holds
========  =============================================================================
open      `base` never moves; `nbytes` only grows, up to `reserved_nbytes`
held      as open, and `close` raises RegionBusy: a view or a device may touch the bytes
closed    the addresses are given back; every method raises RegionError
========  =============================================================================

An access of the guest beyond `nbytes` meets pages without access and traps.

Pages of an image and cleared pages between them are mappings of their own, of which a process has
some 65,000. A Region counts the most that it may have: it has its share of `MAPPINGS`, and zeroes
in place what would cut it into more than `MAX_MAPPINGS`.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from isthmus.errors import RegionBusy, RegionError
from isthmus.memory.image import Image, LiveImage
from isthmus.memory.quota import MAPPINGS, Share
from isthmus.memory.rescue import Leave, NamedFile
from isthmus.native import libc
from isthmus.units import OS_PAGE, GuestPtr, HostAddr, align_up


class Hold:
    """A promise that a Region stays mapped until `release`. Owned by whoever touches the bytes."""

    def __init__(self, region: Region, holder: str) -> None:
        self.holder = holder
        self._region: Region | None = region

    def release(self) -> None:
        """Ends the promise; a second call does nothing."""
        region, self._region = self._region, None
        if region is not None:
            region._drop(self)

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


MAX_MAPPINGS = 4096
"""Mappings that a guest may cut one Region into; all Regions together have a part of `MAPPINGS`."""
_OWN_MAPPINGS = 3
"""Of a Region without an image: what is in use, what is reserved, and room for growth."""

Commit = Callable[[int, int], None]
"""(address, nbytes), whole pages: makes them usable, and zero."""

_HoldType = TypeVar("_HoldType", bound=Hold)


class RegionView(Hold):
    """A writable `memory` over part of a Region, which cannot close before `release`."""

    def __init__(self, region: Region, offset: int, nbytes: int) -> None:
        super().__init__(region, f"a view of {nbytes} bytes at offset {offset}")
        array = (ctypes.c_ubyte * nbytes).from_address(region.address(GuestPtr(offset), nbytes))
        self.memory = memoryview(array).cast("B")

    def release(self) -> None:
        self.memory.release()
        super().release()

    def __enter__(self) -> RegionView:
        return self


class Region:
    """See the module. Made by `Region.reserve` or, for managed memory, by a device."""

    def __init__(
        self,
        base: HostAddr,
        reserved_nbytes: int,
        nbytes: int,
        free: Callable[[], object],
        remappable: bool = False,
        commit: Commit = libc.commit,
        ordinary: bool = False,
    ) -> None:
        self.base = base
        self.reserved_nbytes = reserved_nbytes
        self.nbytes = nbytes
        self.remappable = remappable
        """Whether its pages may be replaced by those of a file; a device's own memory cannot."""
        self._ordinary = ordinary
        """Whether the system supplies its pages and can have them back while no device has them."""
        self._commit = commit
        self.image: Image | None = None
        """The frozen bytes that pages hold which nobody wrote to since `load`."""
        self.cleared = bytearray()
        """u8, 1 for each OS page that `clear` has taken from the image: absent means zero there."""
        self.n_views = 0
        """Writable views ever made: somebody but the guest may have written."""
        self.lost = False
        """Whether `load` failed in the middle, so that the bytes are neither old nor new."""
        self.leave: Leave | None = None
        """Has the owner bring the bytes into memory of its own; from any thread: see `rescue`."""
        self._files: list[NamedFile] = []
        """What its pages may be of, and others can write to."""
        self._mappings = mappings = Share(MAPPINGS)
        self._finalizer = weakref.finalize(self, _free, free, mappings)
        self._finalizer.atexit = False  # a daemon thread may still be inside the guest
        self._holds: list[Hold] = []
        self._lock = threading.Lock()

    @classmethod
    def reserve(
        cls,
        reserved_nbytes: int,
        guard_nbytes: int = 0,
        nbytes: int = 0,
        *,
        remappable: bool = True,
    ) -> Region:
        """Reserves addresses and commits the first `nbytes` of them.

        A device that pins pages wants a Region that is not `remappable`. Raises RegionError where
        the system has no such range or not enough memory, Overloaded where there are too many.
        """
        whole = align_up(reserved_nbytes, OS_PAGE) + align_up(guard_nbytes, OS_PAGE)
        if whole == 0:
            raise RegionError("cannot reserve a range of 0 bytes")
        MAPPINGS.take(_OWN_MAPPINGS)
        try:
            base = HostAddr(libc.reserve(whole))
            try:
                libc.commit(base, nbytes)
            except RegionError:
                libc.unmap(base, whole)
                raise
        except RegionError:
            MAPPINGS.give(_OWN_MAPPINGS)
            raise
        free = partial(libc.unmap, base, whole)
        region = cls(base, reserved_nbytes, nbytes, free, remappable, ordinary=True)
        region._mappings.n = _OWN_MAPPINGS
        return region

    @property
    def closed(self) -> bool:
        """True once the addresses are given back."""
        return not self._finalizer.alive

    @property
    def n_holds(self) -> int:
        """How many views, sessions and bindings hold it now."""
        return len(self._holds)

    def grow(self, nbytes: int) -> None:
        """Commits up to `nbytes` from the base; never shrinks, never moves.

        Raises RegionError past the reservation or when memory is exhausted; nothing changed then.
        """
        self._require_open()
        if nbytes > self.reserved_nbytes:
            raise RegionError(f"cannot grow to {nbytes} bytes: {self.reserved_nbytes} are reserved")
        if nbytes > self.nbytes:
            start = self.nbytes // OS_PAGE * OS_PAGE
            self._commit(self.base + start, align_up(nbytes, OS_PAGE) - start)
            self.nbytes = nbytes

    def address(self, ptr: GuestPtr, nbytes: int) -> HostAddr:
        """The host address of `nbytes` at offset `ptr`; RegionError where they are not inside."""
        self._require_open()
        if ptr < 0 or nbytes < 0 or ptr + nbytes > self.nbytes:
            raise RegionError(f"{nbytes} bytes at offset {ptr} do not lie in {self.nbytes} bytes")
        return HostAddr(self.base + ptr)

    def clear(self, ptr: GuestPtr, nbytes: int) -> None:
        """Zeroes `nbytes` at `ptr`, giving whole OS pages back to the system where it can."""
        start = self.address(ptr, nbytes)
        first = align_up(start, OS_PAGE)
        end = (start + nbytes) // OS_PAGE * OS_PAGE
        if not (self.remappable and first < end and self._may_cut()):
            self._zero(start, nbytes)
            return
        ctypes.memset(start, 0, first - start)
        try:
            libc.renew(first, end - first)
        except RegionError:  # for want of mappings; writing needs none
            self._zero(HostAddr(first), end - first)
        ctypes.memset(end, 0, start + nbytes - end)
        if self.image is not None:
            pages = range(ptr // OS_PAGE, -(-(ptr + nbytes) // OS_PAGE))
            self.cleared.extend(bytes(max(0, pages.stop - len(self.cleared))))
            self.cleared[pages.start : pages.stop] = b"\1" * len(pages)

    def empty(self, ptr: GuestPtr, nbytes: int) -> None:
        """Zeroes `nbytes` at `ptr`, giving whole OS pages back to the system.

        For pages of ordinary memory that no device has pinned, and no image.
        """
        start = self.address(ptr, nbytes)
        first, end = align_up(start, OS_PAGE), (start + nbytes) // OS_PAGE * OS_PAGE
        if first >= end:
            self._zero(start, nbytes)
            return
        self._zero(start, first - start)
        libc.empty(first, end - first)
        self._zero(HostAddr(end), start + nbytes - end)

    def load(self, image: Image | LiveImage, apart: Sequence[tuple[int, int]] = ()) -> int:
        """Makes the first `image.nbytes` those of `image`, copy-on-write; all others become zero,
        and so do the ranges `apart`, (offset, nbytes).

        Returns how many bytes had to be copied: 0 where the image's files can be mapped. Raises
        RegionError or Overloaded: nothing has changed then, or `lost` is true.
        """
        self.address(GuestPtr(0), image.nbytes)
        files: list[NamedFile] = []
        if self.remappable and isinstance(image, Image):
            self._take_mappings(image)
            files = _named_files(image)
            self._enter(files)
        self._renew()
        try:
            n_copied = self._place_somehow(image, apart)
        except BaseException:
            self.lost, self.image = True, None
            raise
        self._files = files
        whole = n_copied == 0 and not apart
        self.image = image if whole and isinstance(image, Image) else None
        self.cleared.clear()
        return n_copied

    def maps(self, file: NamedFile) -> bool:
        """Whether pages of it may be those of that file."""
        return not self.closed and file in self._files

    @property
    def maps_files(self) -> bool:
        """Whether pages of it may be those of files that others can write to."""
        return bool(self._files)

    def view(self, offset: int, nbytes: int) -> RegionView:
        """A writable memoryview of `nbytes` at `offset`, to be used in a `with`."""
        self.n_views += 1
        return self._add(RegionView(self, offset, nbytes))

    def hold(self, holder: str) -> Hold:
        """Keeps the Region mapped until the hold is released; `holder` says who and why."""
        self._require_open()
        return self._add(Hold(self, holder))

    def __enter__(self) -> Region:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the addresses back; RegionBusy, and nothing happens, while somebody holds them."""
        with self._lock:
            if self._holds:
                holders = ", ".join(hold.holder for hold in self._holds[:4])
                raise RegionBusy(f"the region is still held by {holders}")
            self._finalizer()
            self.image, self._files, self.leave = None, [], None

    def _take_mappings(self, image: Image) -> None:
        """Has as many mappings as the image needs, which is brought together if they are too many.

        Overloaded, RegionError; nothing has changed then.
        """
        if len(image.extents) > 1 and not self._mappings.try_resize(_mappings_over(image)):
            image.bring_together()
        self._mappings.resize(_mappings_over(image))

    def _enter(self, files: list[NamedFile]) -> None:
        """Notes that it is about to map files. RegionError, and nothing has changed."""
        before = self._files
        self._files = before + files
        try:
            for file in files:
                file.enter(self)
        except RegionError:
            self._files = before
            raise

    def _renew(self) -> None:
        """Makes all that is in use zero."""
        whole = align_up(self.nbytes, OS_PAGE)
        if self.remappable and whole:
            libc.renew(self.base, whole)
        elif self._ordinary and not self._holds and whole:
            libc.empty(self.base, whole)
        else:
            self._zero(self.base, self.nbytes)

    def _place_somehow(self, image: Image | LiveImage, apart: Sequence[tuple[int, int]]) -> int:
        """As `_place`; an image that cannot be mapped, for want of mappings, is copied."""
        try:
            return self._place(image, apart)
        except RegionError:
            if not (self.remappable and isinstance(image, Image)):
                raise
        self._renew()  # no page may be missing
        return image.place(self.base, map_files=False, apart=apart)

    def _may_cut(self) -> bool:
        """Whether fresh pages in the middle of an image leave few enough mappings."""
        if self.image is None:
            return True  # they become one with what is around them
        mappings = self._mappings
        if mappings.n + 2 > MAX_MAPPINGS:  # all that was cleared counts as apart: look closer
            cleared = np.frombuffer(bytes(self.cleared), dtype=np.int8)
            n_runs = int(np.count_nonzero(np.diff(cleared, prepend=0) == 1))
            mappings.try_resize(min(mappings.n, _mappings_over(self.image) + 2 * n_runs))
        return mappings.n + 2 <= MAX_MAPPINGS and mappings.try_resize(mappings.n + 2)

    def _place(self, image: Image | LiveImage, apart: Sequence[tuple[int, int]]) -> int:
        """Puts an image at the base, over zeroes; how many bytes were copied."""
        return image.place(self.base, map_files=self.remappable, apart=apart)

    def _zero(self, address: HostAddr, nbytes: int) -> None:
        """Zeroes bytes in place."""
        ctypes.memset(address, 0, nbytes)

    def _add(self, hold: _HoldType) -> _HoldType:
        with self._lock:
            self._holds.append(hold)
        return hold

    def _drop(self, hold: Hold) -> None:
        with self._lock:
            self._holds.remove(hold)

    def _require_open(self) -> None:
        if self.closed:
            raise RegionError("the region is closed")


def _free(free: Callable[[], object], mappings: Share) -> None:
    free()
    mappings.close()


def _named_files(image: Image) -> list[NamedFile]:
    """Those of its files that others can write to, each once."""
    files = dict.fromkeys(it.file for it in image.extents)
    return [file for file in files if isinstance(file, NamedFile)]


def _mappings_over(image: Image) -> int:
    """The most mappings of a Region over an image: its pieces, and what is between them."""
    return _OWN_MAPPINGS + 2 * len(image.extents)
