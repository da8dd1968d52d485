"""Opening plain files for reading: nothing that blocks, and nothing that points elsewhere."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from isthmus.errors import SnapshotError, SnapshotInvalid, SnapshotNotFound
from isthmus.memory import NamedFile


def open_regular(path: Path) -> NamedFile:
    """Opens a plain file; SnapshotInvalid for a symbolic link, a pipe, a folder or a device.

    SnapshotNotFound where there is nothing. SnapshotError where it cannot be read now.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise SnapshotNotFound(f"there is no snapshot {path}") from None
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM):
            raise SnapshotError(f"cannot read {path} now: {error.strerror}") from None
        if os.path.islink(path):
            raise SnapshotInvalid(f"{path} is a symbolic link; give the file itself") from None
        raise SnapshotInvalid(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise SnapshotNotFound(f"{str(path)!r} is no path") from None
    file = NamedFile(fd)
    try:
        mode = os.fstat(fd).st_mode
    except OSError as error:
        raise SnapshotError(f"cannot read {path} now: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not a plain file"
        raise SnapshotInvalid(f"{path} is {kind}; give the snapshot's file")
    return file


def read_at(fd: int, nbytes: int, offset: int) -> bytes:
    """Up to `nbytes` at an offset, fewer at the end of the file. OSError."""
    data = os.pread(fd, nbytes, offset)
    while 0 < len(data) < nbytes:
        more = os.pread(fd, nbytes - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def read_whole(path: Path, most: int) -> bytes:
    """All of a plain file of `most` bytes or fewer. SnapshotNotFound, SnapshotInvalid, and
    SnapshotError if it cannot be read now."""
    file = open_regular(path)
    try:
        nbytes = os.fstat(file.fd).st_size
        if nbytes > most:
            raise SnapshotInvalid(f"{path} has {nbytes} bytes, and {most} are the most")
        return read_at(file.fd, nbytes, 0)
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or "not enough memory"
        raise SnapshotError(f"cannot read {path} now: {reason}") from None
    finally:
        file.close()
