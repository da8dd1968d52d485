"""What is known of a request while it is answered: for the log, and for its key's limits.

Whoever learns something of it writes it down at `current()`, which each request has of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import time
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, TypeVar

from isthmus.server.http.ids import random_id
from isthmus.server.http.key import Key
from isthmus.server.http.log import tell

Shape: TypeAlias = Callable[[int, Any], tuple[int, Any]]
"""Makes an error's status and body, as OpenAI's clients expect them, those of another API."""
_T = TypeVar("_T")
PROBES = ("/metrics", "/healthz", "/health", "/v1/health", "/readyz")
"""Paths that programs ask again and again."""
_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


class Lease(Protocol):
    """What a request uses, and others wait for: a model in memory."""

    def take(self) -> None:
        """Begins one use."""

    def give_back(self) -> None:
        """Ends one use."""


@dataclass
class Entry:
    """One request. Texts of prompts and answers have no place here, nor have keys."""

    id: str
    """The client's X-Request-ID if it is a sane one, else ours."""
    method: str
    path: str
    """The path as it came, percent-encoded, without the query."""
    key: Key | None = None
    """Who asks; None where no keys are, or they are not needed."""
    client: str | None = None
    """Its address: the connection's, or what a trusted proxy says."""
    origin: str | None = None
    """The Origin header, which browsers send; not in the log."""
    agent: str | None = None
    model: str | None = None
    status: int = 0
    """0 where nothing was answered."""
    answered: bool = False
    """Whether all of the answer was sent."""
    nbytes_in: int = 0
    nbytes_out: int = 0
    """Bytes of the answer's body; `nbytes_in` are those of the request's."""
    tokens_in: int = 0
    """Tokens of prompts, computed or remembered."""
    tokens_cached: int = 0
    """Tokens of prompts that were remembered."""
    tokens_out: int = 0
    first_token: float | None = None
    """When the first token of the answer came, on the clock of time.monotonic; so `last_token`."""
    last_token: float | None = None
    queued_s: float = 0.0
    """Seconds that its messages waited for a place; not in the log, nor is `placed`."""
    placed: float | None = None
    """When the first of them had one, on the clock of time.monotonic."""
    error: str | None = None
    """The error's code, or its type where it has no code."""
    began: float = field(default_factory=time.monotonic)
    shape: Shape | None = None
    """How errors are told; None for OpenAI's shape."""
    passed_on: bool = False
    """Whether another server of the same store has passed it on."""
    silent_s: float = 10.0
    """Seconds of silence after which a stream of events says that it goes on."""
    warnings: dict[str, None] = field(default_factory=dict)
    """What the answer warns of, in order, for its header."""
    prompts: dict[int, int] = field(default_factory=dict)
    """The `id` of each prompt that is counted already."""
    _leases: dict[Lease, None] = field(default_factory=dict, init=False)
    """What it uses until it, and all that works for it, has ended; see `working`."""
    _n_working: int = field(default=0, init=False)

    def warn(self, said: Iterable[str]) -> None:
        """Has the answer's header tell these sentences too."""
        self.warnings |= dict.fromkeys(said)

    @staticmethod
    def of(scope: MutableMapping[str, Any]) -> Entry:
        """The beginning of one."""
        heads = dict(scope["headers"])
        given = heads.get(b"x-request-id", b"").decode("latin-1")
        id_ = given if _SANE_ID.fullmatch(given) else random_id("req_", 32)
        origin = heads[b"origin"].decode("latin-1") if b"origin" in heads else None
        path = scope["raw_path"].decode("latin-1")
        return Entry(id_, scope["method"], path, client=_client_of(scope), origin=origin)

    def count_prompt(self, prompt: Sequence[int], n_media: int = 0) -> None:
        """Counts its tokens: once, for all choices that there may be of it. `n_media` are those of
        pictures and sounds, beside the one id that each has, as soon as they are known."""
        n_tokens = len(prompt) + n_media
        self.tokens_in += n_tokens - self.prompts.get(id(prompt), 0)
        self.prompts[id(prompt)] = n_tokens

    def count_tokens(self, n: int) -> None:
        """Counts tokens of the answer that came now."""
        if n:
            self.tokens_out += n
            self.last_token = time.monotonic()
            self.first_token = self.first_token or self.last_token

    def take_place(self, asked: float) -> None:
        """Notes that a message has a place, which it waited for since it asked."""
        now = time.monotonic()
        self.queued_s += now - asked
        self.placed = self.placed or now

    def uses(self, lease: Lease) -> bool:
        """Whether the request uses it already."""
        return lease in self._leases

    def use(self, lease: Lease) -> None:
        """Uses something until the request, and all that works for it, has ended. Raises
        RuntimeError if nothing works for it any more."""
        if not self._n_working:
            raise RuntimeError("nothing works for this request that could end")
        if lease not in self._leases:
            lease.take()
            self._leases[lease] = None

    @contextmanager
    def working(self, parent: Entry | None = None) -> Iterator[None]:
        """While open, what the request uses stays; what `parent` uses is used too."""
        self._n_working += 1
        for lease in () if parent is None else parent._leases:
            self.use(lease)
        try:
            yield
        finally:
            self._end()

    def work_until(self, done: asyncio.Future[Any]) -> None:
        """Has what the request uses stay until something has ended that works for it."""
        if self._n_working:
            self._n_working += 1
            done.add_done_callback(lambda _: self._end())

    def _end(self) -> None:
        self._n_working -= 1
        if not self._n_working:
            leases, self._leases = self._leases, {}
            for lease in leases:
                lease.give_back()

    @property
    def owner(self) -> str | None:
        """The key's name."""
        return None if self.key is None else self.key.name

    def write(self) -> None:
        """The line in the log. Probes of the server that went well have none: one comes each second
        from every page, proxy and Prometheus."""
        if self.path in PROBES and 0 < self.status < 400:
            return
        seconds = round(time.monotonic() - self.began, 6)
        error = f" {self.error}" if self.error else ""
        tell(
            "request",
            f"{self.method} {self.path} {self.status} {seconds:.3f}s {self.owner or '-'}{error}",
            id=self.id,
            key=self.owner,
            client=self.client,
            method=self.method,
            path=self.path,
            status=self.status,
            bytes_in=self.nbytes_in,
            bytes_out=self.nbytes_out,
            seconds=seconds,
            tokens_in=self.tokens_in,
            tokens_out=self.tokens_out,
            agent=self.agent,
            model=self.model,
            error=self.error,
        )


def _client_of(scope: MutableMapping[str, Any]) -> str | None:
    """The address of a client; None for what a proxy says that is none."""
    with contextlib.suppress(ValueError, TypeError):
        return str(ipaddress.ip_address(scope["client"][0]))
    return None


_current: ContextVar[Entry] = ContextVar("entry")


def begin(entry: Entry) -> None:
    """From here on `current` is this one, in this task and those that it starts."""
    _current.set(entry)


async def in_thread(work: Callable[[], _T]) -> _T:
    """What `work` gives, in a thread. It goes on if its caller leaves; what the request uses stays
    until it has ended."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    current().work_until(task)
    task.add_done_callback(lambda it: it.cancelled() or it.exception())  # is told if anybody waits
    return await asyncio.shield(task)


def current() -> Entry:
    """The request that is being answered; one that nobody reads, outside of any."""
    return _current.get(None) or Entry("-", "-", "-")
