"""The guests that agents are made from: bundled ones, and those that clients brought.

What was brought is a module, or a script with a module that has nothing but it in it
(`runtime/scripts.py`): the server's own interpreter runs scripts.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Mapping
from typing import Any

from isthmus import Runtime
from isthmus.errors import GuestInvalid
from isthmus.runtime.scripts import INTERPRETERS, Script, interpreter_of
from isthmus.runtime.sources import bundled_guests
from isthmus.server.agents.guests import BroughtGuests
from isthmus.server.agents.replies import GuestCard
from isthmus.server.http.entry import current
from isthmus.server.storage.record import Record
from isthmus.wasm import Guest

_MAGIC = b"\0asm"
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Guests:
    """See the module. Its methods wait for the disk, or compile."""

    def __init__(self, runtime: Runtime, brought: BroughtGuests) -> None:
        self._runtime = runtime
        self._brought = brought
        self._lock = threading.Lock()
        """Of those that were brought."""

    def cards(self) -> list[GuestCard]:
        """Bundled guests, and those that were brought and whoever asks may use."""
        bundled: list[GuestCard] = [
            {"id": it, "kind": "bundled", "name": it} for it in bundled_guests()
        ]
        return [*bundled, *map(self.card, self._brought.names(current().owner))]

    def card(self, digest: str) -> GuestCard:
        """One that was brought."""
        return {"id": digest, "kind": "brought", "name": self._brought.name_of(digest)}

    def add(self, contents: bytes, name: str = "") -> str:
        """Keeps a module that compiles, or a script, which has a name such as `agent.js`; returns
        its hash. GuestInvalid, also for a script whose interpreter this server does not have.
        """
        if interpreter_of(name):
            script = Script.of(name, contents)
            self._runtime.load_guest(script.interpreter.name)
            contents, name = script.module, script.name
            digest = hashlib.sha256(contents).hexdigest()
        else:
            digest = self._compiled(contents)
        with self._lock:
            self._brought.add(contents, digest, current().owner, name)
        return digest

    def _compiled(self, wasm: bytes) -> str:
        """The hash of a module that compiles. GuestInvalid."""
        try:
            return self._runtime.load_guest(wasm).sha256
        except GuestInvalid as error:
            if wasm.startswith(_MAGIC):
                raise
            names = " or ".join(f"?name=agent.{it}" for it in INTERPRETERS)
            raise GuestInvalid(f"{error}; a script is brought with its name: {names}") from None

    def remove(self, digest: str) -> None:
        """Removes a guest that was brought, for whoever asks. HttpError 404, 409."""
        with self._lock:
            gone = self._brought.remove(digest, current().owner)
        if gone:
            self._runtime.forget_guest(digest)

    def load(self, name: str) -> Guest:
        """A compiled guest by name or hash; for a script its interpreter. GuestInvalid."""
        if name in bundled_guests():
            return self._runtime.load_guest(name)
        owner = current().owner
        with self._lock:
            wasm = self._brought.get(name, owner) if _SHA256.fullmatch(name) else None
        if wasm is None:
            known = ", ".join(bundled_guests())
            raise GuestInvalid(f"there is no guest {name!r}: give {known}, or bring one")
        script = Script.of_module(wasm)
        return self._runtime.load_guest(script.interpreter.name if script else wasm)

    def options(self, name: str, args: Mapping[str, str]) -> dict[str, str]:
        """All options of an agent that has these of its own: a script is one of its guest's."""
        wasm = self._brought.peek(name) if _SHA256.fullmatch(name) else None
        script = Script.of_module(wasm) if wasm is not None else None
        return {**args, **script.options} if script else dict(args)

    def restoring(self, record: Record, how: Mapping[str, Any]) -> dict[str, Any]:
        """How an agent is restored: as exactly as its record says if `how` does not; if it has
        other options, those of its guest's script are among them."""
        how = {"require": record.require, **how}
        return how | ({"args": self.options(record.guest, how["args"])} if "args" in how else {})
