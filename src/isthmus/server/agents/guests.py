"""Guests that clients brought: whose each is, how many an owner may have, and when they go.

The modules lie in the `Home`. Who brought each, and when it was used last, is in `guests.json` of
the local folder; of a module that is not in there nobody is known, so every key may use it. An
owner sees, uses and removes the own ones. A module goes when its last owner removes it, and when no
agent has used it for a while.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from isthmus.runtime.sources import bundled_guests
from isthmus.server.http.errors import HttpError, not_found
from isthmus.server.http.fair import Owner
from isthmus.server.settings import ServerSettings
from isthmus.server.storage.home import Home
from isthmus.server.storage.record import Record
from isthmus.snapshot.atomic import AtomicFile


class _Brought(Struct):
    """One module."""

    nbytes: int
    used: float
    """When it was brought or used last, in seconds since 1970."""
    owners: list[str | None] = []
    name: str = ""
    """What its first owner called it; empty if that is not known here."""


_decoder = msgspec.json.Decoder(dict[str, _Brought])


class BroughtGuests:
    """See the module. Its methods wait for the disk and are called by one thread at a time.

    `records` are the agents that there are; `now` is the time in seconds since 1970.
    """

    def __init__(
        self,
        home: Home,
        path: Path,
        settings: ServerSettings,
        records: Callable[[], Iterable[Record]],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._home = home
        self._path = path
        self._settings = settings
        self._records = records
        self._now = now
        self._known = _read(path)

    def names(self, owner: Owner) -> list[str]:
        """Hashes of those that an owner may use."""
        return [it for it in self._home.guests() if self._is_allowed(it, owner)]

    def name_of(self, digest: str) -> str:
        """What a guest is called; empty if nothing is known."""
        return self._known[digest].name if digest in self._known else ""

    def add(self, wasm: bytes, digest: str, owner: Owner, name: str = "") -> None:
        """Keeps a module. HttpError 429 if its owner has as many as one may have."""
        self.collect()
        known = self._known.get(digest)
        if known is None or owner not in known.owners:
            self._require_share(len(wasm), owner)
        self._home.add_guest(wasm)
        known = self._known.setdefault(digest, _Brought(len(wasm), self._now()))
        known.name = known.name or name
        known.owners = list(dict.fromkeys([*known.owners, owner]))
        known.used = self._now()
        self._write()

    def get(self, digest: str, owner: Owner) -> bytes | None:
        """A module that the owner may use, which is used now; None if there is none."""
        if not self._may_use(digest, owner):
            return None
        if (known := self._known.get(digest)) is not None:
            known.used = self._now()
        return self._home.guest(digest)

    def peek(self, digest: str) -> bytes | None:
        """A module for an agent that was made of it, whoever brought it; None if it is gone."""
        return self._home.guest(digest)

    def remove(self, digest: str, owner: Owner) -> bool:
        """Takes it from its owner, and says whether it is gone.

        HttpError 404 if it is not the owner's, 409 if agents of the owner's use it.
        """
        if not self._may_use(digest, owner):
            raise not_found(f"there is no guest {digest} that was brought")
        users = [it for it in self._records() if it.guest == digest and it.owner in (None, owner)]
        if users:
            said = (
                f"{len(users)} agents use this guest, {users[0].id} among them: delete them first"
            )
            raise HttpError(409, said, code="guest_in_use")
        known = self._known.get(digest, _Brought(0, 0.0))
        known.owners = [it for it in known.owners if it != owner]
        if not known.owners:
            self._forget(digest)
        self._write()
        return not known.owners

    def collect(self) -> None:
        """Removes what no agent has used for `guest_kept_s`."""
        in_use = {it.guest for it in self._records()}
        oldest = self._now() - self._settings.guest_kept_s
        for digest in self._home.guests():
            known = self._known.setdefault(digest, _Brought(0, self._now()))
            if digest in in_use:
                known.used = self._now()
            elif known.used < oldest:
                self._forget(digest)
        self._write()

    # ------------------------------------------------------------------ parts

    def _may_use(self, digest: str, owner: Owner) -> bool:
        return self._is_allowed(digest, owner) and digest in self._home.guests()

    def _is_allowed(self, digest: str, owner: Owner) -> bool:
        """Whether an owner may use a guest, if it is there."""
        owners = self._known[digest].owners if digest in self._known else []
        return owner is None or not owners or owner in owners

    def _require_share(self, nbytes: int, owner: Owner) -> None:
        own = [it.nbytes for it in self._known.values() if owner in it.owners]
        most, most_nbytes = self._settings.guests, self._settings.guests_nbytes
        if len(own) >= most or sum(own) + nbytes > most_nbytes:
            raise HttpError(
                429,
                f"{len(own)} guests with {sum(own)} bytes were brought already; {most} with "
                f"{most_nbytes} bytes are allowed: DELETE /v1/guests/HASH removes one",
                code="too_many_guests",
                kind="insufficient_quota",
            )

    def _forget(self, digest: str) -> None:
        self._home.remove_guest(digest)
        self._known.pop(digest, None)

    def _write(self) -> None:
        data = msgspec.json.encode(self._known)
        with AtomicFile(self._path) as file:
            file.write(data, 0)
            file.commit(len(data))


def _read(path: Path) -> dict[str, _Brought]:
    """What the file says; nothing if it is not there, or is damaged: then no owner is known."""
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return _decoder.decode(path.read_bytes())
    return {}


def bundled_name(sha256: str) -> str | None:
    """The bundled guest whose module has that hash; None if there is none."""
    found = bundled_guests().items()
    return next(
        (name for name, path in found if hashlib.sha256(path.read_bytes()).hexdigest() == sha256),
        None,
    )
