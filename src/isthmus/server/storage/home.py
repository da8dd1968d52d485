"""Where agents are kept: in a folder, or in an object store with a folder as its cache."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

from isthmus.config import Environment
from isthmus.runtime import Runtime
from isthmus.server.settings import ServerSettings
from isthmus.server.storage.computes import Computes, computes_of
from isthmus.server.storage.folder import Folder
from isthmus.server.storage.mirror import Mirror
from isthmus.server.storage.node import Peer
from isthmus.server.storage.record import Record, Turn
from isthmus.snapshot import Store


class Sharing(Protocol):
    """What several servers do that share a URL. Its methods wait for a network."""

    @property
    def token(self) -> str:
        """What another server shows that passes a request on to this one."""

    def refresh(self) -> list[Record]:
        """All agents, as they are now. StorageError."""

    def look(self, id_: str) -> tuple[Record | None, Peer | None]:
        """An agent as it is now, None if there is none; and the other server that owns it and
        lives, None if this one may. SnapshotInvalid, StorageError."""

    def owns(self, id_: str) -> bool:
        """Whether this server owns an agent, as far as it knows. Waits for nothing."""

    def acquire(self, id_: str) -> Record:
        """Owns an agent from here on; what it is now. StorageError if another server owns it, also
        SnapshotNotFound, SnapshotInvalid."""

    def release(self, id_: str) -> None:
        """Owns an agent no more, if this server does. It is out of memory."""

    @property
    def computes(self) -> Computes:
        """What this server computes with."""

    @property
    def number(self) -> int:
        """This server's number now."""

    def peers(self) -> list[Peer]:
        """The other servers that live. StorageError."""

    def others(self) -> frozenset[int]:
        """The numbers of other servers that lived lately. Waits for nothing."""

    def has_ended(self, number: int) -> bool:
        """Whether another server is known to have ended. Waits for nothing."""

    def advertise(self, address: str) -> None:
        """Tells other servers where this one is reached. StorageError."""


class Home(Protocol):
    """Owns records, snapshots and guests. Its methods wait for a disk or a network, so they are
    called outside of the event loop; each may be called by several threads at a time."""

    store: Store
    """Where actors are saved and restored from: always a local folder."""

    @property
    def sharing(self) -> Sharing | None:
        """What other servers have a part in; None if there can be none."""

    def records(self) -> list[Record]:
        """All agents. What belongs to none of them never happened, and is removed."""

    def turns(self, record: Record) -> list[Turn]:
        """The agent's turns that are kept, oldest first, until where the record is.

        SnapshotNotFound where it is gone, SnapshotInvalid where they are damaged, StorageError.
        """

    def commit(self, record: Record, turns: Sequence[Turn], *, is_new: bool = False) -> None:
        """The moment at which something has happened: the agent is what the record says, and the
        turns were added to those that it had. Its snapshot is in the store already. An agent that
        is not new is this server's own.

        StorageError, SnapshotError: it has not happened, or nobody may be told that it has.
        """

    def commit_midway(self, record: Record) -> None:
        """The agent is in the middle of the answer that the record says, whose snapshot is in the
        store already. It is this server's own. StorageError, SnapshotError."""

    def bring_midway(self, record: Record) -> None:
        """Has the snapshot from the middle of its answer in the store. Raises as `bring`."""

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


def open_home(settings: ServerSettings, runtime: Runtime) -> Home:
    """What `data` says, for agents that a runtime computes. SettingsError, StorageError."""
    if isinstance(settings.data, str):
        name = hashlib.sha256(settings.data.encode()).hexdigest()[:16]
        cache = settings.cache or Environment.read().cache / "agents" / name
        return Mirror(settings.data, cache, settings.lease_s, computes_of(runtime, settings))
    return Folder(settings.data)
