"""Where agents are kept: in a folder, or in an object store with a folder as its cache."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

from isthmus.config import Environment
from isthmus.server.settings import ServerSettings
from isthmus.server.storage.folder import Folder
from isthmus.server.storage.mirror import Mirror
from isthmus.server.storage.record import Record, Turn
from isthmus.snapshot import Store


class Home(Protocol):
    """Owns records, snapshots and guests. Its methods wait for a disk or a network, so they are
    called outside of the event loop; each may be called by several threads at a time."""

    store: Store
    """Where actors are saved and restored from: always a local folder."""

    def records(self) -> list[Record]:
        """All agents. What belongs to none of them never happened, and is removed."""

    def turns(self, record: Record) -> list[Turn]:
        """The agent's turns that are kept, oldest first, until where the record is.

        SnapshotNotFound where it is gone, SnapshotInvalid where they are damaged, StorageError.
        """

    def commit(self, record: Record, turns: Sequence[Turn]) -> None:
        """The moment at which something has happened: the agent is what the record says, and the
        turns were added to those that it had. Its snapshot is in the store already.

        StorageError, SnapshotError: it has not happened, or nobody may be told that it has.
        """

    def bring(self, record: Record, position: int, *, memory: bool = True) -> None:
        """Has one of the agent's snapshots in the store, whole or without what its chunks hold.

        SnapshotNotFound where it is not kept any more; StorageError; SnapshotInvalid where it is
        damaged.
        """

    def remove(self, record: Record) -> None:
        """Removes an agent. What only its snapshots used goes later, beside other work."""

    def wait(self) -> None:
        """Returns once all is removed that was to be removed."""

    def guests(self) -> list[str]:
        """Hashes of the guests that were brought."""

    def add_guest(self, wasm: bytes) -> str:
        """Keeps a guest; returns its hash."""

    def remove_guest(self, digest: str) -> None:
        """Keeps a guest no longer, if it is there."""

    def guest(self, digest: str) -> bytes | None:
        """A guest that was brought."""

    def close(self) -> None:
        """Lets another server have it."""


def open_home(settings: ServerSettings) -> Home:
    """What `data` says. SettingsError, StorageError."""
    if isinstance(settings.data, str):
        name = hashlib.sha256(settings.data.encode()).hexdigest()[:16]
        cache = settings.cache or Environment.read().cache / "agents" / name
        return Mirror(settings.data, cache, settings.lease_s)
    return Folder(settings.data)
