"""A server among those that share a URL: its number, its lease, and what it knows of the others.

::

    URL/lease/0000000007    the claim of node 7, which says where it is and that it lives

Each server is a node. It takes the next number by creating a claim, and raises the claim's `beat`
every sixth of its lease, on condition that the claim is what it wrote last. In the same moment it
lists all claims. A claim of another node that has not changed for a whole lease is ended, also on
condition: from then on the agents that this node held are anybody's. No clocks of two machines are
compared, and numbers are never used again. A claim that is not there any more has ended too.

===========  ======================================================================
state        what it means
===========  ======================================================================
held         the node lives, as far as anybody knows
ended        released, or ended by another node; agents may be taken from it
===========  ======================================================================

A node that finds its claim ended, after a pause for instance, begins anew with another number, and
owns nothing. That alone excludes nothing: a process may be stopped between a look at its claim and
a write. So each write of a record is on condition (see `mirror`), and what conditions cannot tell,
as a record is new or newly acquired, is followed by `require`.

A node that was killed and starts again with the same cache folder, whose lock shows that it is
the same, ends its former claim at once.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from isthmus.errors import SettingsError, StorageError
from isthmus.server.kinds import DAY_S
from isthmus.server.storage.computes import Computes
from isthmus.server.storage.objects import Objects, Version

_log = logging.getLogger("isthmus.server")
_FOLDER = "lease"
_UNKNOWN = Computes()
_N_TRIED = 10
"""Requests by which conditions are tried."""


class Claim(Struct, frozen=True, kw_only=True):
    """What a node says of itself."""

    owner: str
    """The name of its cache folder."""
    where: str
    """For people."""
    lease_s: Annotated[float, Meta(gt=0, le=DAY_S)]
    """Whoever comes next may have to wait for as long."""
    beat: int = 0
    ended: bool = msgspec.field(default=False, name="released")
    address: str = ""
    """Where other nodes reach it, such as http://10.0.0.7:8080; empty while it does not listen."""
    token: str = ""
    """Known to whoever may read the store, so to the nodes: they show it with what they pass on."""
    computes: Computes = _UNKNOWN


@dataclass(frozen=True)
class Peer:
    """A node that lives."""

    number: int
    address: str
    token: str
    where: str
    computes: Computes = _UNKNOWN


_decoder = msgspec.json.Decoder(Claim)


