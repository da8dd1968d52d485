"""Hashes of files, kept from process to process: hashing gigabytes takes seconds.

A result is kept in a small file whose name is what was hashed and the file's identity: device,
inode, length, time of last change. A file that changed just now is not remembered, since its next
change may not show in its time. Several files that are one model have one identity together.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_SETTLED_NS = 2_000_000_000
_DIGEST = re.compile("[0-9a-f]{64}")
_BUFFER_NBYTES = 1 << 22
Files = Path | Sequence[Path]
"""A file, or all files of a model in order."""


class FileHashes:
    """Owns a folder of results; None keeps nothing. Failures to write are ignored."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def sha256(self, files: Files) -> str:
        """Hexadecimal SHA-256 of a whole file; of several, that of their hashes, each on a line.

        Raises OSError.
        """
        each = [self.get(it, "sha256", file_sha256) for it in _listed(files)]
        if len(each) == 1:
            return each[0]
        return hashlib.sha256("".join(f"{it}\n" for it in each).encode()).hexdigest()

    def get(self, files: Files, kind: str, compute: Callable[[Path], str]) -> str:
        """Another hash of files, 64 hexadecimal digits; `kind` names it. Raises OSError."""
        return self.recall(files, kind, compute, _is_digest)

    def recall(
        self,
        files: Files,
        kind: str,
        compute: Callable[[Path], str],
        accept: Callable[[str], bool],
    ) -> str:
        """What was found out about files, a text that `accept` says is one; `kind` names it.

        `compute` is given the first file. Raises OSError, and what `compute` raises.
        """
        paths = _listed(files)
        found = [it.stat() for it in paths]
        name = f"{kind}-{joined_identity([file_identity(it) for it in found])}"
        settled = time.time_ns() - max(it.st_mtime_ns for it in found) > _SETTLED_NS
        kept = self._folder / name if self._folder and settled else None
        known = _read(kept) if kept else None
        if known is not None and accept(known):
            return known
        computed = compute(paths[0])
        if kept:
            _write(kept, computed)
        return computed


def file_identity(found: os.stat_result) -> str:
    """What changes when a file is written, or another takes its name."""
    return f"{found.st_dev}-{found.st_ino}-{found.st_size}-{found.st_mtime_ns}"


def files_identity(files: Files) -> str:
    """The identity of all files of a model together; a single file's is its own. Raises OSError."""
    return joined_identity([file_identity(it.stat()) for it in _listed(files)])


def joined_identity(each: Sequence[str]) -> str:
    """One identity for the files that have these."""
    if len(each) == 1:
        return each[0]
    return f"{len(each)}-{hashlib.sha256(' '.join(each).encode()).hexdigest()[:40]}"


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a whole file, read now."""
    total = hashlib.sha256()
    buffer = memoryview(bytearray(_BUFFER_NBYTES))
    with open(path, "rb", buffering=0) as file:
        while n := file.readinto(buffer):
            total.update(buffer[:n])
    return total.hexdigest()


def _listed(files: Files) -> Sequence[Path]:
    return [files] if isinstance(files, Path) else files


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
