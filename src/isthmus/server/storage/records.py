"""The records of agents in an object store: which there are, and which of them this node owns.

A record is written over the version that was read, or where there is none, and in no other way. Its
`holder` is the number of the node that owns the agent, 0 for none, and its `epoch` counts how often
it was acquired. So of several nodes that want an agent one gets it, and what a former owner
still writes, however late, is refused.

=========  ==========================================  ============================================
step       what is written                             when
=========  ==========================================  ============================================
acquire    this node as holder, one more epoch         nobody owns the agent, or its owner has ended
           (then one more death)
commit     turns, a snapshot, what it is called        by the owner
release    no holder                                   by the owner, once it is out of memory
remove     nothing, and then the object goes           by the owner
fence      no holder, one more epoch                   before garbage of a former owner is collected
=========  ==========================================  ============================================

An agent whose owners ended several times, without a turn in between, may be what ended them: it is
quarantined until somebody readmits it. A turn sets the count of deaths to 0.

A write without an answer may have been carried out, or may still be. Its agent is not owned from
then on: the next use acquires it anew, which reads what there is and refuses what is still under
way.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from isthmus.errors import SettingsError, SnapshotInvalid, SnapshotNotFound, StorageError
from isthmus.server.storage.node import Node, Peer
from isthmus.server.storage.objects import Found, Objects, Version
from isthmus.server.storage.record import FullRecord, Stored, decode, encode

_log = logging.getLogger("isthmus.server")
_FOLDER = "agents"
_REMOVED = b""
"""The record of an agent that was removed."""
_TRIES = 8
"""Nodes that may be faster with an agent before one gives up."""


@dataclass(frozen=True)
class Known:
    """A record as this node last read or wrote it."""

    record: FullRecord
    version: Version
    number: int = 0
    """This node's number when it acquired the agent; 0 if it does not own it."""
    tag: str = ""
    """What the record was when it was listed."""


