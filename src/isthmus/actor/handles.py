"""What a guest has opened: numbers that mean something to this actor only."""

from __future__ import annotations

from typing import Any, TypeVar

from isthmus.abi import Errno
from isthmus.errors import GuestFault, SnapshotInvalid

_LARGEST = (1 << 31) - 1
"""A guest takes a handle for an i32, and negative ones for errors."""
_Opened = TypeVar("_Opened")


class HandleTable:
    """Handles from 1 on, never given out twice, so that one that was closed stays unknown.

    Each knows the name under which the actor was given the model that it is of: one model may have
    been given under two names, and two others take their places when the actor is restored.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._opened: dict[int, Any] = {}
        self._models: dict[int, str] = {}
        self._known: dict[tuple[int, type], Any] = {}
        """What `get` found: asking an abstract class about an instance takes 0.4 µs."""
        self.kept: dict[int, Any] = {}
        """What others keep of open things, by handle, for as long as nothing is closed."""
        self._last = 0

    def add(self, thing: object, model: str) -> int:
        """A new handle of `thing`; GuestFault(ELIMIT) when too many are open."""
        self.require_room()
        self.put(self._last + 1, thing, model)
        return self._last

    def put(self, handle: int, thing: object, model: str) -> None:
        """Opens `thing` under a handle that it had before, and that `require_free` let pass."""
        self._opened[handle] = thing
        self._models[handle] = model
        self._last = max(self._last, handle)

    def require_free(self, handle: int) -> None:
        """SnapshotInvalid where something cannot be opened under that handle."""
        if handle < 1 or handle in self._opened or len(self._opened) >= self._capacity:
            raise SnapshotInvalid(f"the snapshot's handle {handle} is taken, or one too many")

    def set_last(self, last: int) -> None:
        """Has the next handle be `last` + 1, where that is further on."""
        self._last = max(self._last, last)

    @property
    def last(self) -> int:
        """The handle that was given out last."""
        return self._last

    def require_room(self) -> None:
        """GuestFault(ELIMIT) when `add` would raise it."""
        if len(self._opened) >= self._capacity or self._last >= _LARGEST:
            raise GuestFault(Errno.ELIMIT)

    def get(self, handle: int, kind: type[_Opened]) -> _Opened:
        """What `handle` stands for; GuestFault(EBADF) unless it is of that kind."""
        thing: _Opened | None = self._known.get((handle, kind))
        if thing is None:
            thing = self._opened.get(handle)
            if not isinstance(thing, kind):
                raise GuestFault(Errno.EBADF)
            self._known[handle, kind] = thing
        return thing

    def remove(self, handle: int, kind: type[_Opened]) -> _Opened:
        """As `get`, and the handle means nothing any more."""
        thing = self.get(handle, kind)
        del self._opened[handle], self._models[handle]
        self._known.clear()
        self.kept.clear()
        return thing

    def model_of(self, handle: int) -> str:
        """The name of the model that an open handle is of."""
        return self._models[handle]

    def numbers(self) -> list[int]:
        """Every handle that is open, oldest first."""
        return list(self._opened)

    def all(self, kind: type[_Opened]) -> list[_Opened]:
        """Everything of that kind that is open, oldest first."""
        return [thing for thing in self._opened.values() if isinstance(thing, kind)]
