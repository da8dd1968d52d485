"""Leases on files that are mapped: whoever wants to write to one waits until its bytes are safe.

A file that is cut short under its mapping ends the process (SIGBUS), and one that is written to
changes what was hashed. So Linux is asked for a read lease (fcntl(2), F_SETLEASE). It holds up
whoever opens the file for writing, or truncates it, for /proc/sys/fs/lease-break-time, 45 s
usually. Meanwhile one thread copies the bytes to memory of the process, puts that in the mapping's
place, and gives the lease back.

The thread looks for that once a second while leases are held. The kernel would send a signal, and
a library has none to take, so the signal is one that nobody notices.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import fcntl
import logging
import os
import signal
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol
from weakref import WeakSet, ref

from isthmus.errors import RegionError
from isthmus.machine import available_nbytes
from isthmus.native import libc
from isthmus.units import MIB, format_nbytes

_log = logging.getLogger("isthmus.memory")
_POLL_S = 1.0
"""Seconds between two looks; the kernel waits for 45."""
_PATIENCE_S = 30.0
"""Seconds that copying may take, so that it ends before the kernel's patience does."""
_PIECE_NBYTES = 64 * MIB
_SPARE_NBYTES = 256 * MIB
"""Memory that stays free beside a copy."""


class State(enum.Enum):
    """What the bytes of a mapping are."""

    LEASED = "leased"
    """The file's, which nobody can change."""
    WATCHED = "watched"
    """The file's, without a lease: its status tells whether it changed."""
    COPIED = "copied"
    """A copy that was made before the file changed."""
    LOST = "lost"
    """Zeroes: there was no memory, or no time, for a copy."""


class Range(NamedTuple):
    """Addresses that map a file, read-only and shared."""

    base: int
    nbytes: int
    """A multiple of the OS page; pages after the file's end are part of it."""
    offset: int
    """The first byte's place in the file."""


class LeasedFile:
    """Owns a descriptor and the lease on it, if there is one. Others own the mappings."""

    def __init__(self, fd: int, name: str, ranges: Sequence[Range] = ()) -> None:
        self.name = name
        self._fd = fd
        self._ranges = ranges
        self._lock = threading.Lock()
        self._open = True
        self._before = _status(fd)
        self.state = State.LEASED if take(fd) else State.WATCHED
        if self.state is State.LEASED:
            watch.add(self)

    @property
    def intact(self) -> bool:
        """Whether the bytes are those that the file had when it was mapped."""
        if self.state is State.WATCHED:
            return _status(self._fd) == self._before
        return self.state is not State.LOST

    def rescue(self) -> bool:
        """Copies the bytes if somebody waits for the file; false once no lease is held."""
        with self._lock:
            if not self._open:
                return False
            if fcntl.fcntl(self._fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK:
                return True
            ranges = self._mapped()
            if ranges is None:
                return True
            self.state = self._move_out(ranges)
            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return False

    def close(self) -> None:
        """Gives lease and descriptor back. The ranges are not touched after that."""
        watch.remove(self)
        with self._lock:
            if self._open:
                self._open = False
                os.close(self._fd)

    def _mapped(self) -> Sequence[Range] | None:
        """The ranges that map the file now; None while that is not known."""
        return self._ranges

    def _move_out(self, ranges: Sequence[Range]) -> State:
        """Puts copies in the place of all ranges."""
        nbytes, end = sum(it.nbytes for it in ranges), time.monotonic() + _PATIENCE_S
        try:
            if (available_nbytes() or 0) < nbytes + _SPARE_NBYTES:
                raise MemoryError
            for it in ranges:
                libc.replace(it.base, it.nbytes, self._copied(it, end))
        except (OSError, MemoryError, TimeoutError, RegionError):
            for it in ranges:
                libc.blank(it.base, it.nbytes)
            _log.error(
                "another process writes to %s, which is in use, and there was no memory or time "
                "for a copy of %s: whoever uses it now fails; load it again",
                self.name,
                format_nbytes(nbytes),
            )
            return State.LOST
        _log.warning(
            "another process writes to %s, which is in use: its %s were copied to memory of this "
            "process, which goes on with what it had; replace such files by renaming others",
            self.name,
            format_nbytes(nbytes),
        )
        return State.COPIED

    def _copied(self, found: Range, end: float) -> int:
        """The address of a copy of a range, which must be made by `end`."""
        address = libc.allocate(found.nbytes)
        try:
            for at in range(0, found.nbytes, _PIECE_NBYTES):
                if time.monotonic() > end:
                    raise TimeoutError
                nbytes = min(_PIECE_NBYTES, found.nbytes - at)
                _read(self._fd, address + at, nbytes, found.offset + at)
        except BaseException:
            libc.unmap(address, found.nbytes)
            raise
        return address


def _read(fd: int, address: int, nbytes: int, offset: int) -> None:
    """Reads a piece of a file; what is after its end stays zero."""
    target = memoryview((ctypes.c_ubyte * nbytes).from_address(address)).cast("B")
    while target:
        n = os.preadv(fd, [target], offset)
        if n == 0:
            return
        target, offset = target[n:], offset + n


def take(fd: int) -> bool:
    """Whether the file is leased now; some file systems, owners and systems have no leases."""
    return try_take(fd) == 0


def try_take(fd: int) -> int:
    """Leases a file; 0, or the error's number: EAGAIN where somebody has it open for writing."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except AttributeError:
        return errno.ENOSYS
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _status(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_size, found.st_mtime_ns


class Watched(Protocol):
    """A file whose lease is held."""

    def rescue(self) -> bool:
        """Does what must be done if somebody waits for the file; false if it is watched no more."""


class Watch:
    """The files whose leases are held, and the thread that looks at them while there are any."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a mapping may be freed, and removed, wherever Python is
        self._files: set[Watched] = set()
        self._weakly: WeakSet[Watched] = WeakSet()
        self._thread: threading.Thread | None = None
        self._process = os.getpid()

    def add(self, file: Watched, *, weakly: bool = False) -> None:
        """Looks at a file from now on; `weakly`, for as long as somebody else has it."""
        with self._lock:
            if weakly:
                self._weakly.add(file)
            else:
                self._files.add(file)
            alive = self._thread is not None and self._process == os.getpid()  # not after a fork
            if not alive:
                self._process = os.getpid()
                self._thread = threading.Thread(
                    target=self._run, name="isthmus-leases", daemon=True
                )
                self._thread.start()

    def remove(self, file: Watched) -> None:
        """Looks at it no more."""
        with self._lock:
            self._files.discard(file)
            self._weakly.discard(file)

    def _run(self) -> None:
        while True:
            with self._lock:
                files = [ref(file) for file in (*self._files, *self._weakly)]
                if not files:
                    self._thread = None
                    return
            for it in files:
                self._look_at(it())
            time.sleep(_POLL_S)

    def _look_at(self, file: Watched | None) -> None:
        held = False
        with contextlib.suppress(OSError):
            held = file is not None and file.rescue()
        if file is not None and not held:
            self.remove(file)


mapping = threading.RLock()
"""Held while a file is mapped, here or by a library: it tells whose mapping is new."""
watch = Watch()