class Records:
    """See the module. Used by several threads, of which one at a time writes a certain record."""

    def __init__(self, objects: Objects, node: Node) -> None:
        self._objects = objects
        self._node = node
        self._known: dict[str, Known] = {}
        self._lock = threading.Lock()
        """Of the next, and of what is read over what is known."""
        self._acquiring: dict[str, threading.Lock] = {}

    # ------------------------------------------------------------------ looking

    def refresh(self) -> set[str]:
        """The ids of all agents that there are now. SettingsError if a record is damaged,
        StorageError."""
        tags = {
            name.removesuffix(".json"): tag
            for name, tag in self._objects.tags(_FOLDER).items()
            if name.endswith(".json")
        }
        changed = [id_ for id_, tag in tags.items() if not self._is_current(id_, tag)]
        found = self._objects.find_all(map(_name, changed))
        for id_ in changed:
            it = found.get(_name(id_))
            self._admit(id_, it, tags[id_])
            if it is not None and it.data == _REMOVED:
                self._objects.delete([_name(id_)])  # whoever removed it did not come to that
        for id_ in self._known.keys() - tags.keys():
            if not self.owns(id_):
                self._known.pop(id_, None)
        return set(self._known)

    def all(self) -> list[FullRecord]:
        """What was known of all agents last."""
        return [it.record for it in list(self._known.values())]

    def look(self, id_: str) -> FullRecord | None:
        """What an agent is now; None if there is none. SnapshotInvalid, StorageError."""
        if not self.owns(id_):
            self._read(id_)
        known = self._known.get(id_)
        return None if known is None else known.record

    def get(self, id_: str) -> FullRecord:
        """What was known of an agent last. SnapshotNotFound."""
        known = self._known.get(id_)
        if known is None:
            raise SnapshotNotFound(f"there is no agent {id_}")
        return known.record

    def find(self, id_: str) -> FullRecord | None:
        """As `get`; None if nothing is known."""
        known = self._known.get(id_)
        return None if known is None else known.record

    def owns(self, id_: str) -> bool:
        """Whether this node owns an agent, as far as it knows."""
        known = self._known.get(id_)
        return known is not None and known.number == self._node.number

    def owner_of(self, record: FullRecord) -> Peer | None:
        """Who else owns the agent of a record, and lives; None if this node may acquire it."""
        holder = _stored(record).holder
        return None if holder in (0, self._node.number) else self._node.peer(holder)

    # ------------------------------------------------------------------ writing

    def acquire(self, id_: str) -> FullRecord:
        """Owns an agent from here on. StorageError if another node does, also
        SnapshotNotFound, SnapshotInvalid."""
        with self._lock:
            lock = self._acquiring.setdefault(id_, threading.Lock())
        with lock:
            known = self._known.get(id_)
            if known is None or (not self.owns(id_) and self.owner_of(known.record) is not None):
                self._read(id_)
            for _ in range(_TRIES):
                if (found := self._try_to_acquire(id_)) is not None:
                    return found
                self._read(id_)
        raise StorageError(f"other servers keep taking agent {id_}")

    def _try_to_acquire(self, id_: str) -> FullRecord | None:
        """None if the record is another one meanwhile."""
        known, number = self._known.get(id_), self._node.number
        if known is None:
            raise SnapshotNotFound(f"there is no agent {id_}")
        if self.owns(id_):
            return known.record
        if (peer := self.owner_of(known.record)) is not None:
            raise StorageError(f"agent {id_} is owned by another server: {peer.where}")
        record = _held(self._mourned(known.record), number, _stored(known.record).epoch + 1)
        version = self._objects.replace(_name(id_), encode(record), known.version)
        if version is None:
            return None
        self._node.require(number)
        with self._lock:
            self._known[id_] = Known(record, version, number)
        return record

    def create(self, record: FullRecord, number: int) -> FullRecord:
        """The record of a new agent, whose objects this node has uploaded under a number. Raises
        StorageError if there is one of that id."""
        record = _held(record, number, 1)
        version = self._objects.create(_name(record.id), encode(record))
        if version is None:
            raise StorageError(f"there is an agent {record.id} already")
        self._node.require(number)
        self._known[record.id] = Known(record, version, number)
        return record

    def write(self, record: FullRecord, number: int) -> FullRecord:
        """The record of an agent that this node owns under a number. StorageError."""
        known = self._owned(record.id, number)
        record = _held(record, number, _stored(known.record).epoch)
        self._disown(record.id)  # until it is known that the record was written
        version = self._objects.replace(_name(record.id), encode(record), known.version)
        if version is None:
            raise StorageError(f"agent {record.id} was written by another server")
        self._known[record.id] = Known(record, version, number)
        return record

    def release(self, id_: str) -> None:
        """Lets any node have an agent, if this one owns it. It waits for the store."""
        known = self._known.get(id_)
        if known is None or not self.owns(id_):
            return
        self._disown(id_)
        try:
            record = _held(known.record, 0, _stored(known.record).epoch)
            version = self._objects.replace(_name(id_), encode(record), known.version)
        except StorageError as error:
            _log.warning("agent %s is not released: %s", id_, error)
            return
        if version is not None:
            self._known[id_] = Known(record, version)

    def remove(self, id_: str) -> None:
        """Removes an agent that this node owns. StorageError."""
        known = self._owned(id_, self._node.number)
        self._disown(id_)
        if self._objects.replace(_name(id_), _REMOVED, known.version) is None:
            raise StorageError(f"agent {id_} was written by another server")
        self._known.pop(id_, None)
        self._acquiring.pop(id_, None)
        self._objects.delete([_name(id_)])

    def fence(self, id_: str, holders: Iterable[int]) -> FullRecord | None:
        """Has none of these nodes write an agent's record any more; this node, if it is one of
        them, unless it owns the agent. What the record is then; None if there is none. Raises
        StorageError if others keep writing it."""
        with self._lock:
            lock = self._acquiring.setdefault(id_, threading.Lock())
        with lock:
            for _ in range(_TRIES):
                known = self._known.get(id_)
                if known is None:
                    return None
                stored = _stored(known.record)
                if stored.holder not in holders or self.owns(id_):
                    return known.record
                record = _held(self._mourned(known.record), 0, stored.epoch + 1)
                version = self._objects.replace(_name(id_), encode(record), known.version)
                if version is not None:
                    self._known[id_] = Known(record, version)
                    return record
                self._read(id_)
        raise StorageError(f"other servers keep writing agent {id_}")

    # ------------------------------------------------------------------ parts

    def _owned(self, id_: str, number: int) -> Known:
        known = self._known.get(id_)
        if known is None or not known.number == number == self._node.number:
            raise StorageError(f"agent {id_} is not this server's any more")
        return known

    def _mourned(self, record: FullRecord) -> FullRecord:
        """The record with one more death, if another node owned the agent: that one has ended."""
        if _stored(record).holder in (0, self._node.number):
            return record
        return msgspec.structs.replace(record, deaths=record.deaths + 1)

    def _disown(self, id_: str) -> None:
        known = self._known.get(id_)
        if known is not None:
            self._known[id_] = Known(known.record, known.version)

    def _read(self, id_: str) -> None:
        try:
            self._admit(id_, self._objects.find(_name(id_)))
        except SettingsError as error:
            raise SnapshotInvalid(str(error)) from None

    def _admit(self, id_: str, found: Found | None, tag: str = "") -> None:
        known = None
        if found is not None and found.data != _REMOVED:
            record = decode(found.data, id_, f"{self._objects.url}/{_name(id_)}")
            known = Known(record, found.version, tag=tag)
        with self._lock:
            if self.owns(id_):
                return  # acquired meanwhile
            if known is None:
                self._known.pop(id_, None)
            else:
                self._known[id_] = known

    def _is_current(self, id_: str, tag: str) -> bool:
        known = self._known.get(id_)
        return known is not None and (known.tag == tag or self.owns(id_))


def _stored(record: FullRecord) -> Stored:
    return record.stored or Stored()


def _held(record: FullRecord, holder: int, epoch: int) -> FullRecord:
    stored = msgspec.structs.replace(_stored(record), holder=holder, epoch=epoch)
    return msgspec.structs.replace(record, stored=stored)


def _name(id_: str) -> str:
    return f"{_FOLDER}/{id_}.json"
