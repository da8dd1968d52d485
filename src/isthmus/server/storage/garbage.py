"""Objects that no record names any more, and which of them a node may remove.

The names of packs, snapshots, turns and guests begin with the number of the node that uploaded
them. A record names objects that its own version before named, that its node uploaded under its
number now, or, for a fork, those of the agent that it is forked from. So a pack on its way into a
record is one of three: named already, the owner's own, or named by an agent that is held
meanwhile. Nobody else removes any of these.

* **At once** goes what a node has uploaded itself, once the agents that it owns name it no more. An
  agent that left may have taken the name along: what it named then is left to the next way.
* **By a scan** goes what else no record names, of the own objects and of those of nodes that have
  ended. It lists objects first, then reads all records, until no new ones appear. Before garbage of
  such a node goes, its agents are fenced: then no record can name it later. Own agents that this
  node wrote without an answer are fenced for the same reason.

Each of these rules is left out once in tests/protocol, where it is seen what is lost then.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from isthmus.server.storage.node import Node
from isthmus.server.storage.objects import Objects
from isthmus.server.storage.record import FullRecord, Segment, Stored
from isthmus.server.storage.records import Records

FOLDERS = ("packs", "snapshots", "turns")


class Garbage:
    """See the module. Used by several threads."""

    def __init__(self, objects: Objects, node: Node, records: Records) -> None:
        self._objects = objects
        self._node = node
        self._records = records
        self._lock = threading.Condition()
        """Of all below, and of removing garbage: who needs what is being removed waits for that."""
        self._owned: dict[str, frozenset[str]] = {}
        """What each agent names that this node owns."""
        self._uses: Counter[str] = Counter()
        """How many of these agents name each object."""
        self._abroad: set[str] = set()
        """Objects that agents named which this node owns no more."""
        self._promised: dict[str, frozenset[str]] = {}
        """What records will name whose commit goes on, by agent."""
        self._there: set[str] = set()
        """Own objects that need not be uploaded."""
        self._garbage: set[str] = set()
        """Own objects that no record names any more."""
        self._scanned: set[str] = set()
        """What a scan removes at its end, unless a record names it."""
        self._going: set[str] = set()
        """What is being removed."""
        self._left = False
        """Whether something is left to a scan."""

    # ------------------------------------------------------------------ commits

    def is_there(self, name: str) -> bool:
        """Whether this node has uploaded an object."""
        return name in self._there

    def is_mine(self, name: str) -> bool:
        """Whether an object is one that this node uploads."""
        return uploader_of(name) == self._node.number

    def note(self, name: str) -> None:
        """An object was uploaded."""
        with self._lock:
            self._there.add(name)

    @contextlib.contextmanager
    def promising(self, id_: str, record: FullRecord) -> Iterator[None]:
        """Keeps what an agent's record will name from being removed."""
        promised = objects_of(record)
        with self._lock:
            while promised & self._going:
                self._lock.wait()
            self._promised[id_] = promised
            self._scanned -= promised
        try:
            yield
        finally:
            with self._lock:
                del self._promised[id_]

    def own(self, record: FullRecord) -> None:
        """This node owns an agent, whose record is this one now."""
        self._count(record.id, objects_of(record), left=False)

    def drop(self, id_: str) -> None:
        """An agent that this node owned was removed."""
        self._count(id_, frozenset(), left=False)

    def leave(self, id_: str) -> None:
        """This node owns an agent no more."""
        self._count(id_, frozenset(), left=True)

    def _count(self, id_: str, after: frozenset[str], *, left: bool) -> None:
        with self._lock:
            before = self._owned.pop(id_, frozenset())
            if after:
                self._owned[id_] = after
            self._uses.update(after - before)
            self._garbage -= after
            for name in before - after:
                self._uses[name] -= 1
                if left:
                    self._abroad.add(name)
                if not self._uses[name]:
                    del self._uses[name]
                    self._garbage.add(name)

    # ------------------------------------------------------------------ removing

    @property
    def waits(self) -> bool:
        """Whether there is something to collect at once."""
        return bool(self._garbage)

    @property
    def waits_for_scan(self) -> bool:
        """Whether there is something that only a scan may collect."""
        return self._left

    def collect(self) -> None:
        """Removes what this node has uploaded and nobody names any more. StorageError."""
        self._remove(self._take_own)

    def scan(self) -> None:
        """Removes all that no record names, as far as this node may. StorageError."""
        for id_ in [it for it in list(self._owned) if not self._records.owns(it)]:
            self.leave(id_)  # this node was taken for dead
        with self._lock:
            self._left = False
            self._scanned = set()
        ended, number = self._node.ended() | {0}, self._node.number
        listed = {
            f"{folder}/{name}"
            for folder in FOLDERS
            for name in self._objects.names(folder)
            if uploader_of(name) in ended or uploader_of(name) == number
        }
        with self._lock:
            self._scanned = listed.difference(self._uses, *self._promised.values())
        self._read(())
        if self._scanned:
            self._read({uploader_of(it) for it in self._scanned} - {0})
            self._remove(self._take_scanned)

    def _read(self, holders: Iterable[int]) -> None:
        """Spares what records name; none of these holders writes any of them later."""
        read: set[str] = set()
        while new := self._records.refresh() - read:
            for id_ in new:
                record = self._records.find(id_)
                if record is not None and holders:
                    record = self._records.fence(id_, holders)
                if record is not None:
                    with self._lock:
                        self._scanned -= objects_of(record)
            read |= new

    def _take_own(self) -> set[str]:
        found, self._garbage = self._garbage, set()
        number = self._node.number
        mine = {it for it in found - self._abroad if uploader_of(it) == number}
        self._left = self._left or mine != found
        return mine

    def _take_scanned(self) -> set[str]:
        found, self._scanned = self._scanned, set()
        return found

    def _remove(self, take: Callable[[], set[str]]) -> None:
        with self._lock:
            going = take().difference(self._uses, *self._promised.values())
            self._there -= going
            self._going |= going
        try:
            self._objects.delete(going)
        finally:
            with self._lock:
                self._going -= going
                self._lock.notify_all()


def uploader_of(name: str) -> int:
    """The number of the node that uploaded an object; 0 for those of the first releases."""
    number, dash, _ = name.rpartition("/")[2].partition("-")
    return int(number) if dash and number.isdecimal() else 0


def kept_of(name: str) -> str:
    """The pack, snapshot or guest that an object is, without who uploaded it."""
    return name.rpartition("/")[2].rpartition("-")[2]


def objects_of(record: FullRecord) -> frozenset[str]:
    """The names of all objects that an agent is made of."""
    stored = record.stored or Stored()
    packs = (f"packs/{name}" for name in stored.packs)
    turns = (turns_name(record.id, segment) for segment in record.segments)
    midway = (stored.midway,) if stored.midway else ()
    snapshots = map(snapshot_name, (*stored.snapshots.values(), *midway))
    return frozenset([*packs, *turns, *snapshots])


def turns_name(id_: str, segment: Segment) -> str:
    """The object that a segment of an agent's turns is."""
    return f"turns/{segment.holder:010d}-{id_}.{segment.sha256}"


def snapshot_name(said: str) -> str:
    """The object that a snapshot is, by what a record says of it."""
    return f"snapshots/{said}.safetensors"
