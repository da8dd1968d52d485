"""What `poll_oneoff` answers: all at once, since nobody waits in virtual time.

Standard streams are always ready: a read waits by itself. Clocks are due only if nothing is ready,
and then the virtual clock moves to the earliest of them.

1. a subscription, 48 bytes: userdata u64; type u8, padded to 8; then 32 bytes by type
2. of a clock: id u32, padded to 8; timeout u64; precision u64; flags u16
3. of a descriptor: its number u32
4. an event, 32 bytes: userdata u64; errno u16; type u8, padded to 8; bytes that are ready u64;
   flags u16
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

SUBSCRIPTION_NBYTES, EVENT_NBYTES = 48, 32
MAX_SUBSCRIPTIONS = 1_024
"""Subscriptions that one poll_oneoff takes."""
CLOCKS = range(4)
"""Identities of clocks: wall, monotonic, the process's and the thread's."""

_SUBSCRIPTION = struct.Struct("<QB7xI4xQQH6x")
_EVENT = struct.Struct("<QHB5xQH6x")
_CLOCK, _READ, _WRITE = range(3)
_ABSOLUTE = 1
_BADF, _INVAL = 8, 28
_READY_NBYTES = 1


class Clock(Protocol):
    """Virtual time, nanoseconds since 1970."""

    def read(self) -> int:
        """The time now; the next reading is later."""

    def move_to(self, ns: int) -> None:
        """Has it be that time, or stay if it is later already."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """One thing that a guest waits for."""

    userdata: int
    kind: int
    number: int
    """The clock, or the descriptor."""
    timeout_ns: int
    flags: int

    def event(self, errno: int = 0) -> bytes:
        """What the guest is told of it."""
        nbytes = _READY_NBYTES if self.kind != _CLOCK and not errno else 0
        return _EVENT.pack(self.userdata, errno, self.kind, nbytes, 0)

    def due(self, now_ns: int) -> int:
        """When a clock's time is over."""
        return self.timeout_ns if self.flags & _ABSOLUTE else now_ns + self.timeout_ns


def subscriptions(data: bytes) -> list[Subscription]:
    """Those that a guest's bytes describe."""
    return [
        Subscription(userdata, kind, number, timeout_ns, flags)
        for userdata, kind, number, timeout_ns, _, flags in _SUBSCRIPTION.iter_unpack(data)
    ]


def events(wanted: Sequence[Subscription], clock: Clock) -> list[bytes]:
    """At least one event, in the order of the subscriptions."""
    errnos = {id(it): _errno(it) for it in wanted}
    ready = [it for it in wanted if it.kind != _CLOCK or errnos[id(it)]]
    if not ready:
        now = clock.read()
        first = min(it.due(now) for it in wanted)
        clock.move_to(first)
        ready = [it for it in wanted if it.due(now) <= max(first, now)]
    return [it.event(errnos[id(it)]) for it in ready]


def _errno(wanted: Subscription) -> int:
    """What is wrong with a subscription; 0 if nothing is."""
    if wanted.kind == _CLOCK:
        return 0 if wanted.number in CLOCKS else _INVAL
    if wanted.kind not in (_READ, _WRITE):
        return _INVAL
    is_there = wanted.number == 0 if wanted.kind == _READ else wanted.number in (1, 2)
    return 0 if is_there else _BADF
