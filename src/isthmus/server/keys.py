"""API keys: made once, kept only as hashes.

The file has a line for each: `NAME SHA256`. A key is 32 random bytes, so that a plain hash is
enough: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from isthmus.errors import SettingsError

_PREFIX = "isk-"


class Keys:
    """Who may ask."""

    def __init__(self, path: Path) -> None:
        self._names: dict[str, str] = {}
        """Name by hash."""
        try:
            lines = path.read_text().splitlines()
        except OSError as error:
            raise SettingsError(f"cannot read the keys {path}: {error.strerror}") from None
        for number, line in enumerate(lines, 1):
            words = line.split("#")[0].split()
            if words and (len(words) != 2 or len(words[1]) != 64):
                raise SettingsError(f"{path}, line {number}: give NAME SHA256")
            if words:
                self._names[words[1].lower()] = words[0]

    def name_of(self, key: str) -> str | None:
        """Whose key it is; None for a stranger. Takes as long for each."""
        digest = hashlib.sha256(key.encode()).hexdigest()
        found = None
        for known, name in self._names.items():
            if hmac.compare_digest(known, digest):
                found = name
        return found


def new_key(path: Path, name: str) -> str:
    """Adds a key to the file, readable by its owner only, and returns it: it is not kept."""
    if not name or name.split() != [name] or "#" in name:
        raise SettingsError(f"a key's name is one word, not {name!r}")
    key = _PREFIX + secrets.token_urlsafe(32)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with open(fd, "a") as file:
        file.write(f"{name} {hashlib.sha256(key.encode()).hexdigest()}\n")
    return key
