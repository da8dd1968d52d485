"""Who may write below a URL: one server, as long as it says so again and again.

::

    URL/lease/0000000007    the seventh holder's claim, which only it writes again

Object stores have no locks. A holder raises its claim's `beat` every sixth of the lease. Whoever
wants the URL looks at the last claim for a whole lease: if it changes, its holder lives and the URL
is refused; if not, the next number is created, which one of several manages. No clocks of two
machines are compared.

A holder that did not manage to beat for a third of a lease writes no record any more. That alone
excludes nothing: a process may be stopped between looking at its clock and writing, and wake up
when the next holder has long begun. So each holder fences (`must_fence`): before it does anything
else it writes every record anew, on condition, and an older holder's condition fails from then on.
What cannot be fenced since it is not there yet, a new record, is followed by `verify`.

A holder that was killed and starts again with the same cache folder, whose lock shows that it is
the same, need not wait.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from isthmus.errors import SettingsError, StorageError
from isthmus.server.kinds import DAY_S
from isthmus.server.storage.objects import Objects

_log = logging.getLogger("isthmus.server")
_FOLDER = "lease"


class Claim(Struct, frozen=True, kw_only=True):
    """What a holder says."""

    owner: str
    where: str
    """For people."""
    lease_s: Annotated[float, Meta(gt=0, le=DAY_S)]
    """Whoever comes next may have to wait for as long."""
    beat: int = 0
    released: bool = False
    fenced: bool = False
    """Whether no older holder can write a record any more."""


_decoder = msgspec.json.Decoder(Claim)


class Lease:
    """See the module. Taken when made; a thread of its own keeps it until `release`."""

    def __init__(self, objects: Objects, owner: str, lease_s: float) -> None:
        objects.require_conditions(_FOLDER)
        self._objects = objects
        self._lease_s = lease_s
        where = f"process {os.getpid()} on {socket.gethostname()}"
        self._claim = Claim(owner=owner, where=where, lease_s=lease_s)
        self._lost = False
        self._fenced = False
        self._sure_until = 0.0
        self.number = self._take()
        """How many holders there were until now, this one included."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="isthmus-lease", daemon=True)
        self._thread.start()

    def require(self) -> None:
        """StorageError unless nobody else can have it."""
        url = self._objects.url
        if self._lost:
            raise StorageError(self._taken_over)
        if _now() > self._sure_until:
            raise StorageError(f"{url} has not been reached for {self._lease_s / 3:.0f} seconds")

    def verify(self) -> None:
        """As `require`, by asking the store: what was written before is known to later holders."""
        if not self._is_last():
            self._lost = True
        self.require()

    @property
    def must_fence(self) -> bool:
        """Whether an older holder may wake up and write."""
        return not self._fenced

    def note_fenced(self) -> None:
        """Has later holders know that nobody older can write."""
        self._fenced = True

    @property
    def _taken_over(self) -> str:
        return f"another server has taken over {self._objects.url}: stop this one"

    def release(self) -> None:
        """Lets the next server have it at once."""
        self._stop.set()
        self._thread.join()
        try:
            if self._is_last():
                self._put(msgspec.structs.replace(self._claim, released=True))
        except StorageError as error:
            _log.warning("the lease was not given back: %s", error)

    # ------------------------------------------------------------------ taking

    def _take(self) -> int:
        number, last = self._last()
        if last is not None and not last.released and last.owner != self._claim.owner:
            number, last = self._outlast(number, last)
        # A cache folder has one process, which after its release has nothing under way.
        mine = last is not None and last.released and last.owner == self._claim.owner
        self._fenced = mine and last is not None and last.fenced
        started = _now()
        if not self._objects.create(_name(number + 1), self._encoded(self._claim)):
            raise SettingsError(f"another server has just taken {self._objects.url}")
        self._sure_until = started + self._lease_s / 3
        self._objects.delete(_name(it) for it in self._numbers() if it <= number)
        return number + 1

    def _outlast(self, number: int, seen: Claim) -> tuple[int, Claim]:
        """Waits as long as a living holder would need to show itself; SettingsError if it does."""
        _log.info("waiting whether %s is alive: %.0f s", seen.where, seen.lease_s)
        end = _now() + seen.lease_s
        while _now() < end:
            time.sleep(seen.lease_s / 12)
            latest, now = self._last()
            if now is not None and now.released:
                return latest, now
            if (latest, now) != (number, seen):
                raise SettingsError(
                    f"another server uses {self._objects.url}: {seen.where}; "
                    "give this one --data of its own"
                )
        return number, seen

    def _numbers(self) -> list[int]:
        return [int(name) for name in self._objects.names(_FOLDER) if name.isdecimal()]

    def _last(self) -> tuple[int, Claim | None]:
        """The last claim and its number; 0 and None before the first."""
        number = max(self._numbers(), default=0)
        data = self._objects.get(_name(number)) if number else None
        if data is None:
            return number, None
        try:
            return number, _decoder.decode(data)
        except (msgspec.MsgspecError, RecursionError) as error:
            where = f"{self._objects.url}/{_name(number)}"
            raise SettingsError(f"{where} is no claim of a server: {error}") from None

    # ------------------------------------------------------------------ keeping

    def _keep(self) -> None:
        while not self._lost and not self._stop.wait(self._lease_s / 6):
            try:
                self._beat()
            except StorageError as error:
                _log.warning("the lease could not be renewed: %s", error)

    def _beat(self) -> None:
        started = _now()
        if not self._is_last():
            self._lost = True
            _log.error("another server has taken over %s", self._objects.url)
            return
        self._claim = msgspec.structs.replace(self._claim, beat=self._claim.beat + 1)
        self._put(self._claim)
        self._sure_until = started + self._lease_s / 3

    def _is_last(self) -> bool:
        return max(self._numbers(), default=0) == self.number

    def _put(self, claim: Claim) -> None:
        self._objects.put(_name(self.number), self._encoded(claim))

    def _encoded(self, claim: Claim) -> bytes:
        return msgspec.json.encode(msgspec.structs.replace(claim, fenced=self._fenced))


def _name(number: int) -> str:
    return f"{_FOLDER}/{number:010d}"


def _now() -> float:
    """Seconds, counted also while the machine sleeps where the system can."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
