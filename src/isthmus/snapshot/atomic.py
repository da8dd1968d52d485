"""Files that appear whole or not at all, also when the process is killed or the power fails.

1. a temporary file in the same folder, locked by its writer
2. written, then synced
3. renamed over the target, and the folder synced

What a killed writer left behind is not locked any more; whoever writes there next removes it.

Only a plain file is replaced. A rename over a device, a pipe or a socket would remove that for all
its users, and one over a symbolic link would leave the file that was meant as it is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from isthmus.errors import IsthmusError, SnapshotError
from isthmus.machine import sync_file

_SUFFIX = ".partial"
_PREFIX = ".isthmus-"
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class AtomicFile:
    """Owns a temporary file that becomes `path` by `commit`, or vanishes when closed without."""

    def __init__(self, path: Path, *, swept: bool = False) -> None:
        """With `swept` the caller removes what killed writers left, since the folder is large."""
        self.path = path
        require_replaceable(path)
        with explained(path):
            if not swept:
                sweep(path.parent)
            self.temporary, self.fd = _open_locked(path.parent)
        self._open = True

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Writes all of `data` at `offset`."""
        view = memoryview(data)
        with explained(self.path):
            while view:
                n = os.pwrite(self.fd, view, offset)
                view, offset = view[n:], offset + n

    def commit(self, nbytes: int) -> None:
        """Gives the file its length, and its name once every byte is on the disk."""
        with explained(self.path):
            os.ftruncate(self.fd, nbytes)
            sync_file(self.fd)
            require_replaceable(self.path)  # it may have taken minutes until here
            os.replace(self.temporary, self.path)
            sync_folder(self.path.parent)
        self._open = False
        os.close(self.fd)

    def __enter__(self) -> AtomicFile:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._open:
            self._open = False
            with contextlib.suppress(OSError):
                self.temporary.unlink()
            os.close(self.fd)


def require_replaceable(path: Path) -> None:
    """SnapshotError unless there is nothing at `path`, or a plain file."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise SnapshotError(f"cannot write {path}: {error}") from None
    if stat.S_ISLNK(mode):
        raise SnapshotError(f"{path} is a symbolic link; give the file itself")
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "no plain file")
        raise SnapshotError(f"{path} is {kind}, which is not replaced: give the name of a file")


def sweep(folder: Path) -> None:
    """Removes what killed writers left in a folder; what a living one is writing stays."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if name.startswith(_PREFIX) and name.endswith(_SUFFIX):
                with contextlib.suppress(OSError):
                    _remove_leftover(folder / name)


def _remove_leftover(path: Path) -> None:
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except BlockingIOError:
        pass
    finally:
        os.close(fd)


def sync_folder(folder: Path) -> None:
    """Makes names that were added, replaced or removed durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sync_file(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def explained(path: Path, what: str = "write") -> Iterator[None]:
    """Turns what the system, or a name that is none, raises into a SnapshotError that names the
    file. `what` was tried: "write", "read"."""
    try:
        yield
    except OSError as error:
        full = what == "write" and error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "; nothing was changed" if full else ""
        raise SnapshotError(f"cannot {what} {path}: {error.strerror or error}{hint}") from None
    except MemoryError:
        raise SnapshotError(f"cannot {what} {path}: not enough memory") from None
    except RecursionError:
        raise SnapshotError(f"cannot {what} {path}: it is nested too deeply") from None
    except (ValueError, RuntimeError) as error:  # a zero byte, or the home of an unknown user
        if isinstance(error, IsthmusError):
            raise
        raise SnapshotError(f"cannot {what} {str(path)!r}: {error}") from None


def _open_locked(folder: Path) -> tuple[Path, int]:
    """A new temporary file, locked before anybody can take it for a leftover."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        path = folder / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(8)}{_SUFFIX}"
        fd = os.open(path, flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists():  # and was not swept before it was locked
                return path, fd
        except BlockingIOError:
            pass
        os.close(fd)
