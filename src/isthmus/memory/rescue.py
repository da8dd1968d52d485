"""Files that Regions map copy-on-write, and what happens when somebody else wants to write to one.

A file that is cut short takes the pages of its mappings with it, also those that were written to,
and a guest that touches one ends the process (SIGBUS). So a file is leased while it is mapped: see
`lease`. When somebody waits for it, each Region over it goes over to memory of its own; its owner
sees to that, while nothing runs in it. Only then is the lease given back.

No lock is held while an owner is asked, and none while one is waited for.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol
from weakref import WeakSet

from isthmus.errors import RegionError
from isthmus.memory.image import SharedFile
from isthmus.memory.lease import try_take, watch

_log = logging.getLogger("isthmus.memory")
_PATIENCE_S = 10.0
"""Seconds that whoever runs may go on; the kernel lets the writer wait for 45 in all."""
_POLL_S = 0.05

Leave = Callable[[bool], None]
"""Has a memory leave the files that it maps, if nothing runs in it; called again until it has. With
True what runs is to be ended at once."""


class Mapper(Protocol):
    """A memory that may map a file."""

    leave: Leave | None
    """None while it is being made."""

    def maps(self, file: NamedFile) -> bool:
        """Whether it has pages of that file."""


class NamedFile(SharedFile):
    """A file that others can write to; its lease is held from its first mapping on."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self._lock = threading.Lock()
        self._mappers: WeakSet[Mapper] = WeakSet()
        self._asked = False
        self._spent = False
        """Whether the lease was given back: others may have written to the file since."""

    def enter(self, mapper: Mapper) -> None:
        """Notes that a memory is about to map it. RegionError once others may have written to it.

        It is mapped also where the system gives no lease, unless somebody has it open for writing.
        """
        with self._lock:
            if self._spent:
                raise RegionError("another process wrote to the file of an image: restore it again")
            self._mappers.add(mapper)
            if not self._asked:
                self._asked = True
                refusal = try_take(self.fd)
                self.is_written = refusal == errno.EAGAIN
                if refusal == 0:
                    watch.add(self, weakly=True)

    def rescue(self) -> bool:
        """Has whoever maps it leave it, if somebody waits for it."""
        if self.closed:
            return False
        if fcntl.fcntl(self.fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK:
            return True
        _rescuer.add(self)
        return False

    def ask(self, *, at_once: bool) -> None:
        """Asks every memory over it to leave."""
        for mapper in self._present():
            leave = mapper.leave
            try:
                if leave is not None:
                    leave(at_once)
            except Exception:  # the others are to be saved all the same
                _log.exception("a memory cannot leave a file that another process writes to")

    def give_back(self) -> bool:
        """Gives the lease back; false, and nothing happens, while it is mapped."""
        with self._lock:
            if self._present():
                return False
            self._spent = True
            with contextlib.suppress(OSError):
                if not self.closed:
                    fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            return True

    def _present(self) -> list[Mapper]:
        return [it for it in list(self._mappers) if it.maps(self)]


class _Rescuer:
    """The files that somebody waits for, and the thread that empties them while there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: dict[NamedFile, float] = {}
        self._running = False

    def add(self, file: NamedFile) -> None:
        with self._lock:
            self._since[file] = time.monotonic()
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="isthmus-rescue", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._since:
                    self._running = False
                    return
                files = list(self._since.items())
            for file, since in files:
                file.ask(at_once=time.monotonic() > since + _PATIENCE_S)
                if file.give_back():
                    with self._lock:
                        del self._since[file]
            files.clear()
            time.sleep(_POLL_S)


_rescuer = _Rescuer()
