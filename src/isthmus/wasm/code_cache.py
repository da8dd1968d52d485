"""Rewritten and compiled guests on disk, so that a second start compiles nothing.

A file's name is the hash of what it was made from, and its first 32 bytes are the SHA-256 of the
rest: a damaged or half-written file is made anew. Compiled code is machine code that this process
will run, so the folder is the user's alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

_DIGEST_NBYTES = 32


class CodeCache:
    """A folder of derived files. `None` as folder keeps nothing. Failures to write are ignored."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder if folder is None or _make_private(folder) else None

    def get(self, name: str, make: Callable[[], bytes]) -> bytes:
        """The file of that name, or else what `make` returns, which is then kept."""
        found = self.read(name)
        if found is not None:
            return found
        made = make()
        self._write(name, made)
        return made

    def read(self, name: str) -> bytes | None:
        """What the file of that name holds, if it is there and whole."""
        if self._folder is None:
            return None
        try:
            data = (self._folder / name).read_bytes()
        except OSError:
            return None
        digest, contents = data[:_DIGEST_NBYTES], data[_DIGEST_NBYTES:]
        return contents if hashlib.sha256(contents).digest() == digest else None

    def forget(self, name: str) -> None:
        """Removes a file that turned out to be of no use."""
        if self._folder is not None:
            with contextlib.suppress(OSError):
                (self._folder / name).unlink()

    def _write(self, name: str, contents: bytes) -> None:
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


def _make_private(folder: Path) -> bool:
    """Makes the folder; false where it is not ours alone to write."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError:
        return False
    return found.st_uid == os.getuid() and not found.st_mode & 0o022
