"""Hashes of files, kept from process to process: hashing gigabytes takes seconds.

A result is kept in a small file whose name is what was hashed and the file's identity: device,
inode, length, time of last change. A file that changed just now is not remembered, since its next
change may not show in its time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

_SETTLED_NS = 2_000_000_000
_DIGEST = re.compile("[0-9a-f]{64}")
_BUFFER_NBYTES = 1 << 22


class FileHashes:
    """Owns a folder of results; None keeps nothing. Failures to write are ignored."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def sha256(self, path: Path) -> str:
        """Hexadecimal SHA-256 of a whole file. Raises OSError."""
        return self.get(path, "sha256", file_sha256)

    def get(self, path: Path, kind: str, compute: Callable[[Path], str]) -> str:
        """Another hash of a file, 64 hexadecimal digits; `kind` names it. Raises OSError."""
        return self.recall(path, kind, compute, _is_digest)

    def recall(
        self,
        path: Path,
        kind: str,
        compute: Callable[[Path], str],
        accept: Callable[[str], bool],
    ) -> str:
        """What was found out about a file, a text that `accept` says is one; `kind` names it.

        Raises OSError, and what `compute` raises.
        """
        found = path.stat()
        name = f"{kind}-{file_identity(found)}"
        settled = time.time_ns() - found.st_mtime_ns > _SETTLED_NS
        kept = self._folder / name if self._folder and settled else None
        known = _read(kept) if kept else None
        if known is not None and accept(known):
            return known
        computed = compute(path)
        if kept:
            _write(kept, computed)
        return computed


def file_identity(found: os.stat_result) -> str:
    """What changes when a file is written, or another takes its name."""
    return f"{found.st_dev}-{found.st_ino}-{found.st_size}-{found.st_mtime_ns}"


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a whole file, read now."""
    total = hashlib.sha256()
    buffer = memoryview(bytearray(_BUFFER_NBYTES))
    with open(path, "rb", buffering=0) as file:
        while n := file.readinto(buffer):
            total.update(buffer[:n])
    return total.hexdigest()


def _is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return None


def _write(path: Path, computed: str) -> None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(computed)
        os.replace(temporary, path)
