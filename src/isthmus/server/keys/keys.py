"""API keys: made once, kept only as hashes, with what their owners may use.

The file has a line for each: `NAME SHA256 [LIMIT=N …]`; what follows a `#` is a remark. A key is 32
random bytes, so that a plain hash is enough: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
from pathlib import Path

from isthmus.errors import SettingsError
from isthmus.server.http.key import Key, KeyLimits
from isthmus.server.http.log import tell
from isthmus.snapshot.atomic import AtomicFile

_log = logging.getLogger("isthmus.server")
_PREFIX = "isk-"
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def read_keys(path: Path) -> list[Key]:
    """All of a file. SettingsError where it cannot be read, or a line is none."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is no text"
        raise SettingsError(f"cannot read the keys {path}: {said}") from None
    found: dict[str, Key] = {}
    keys = []
    for number, line in enumerate(lines, 1):
        if not (words := _words(line)):
            continue
        try:
            key = _key(words)
        except SettingsError as error:
            raise SettingsError(f"{path}, line {number}: {error}") from None
        if found.setdefault(key.name, key).limits != key.limits:
            raise SettingsError(
                f"{path}, line {number}: {key.name} has other limits in a line before"
            )
        keys.append(key)
    return keys


def _words(line: str) -> list[str]:
    return line.partition("#")[0].split()


def _key(words: list[str]) -> Key:
    if len(words) < 2 or not _SHA256.fullmatch(words[1]):
        raise SettingsError("give NAME SHA256 [LIMIT=N …]")
    return Key(words[0], words[1].lower(), KeyLimits.parse(words[2:]))


class Keys:
    """Who may ask, as the file says now: it is read again when it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = _stamp(path)
        self._keys = read_keys(path)

    def find(self, key: str) -> Key | None:
        """Whose key it is; None for a stranger. Takes as long for each."""
        self._refresh()
        digest = hashlib.sha256(key.encode()).hexdigest()
        found = None
        for known in self._keys:
            if hmac.compare_digest(known.digest, digest):
                found = known
        return found

    def named(self, name: str) -> Key | None:
        """The key of that name; None for a stranger's."""
        self._refresh()
        return next((it for it in self._keys if it.name == name), None)

    def _refresh(self) -> None:
        """A file that is gone or malformed changes nothing, and is complained of once."""
        stamp = _stamp(self._path)
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._keys = read_keys(self._path)
        except SettingsError as error:
            _log.error("%s; the keys stay what they were", error)
        else:
            tell("keys", f"{len(self._keys)} keys read anew", n_keys=len(self._keys))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What is another one when a file was written."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


# ---------------------------------------------------------------------------------- changing


def new_key(path: Path, name: str, limits: KeyLimits | None = None) -> str:
    """Adds a key to the file, readable by its owner only, and returns it: it is not kept. Raises
    SettingsError for a name that is none or is taken, and for a file that cannot be written."""
    if not name or name.split() != [name] or "#" in name:
        raise SettingsError(f"a key's name is one word, not {name!r}")
    _require_plain(path)
    if path.exists() and any(it.name == name for it in read_keys(path)):
        raise SettingsError(f"{path} has a key of {name} already: remove it first, or add {name}-2")
    key = _PREFIX + secrets.token_urlsafe(32)
    line = Key(name, hashlib.sha256(key.encode()).hexdigest(), limits or KeyLimits())
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with open(fd, "ab") as file:
            ends = file.tell() == 0 or os.pread(fd, 1, file.tell() - 1) == b"\n"
            file.write(f"{'' if ends else chr(10)}{line}\n".encode())
    except OSError as error:
        raise SettingsError(f"cannot write the keys {path}: {error.strerror}") from None
    return key


def remove_key(path: Path, name: str) -> None:
    """Takes a name's keys out of the file, and leaves all else in it as it is. Raises SettingsError
    if there are none."""
    _require_plain(path)
    if not any(it.name == name for it in read_keys(path)):
        known = ", ".join(dict.fromkeys(it.name for it in read_keys(path))) or "none"
        raise SettingsError(f"{path} has no key of {name}; it has {known}")
    lines = path.read_text().splitlines(keepends=True)
    data = "".join(line for line in lines if _words(line)[:1] != [name]).encode()
    with AtomicFile(path) as file:
        file.write(data, 0)
        file.commit(len(data))


def _require_plain(path: Path) -> None:
    """SettingsError for a device, which keeps nothing, or a pipe, at which one waits for ever."""
    if path.exists() and not path.is_file():
        raise SettingsError(f"{path} is no plain file: give the name of a file for the keys")
