"""What tells one model from another: hashes of its weights and of its tokenizer.

Hashing gigabytes takes seconds, so the result is kept in a small file whose name is the GGUF
file's identity: device, inode, length and time of last change. A file that changed just now is not
remembered, since its next change may not show in its time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from isthmus.errors import ModelFileError
from isthmus.model.gguf import metadata_sha256
from isthmus.native.loader import Library

_TOKENIZER_KEYS = "tokenizer."
_SETTLED_NS = 2_000_000_000
_KEPT = re.compile("([0-9a-f]{64}) ([0-9a-f]{64})")


@dataclass(frozen=True)
class Fingerprint:
    """Hexadecimal SHA-256 of the whole file, and of the metadata that makes its tokenizer."""

    weights: str
    tokenizer: str


def fingerprint(library: Library, path: Path, cache: Path | None) -> Fingerprint:
    """The fingerprint of a GGUF file; `cache` is a folder where results are kept."""
    try:
        found = path.stat()
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}") from None
    name = f"{found.st_dev}-{found.st_ino}-{found.st_size}-{found.st_mtime_ns}"
    kept = cache / name if cache and time.time_ns() - found.st_mtime_ns > _SETTLED_NS else None
    known = _read(kept) if kept else None
    if known is not None:
        return known
    computed = Fingerprint(_file_sha256(path), metadata_sha256(library, path, _TOKENIZER_KEYS))
    if kept:
        _write(kept, computed)
    return computed


def _file_sha256(path: Path) -> str:
    total = hashlib.sha256()
    buffer = bytearray(1 << 22)
    with open(path, "rb", buffering=0) as file:
        while n := file.readinto(buffer):
            total.update(memoryview(buffer)[:n])
    return total.hexdigest()


def _read(path: Path) -> Fingerprint | None:
    try:
        match = _KEPT.fullmatch(path.read_text())
    except (OSError, UnicodeDecodeError):
        return None
    return Fingerprint(match[1], match[2]) if match else None


def _write(path: Path, computed: Fingerprint) -> None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(f"{computed.weights} {computed.tokenizer}")
        os.replace(temporary, path)