class Node:
    """See the module. Begun when made; a thread of its own keeps the claim until `release`."""

    def __init__(
        self, objects: Objects, owner: str, lease_s: float, computes: Computes | None = None
    ) -> None:
        self.computes = computes or _UNKNOWN
        began = _now()
        objects.require_conditions(_FOLDER)
        _warn_if_slow(objects.url, (_now() - began) / _N_TRIED, lease_s)
        self._objects = objects
        self._lease_s = lease_s
        self._owner = owner
        self._address = ""
        self.token = secrets.token_urlsafe(32)
        """What another node must show that passes a request on."""
        self._lock = threading.Lock()
        """Of the claim: it is renewed, advertised and released by different threads."""
        self._sure_until = 0.0
        self._ended: set[int] = set()
        self._watched: dict[int, tuple[str, float]] = {}
        """What each other claim was when it was seen to change last, and when that was."""
        self._end_former()
        self.number = 0
        """The node's number now; 0 before it has one. Agents are owned by a number."""
        self._claim, self._version = self._begin()
        self._watch()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="isthmus-lease", daemon=True)
        self._thread.start()

    def require(self, number: int) -> None:
        """StorageError unless this is the node's number, and nobody has ended it until now. Asks
        the store if the last beat was a while ago."""
        if number == self.number and _now() > self._sure_until:
            with self._lock:
                self._beat()
        if number != self.number:
            raise StorageError(
                f"another server has taken this one for dead at {self._objects.url}, and may have "
                "taken over its agents"
            )

    def advertise(self, address: str) -> None:
        """Tells the other nodes where this one is reached."""
        with self._lock:
            self._address = address
            self._beat()

    def peer(self, number: int) -> Peer | None:
        """A node that lives; None if it has ended. StorageError."""
        if number in self._ended:
            return None
        data = self._objects.get(_name(number))
        claim = None if data is None else self._decoded(number, data)
        if claim is None or claim.ended:
            self._ended.add(number)
            return None
        return Peer(number, claim.address, claim.token, claim.where, claim.computes)

    def peers(self) -> list[Peer]:
        """All other nodes that live. StorageError."""
        numbers = sorted(self._tags().keys() - self._ended - {self.number})
        return [it for it in map(self.peer, numbers) if it is not None]

    def has_ended(self, number: int) -> bool:
        """Whether a node is known to have ended. Asks nothing."""
        return number in self._ended

    def others(self) -> frozenset[int]:
        """The numbers of other nodes that lived when this one looked last. Asks nothing."""
        return frozenset(self._watched.copy().keys() - self._ended)

    def ended(self) -> set[int]:
        """The numbers below this node's own that are known to have ended. StorageError."""
        held = {it for it in self._tags() if it == self.number or self.peer(it) is not None}
        return set(range(1, self.number)) - held

    def release(self) -> None:
        """Lets other nodes take the agents at once."""
        self._stop.set()
        self._thread.join()
        with self._lock:
            try:
                self._replace(msgspec.structs.replace(self._claim, ended=True))
            except StorageError as error:
                _log.warning("the lease was not given back: %s", error)

    # ------------------------------------------------------------------ the own claim

    def _end_former(self) -> None:
        """Ends what a process with this cache folder has left, and removes what has ended."""
        gone = []
        for number in self._tags():
            found = self._objects.find(_name(number))
            claim = None if found is None else self._decoded(number, found.data)
            if found is None or claim is None:
                continue
            if claim.owner == self._owner and not claim.ended:
                claim = msgspec.structs.replace(claim, ended=True)
                self._objects.replace(_name(number), msgspec.json.encode(claim), found.version)
            if claim.ended:
                gone.append(number)
        self._ended.update(gone)

    def _begin(self) -> tuple[Claim, Version]:
        """Takes the next number. StorageError."""
        where = f"process {os.getpid()} on {socket.gethostname()}"
        claim = Claim(
            owner=self._owner,
            where=where,
            lease_s=self._lease_s,
            address=self._address,
            token=self.token,
            computes=self.computes,
        )
        number = max(self._tags(), default=0)
        while True:
            number, started = number + 1, _now()
            version = self._objects.create(_name(number), msgspec.json.encode(claim))
            if version is not None:
                break
        # The last number stays known, so the ones before it may go.
        self._objects.delete(_name(it) for it in self._ended if it < number)
        self._sure_until = started + self._lease_s / 3
        self.number = number
        return claim, version

    def _beat(self) -> None:
        """Renews the claim; begins anew if it has ended."""
        started = _now()
        claim = self._claim
        claim = msgspec.structs.replace(claim, beat=claim.beat + 1, address=self._address)
        if self._replace(claim):
            self._sure_until = started + self._lease_s / 3
        else:
            _log.warning(
                "this server was taken for dead, and its agents are anybody's: it goes on as a new "
                "one, and brings back each agent when it is asked for"
            )
            self._ended.add(self.number)
            self._claim, self._version = self._begin()

    def _replace(self, claim: Claim) -> bool:
        """Writes the claim; False if it has ended."""
        name, data = _name(self.number), msgspec.json.encode(claim)
        version = self._objects.replace(name, data, self._version)
        if version is None:  # perhaps over its own beat, whose answer did not come
            found = self._objects.find(name)
            known = None if found is None else self._decoded(self.number, found.data)
            if found is None or known is None or known.token != self.token or known.ended:
                return False
            version = self._objects.replace(name, data, found.version)
        if version is None:
            return False
        self._claim, self._version = claim, version
        return True

    def _keep(self) -> None:
        while not self._stop.wait(self._lease_s / 6):
            try:
                with self._lock:
                    self._beat()
                self._watch()
            except StorageError as error:
                _log.warning("the lease could not be renewed: %s", error)

    # ------------------------------------------------------------------ other claims

    def _watch(self) -> None:
        """Looks which claims have changed, and ends those that have not for their lease."""
        tags, now = self._tags(), _now()
        for number, tag in tags.items():
            if number == self.number or number in self._ended:
                continue
            seen, since = self._watched.get(number, ("", now))
            if tag != seen:
                self._watched[number] = tag, now
            elif now > since + self._lease_s / 2:  # its lease may be shorter than ours
                self._end(number, tag, now - since)
        for number in self._watched.keys() - tags.keys():
            del self._watched[number]

    def _end(self, number: int, tag: str, silent_s: float) -> None:
        """Ends a claim, if it is unchanged for its lease and still the one of that tag."""
        found = self._objects.find(_name(number))
        try:
            claim = None if found is None else self._decoded(number, found.data)
        except SettingsError as error:  # nobody keeps such a claim
            _log.warning("%s", error)
            claim = None
        if found is None or claim is None or claim.ended:
            self._ended.add(number)
        elif silent_s > claim.lease_s and self._tags().get(number) == tag:
            claim = msgspec.structs.replace(claim, ended=True)
            if self._objects.replace(_name(number), msgspec.json.encode(claim), found.version):
                _log.warning("%s has been silent for %.0f s, and its agents are anybody's",
                             claim.where, silent_s)  # fmt: skip
                self._ended.add(number)

    def _tags(self) -> dict[int, str]:
        """What another one is when a claim changes, by number."""
        tags = self._objects.tags(_FOLDER)
        return {int(name): tag for name, tag in tags.items() if name.isdecimal()}

    def _decoded(self, number: int, data: bytes) -> Claim:
        try:
            return _decoder.decode(data)
        except (msgspec.MsgspecError, RecursionError) as error:
            where = f"{self._objects.url}/{_name(number)}"
            raise SettingsError(f"{where} is no claim of a server: {error}") from None


def _warn_if_slow(url: str, seconds: float, lease_s: float) -> None:
    """A beat is two requests, and there are six in a lease."""
    if seconds > lease_s / 12:
        _log.warning(
            "%s takes %.2f s for a request: with a lease of %g s this server may be taken for dead "
            "while it lives; give a lease_s of %.0f or more",
            *(url, seconds, lease_s, 12 * seconds + 1),
        )


def _name(number: int) -> str:
    return f"{_FOLDER}/{number:010d}"


def _now() -> float:
    """Seconds, counted also while the machine sleeps where the system can."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
