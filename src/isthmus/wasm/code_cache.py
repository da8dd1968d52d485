"""Compiled guests on disk, so that a second start compiles nothing.

A file's name is the hash of what it was made from, and its first 32 bytes are the SHA-256 of the
rest: a damaged or half-written file is made anew. Compiled code is machine code that this process
will run, so the folder is the user's alone. If the folder is larger than it may be, the files that
were used longest ago go.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

from isthmus.units import MIB

_DIGEST_NBYTES = 32
_MAX_NBYTES = 512 * MIB
"""Bytes of a folder's files. When they are more, those that were used longest ago are removed until
three quarters are left: one more start compiles them again."""


class CodeCache:
    """A folder of derived files. `None` as folder keeps nothing. Failures to write are ignored."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder if folder is None or _make_private(folder) else None

    def read(self, name: str) -> bytes | None:
        """What the file of that name holds, if it is there and whole."""
        if self._folder is None:
            return None
        try:
            data = (self._folder / name).read_bytes()
            os.utime(self._folder / name)
        except OSError:
            return None
        digest, contents = data[:_DIGEST_NBYTES], data[_DIGEST_NBYTES:]
        return contents if hashlib.sha256(contents).digest() == digest else None

    def forget(self, name: str) -> None:
        """Removes a file that turned out to be of no use."""
        if self._folder is not None:
            with contextlib.suppress(OSError):
                (self._folder / name).unlink()

    def put(self, name: str, contents: bytes) -> None:
        """Keeps `contents` under a name, as far as the disk allows it."""
        if self._folder is None:
            return
        with contextlib.suppress(OSError):
            fd, temporary = tempfile.mkstemp(dir=self._folder)
            try:
                with open(fd, "wb") as file:
                    file.write(hashlib.sha256(contents).digest() + contents)
                os.replace(temporary, self._folder / name)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
            _trim(self._folder)


def _trim(folder: Path) -> None:
    """Removes files that were used longest ago, if there is more than should be."""
    found = [(it.stat(), it.path) for it in os.scandir(folder) if it.is_file()]
    nbytes = sum(stat.st_size for stat, _ in found)
    if nbytes <= _MAX_NBYTES:
        return
    for stat, path in sorted(found, key=lambda it: it[0].st_mtime_ns):
        if nbytes <= _MAX_NBYTES * 3 // 4:
            return
        os.unlink(path)
        nbytes -= stat.st_size


def _make_private(folder: Path) -> bool:
    """Makes the folder; false where it is not ours alone to write."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError:
        return False
    return found.st_uid == os.getuid() and not found.st_mode & 0o022
