"""Who asks: the name of an API key, and what its owner may use."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from isthmus.errors import SettingsError

_MIN = {
    "concurrent": 1,
    "rpm": 1,
    "tpd": 1,
    "agents": 0,
    "disk": 0,
    "metrics": 0,
    "models": 0,
}
_RIGHTS = ("metrics", "models")
"""Limits that are 1 for those who may do something, else 0."""


@dataclass(frozen=True)
class KeyLimits:
    """What the owner of a key may use; None for no limit."""

    concurrent: int | None = None
    """Requests at a time."""
    rpm: int | None = None
    """Requests that begin within 60 seconds."""
    tpd: int | None = None
    """Tokens of a day in UTC, of prompts and answers together."""
    agents: int | None = None
    """Agents that it has made and not deleted."""
    disk: int | None = None
    """Bytes on the disk that its agents and responses take; None for half of the disk."""
    metrics: int | None = None
    """1 if its owner may read `/metrics`, which counts what all owners do."""
    models: int | None = None
    """1 if its owner may say which models come and go: pull, load and unload them."""

    @staticmethod
    def parse(words: Iterable[str]) -> KeyLimits:
        """`rpm=60` and the like. SettingsError says which there are."""
        found: dict[str, int] = {}
        for word in words:
            name, _, value = word.partition("=")
            if name not in _MIN or name in found:
                raise SettingsError(f"{word!r} is no limit: give each of {_KINDS} once at most")
            if name in _RIGHTS and value not in ("0", "1"):
                raise SettingsError(f"{word!r} is no limit: give {name}=1, or {name}=0")
            if not value.isdecimal() or int(value) < _MIN[name]:
                unit = " of bytes" if name == "disk" else ""
                allowed = f"a whole number{unit}, {_MIN[name]} or more"
                raise SettingsError(f"{word!r} is no limit: give {name}= {allowed}")
            found[name] = int(value)
        return KeyLimits(**found)

    def __str__(self) -> str:
        pairs = ((it.name, getattr(self, it.name)) for it in fields(self))
        return " ".join(f"{name}={value}" for name, value in pairs if value is not None)


_KINDS = ", ".join(f"{it.name}=N" for it in fields(KeyLimits))


@dataclass(frozen=True)
class Key:
    """An API key without its secret; a line of the file of keys."""

    name: str
    digest: str
    """SHA-256 of the key, in small hexadecimal digits."""
    limits: KeyLimits = KeyLimits()

    def __str__(self) -> str:
        return f"{self.name} {self.digest} {self.limits}".rstrip()
