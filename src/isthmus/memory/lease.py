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
from typing import Protocol
from weakref import WeakSet, ref

from isthmus.errors import RegionError
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


class LeasedFile:
    """Owns a descriptor, a mapping of `nbytes` of it at `base`, and the lease if there is one."""

    def __init__(self, fd: int, base: int, nbytes: int, name: str) -> None:
        self.base, self.nbytes, self.name = base, nbytes, name
        self._fd = fd
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
            self.state = self._move_out()
            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return False

    def close(self) -> None:
        """Gives mapping, lease and descriptor back."""
        watch.remove(self)
        with self._lock:
            self._open = False
            libc.unmap(self.base, self.nbytes)
            os.close(self._fd)

    def _move_out(self) -> State:
        try:
            if _free_nbytes() < self.nbytes + _SPARE_NBYTES:
                raise MemoryError
            libc.replace(self.base, self.nbytes, self._copied())
        except (OSError, MemoryError, TimeoutError, RegionError):
            libc.blank(self.base, self.nbytes)
            _log.error(
                "another process writes to %s, which is in use, and there was no memory or time "
                "for a copy of %s: whoever uses it now fails; load it again",
                self.name,
                format_nbytes(self.nbytes),
            )
            return State.LOST
        _log.warning(
            "another process writes to %s, which is in use: its %s were copied to memory of this "
            "process, which goes on with what it had; replace such files by renaming others",
            self.name,
            format_nbytes(self.nbytes),
        )
        return State.COPIED

    def _copied(self) -> int:
        """The address of a copy of all bytes."""
        end = time.monotonic() + _PATIENCE_S
        address = libc.allocate(self.nbytes)
        try:
            for offset in range(0, self.nbytes, _PIECE_NBYTES):
                if time.monotonic() > end:
                    raise TimeoutError
                nbytes = min(_PIECE_NBYTES, self.nbytes - offset)
                _read(self._fd, address + offset, nbytes, offset)
        except BaseException:
            libc.unmap(address, self.nbytes)
            raise
        return address


def _read(fd: int, address: int, nbytes: int, offset: int) -> None:
    """Reads a piece of a file; what is behind its end stays zero."""
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


def _free_nbytes() -> int:
    """Bytes of memory that the system says it could give."""
    with open("/proc/meminfo", "rb") as file:
        for line in file:
            if line.startswith(b"MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0


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


watch = Watch()
