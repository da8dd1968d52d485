"""What the owners of keys have used, and whether they may go on.

All of it is counted by a key's name. Tokens of the day are kept in a file that is written at most
once a second and when the server stops: `kill -9` forgets the last second, and what was being
answered. All else begins anew with the server. A request that begins below a limit is finished.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from isthmus.errors import SettingsError, SnapshotError
from isthmus.server.http.entry import Entry
from isthmus.server.http.errors import HttpError
from isthmus.server.http.key import Key
from isthmus.snapshot.atomic import AtomicFile

_log = logging.getLogger("isthmus.server")
_MINUTE_S = 60.0
_DAY_S = 86_400
_BUSY_S = 1
"""When to try again where others of one's own requests must end first."""
_SAVED_EVERY_S = 1.0


class _Day(Struct):
    """The file: what was used of a day in UTC."""

    day: int
    """Since 1970."""
    tokens: dict[str, int]


_decoder = msgspec.json.Decoder(_Day)


class Quotas:
    """See the module. Used by one event loop. `now` is the time in seconds since 1970."""

    def __init__(
        self, path: Path, now: Callable[[], float] = time.time, concurrent: int | None = None
    ) -> None:
        """`concurrent` is for keys whose own limits say nothing of it."""
        self._path = path
        self._concurrent = concurrent
        self._now = now
        self._n_running: Counter[str] = Counter()
        self._begun: dict[str, deque[float]] = {}
        """When the requests of the last minute began."""
        self._day = _read(path) or _Day(self._today(), {})
        self._saved = True

    # ------------------------------------------------------------------ requests

    @contextlib.contextmanager
    def spending(self, key: Key, entry: Entry) -> Iterator[None]:
        """One request, whose tokens are counted at its end. HttpError 429 where it may not be."""
        self._require(key)
        self._n_running[key.name] += 1
        self._recent(key.name).append(self._now())
        try:
            yield
        finally:
            self._n_running[key.name] -= 1
            self._spend(key.name, entry.tokens_in + entry.tokens_out)

    def charge(self, entry: Entry) -> None:
        """Counts the tokens of what went on after its request had ended."""
        if entry.owner is not None:
            self._spend(entry.owner, entry.tokens_in + entry.tokens_out)

    def headers(self, key: Key) -> dict[str, str]:
        """What is left, as OpenAI's API tells it."""
        found: dict[str, str] = {}
        limits, name = key.limits, key.name
        if limits.rpm is not None:
            recent = self._recent(name)
            reset = recent[0] + _MINUTE_S - self._now() if recent else 0.0
            found |= _headers("requests", limits.rpm, limits.rpm - len(recent), reset)
        if limits.tpd is not None:
            left = limits.tpd - self._used(name)
            found |= _headers("tokens", limits.tpd, left, self._rest_of_day())
        return found

    def _require(self, key: Key) -> None:
        limits, name = key.limits, key.name
        recent = self._recent(name)
        most = self._concurrent if limits.concurrent is None else limits.concurrent
        if most is not None and self._n_running[name] >= most:
            raise _exceeded(f"{most} requests at a time", "requests", _BUSY_S)
        if limits.rpm is not None and len(recent) >= limits.rpm:
            wait = recent[0] + _MINUTE_S - self._now()
            raise _exceeded(f"{limits.rpm} requests a minute", "requests", wait)
        if limits.tpd is not None and self._used(name) >= limits.tpd:
            raise _exceeded(f"{limits.tpd} tokens a day (UTC)", "tokens", self._rest_of_day())

    def _recent(self, name: str) -> deque[float]:
        begun = self._begun.setdefault(name, deque())
        while begun and begun[0] <= self._now() - _MINUTE_S:
            begun.popleft()
        return begun

    # ------------------------------------------------------------------ tokens

    def _today(self) -> int:
        return int(self._now() // _DAY_S)

    def _rest_of_day(self) -> float:
        return _DAY_S - self._now() % _DAY_S

    def _used(self, name: str) -> int:
        if self._day.day != self._today():
            self._day = _Day(self._today(), {})
        return self._day.tokens.get(name, 0)

    def _spend(self, name: str, n_tokens: int) -> None:
        if n_tokens:
            self._day.tokens[name] = self._used(name) + n_tokens
            self._saved = False

    async def keep(self) -> None:
        """Saves what has changed, once a second, until it is cancelled."""
        while True:
            await asyncio.sleep(_SAVED_EVERY_S)
            try:
                await self.save()
            except SnapshotError as error:
                _log.error("what keys have used is not on the disk: %s", error)

    async def save(self) -> None:
        """Writes the file where it is not what it should be. SnapshotError where it cannot."""
        if not self._saved:
            self._saved = True
            try:
                await asyncio.to_thread(_write, self._path, msgspec.json.encode(self._day))
            except SnapshotError:
                self._saved = False
                raise


def _read(path: Path) -> _Day | None:
    try:
        return _decoder.decode(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise SettingsError(
            f"{path}, which counts the tokens of keys, cannot be read: {error}; "
            "without it the day is counted from now on"
        ) from None


def _write(path: Path, data: bytes) -> None:
    with AtomicFile(path) as file:
        file.write(data, 0)
        file.commit(len(data))


def _exceeded(allowed: str, kind: str, wait_s: float) -> HttpError:
    return HttpError(
        429,
        f"this key allows {allowed}",
        code="rate_limit_exceeded",
        kind=kind,
        retry_s=max(1, math.ceil(wait_s)),
    )


def _headers(what: str, limit: int, left: int, reset_s: float) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{what}": str(limit),
        f"x-ratelimit-remaining-{what}": str(max(0, left)),
        f"x-ratelimit-reset-{what}": f"{max(0.0, reset_s):.3f}s",
    }
