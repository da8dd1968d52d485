"""What all host functions of one actor share: what it was given, has opened, and is doing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import IntFlag
from functools import cache, partial
from typing import TypeVar

from isthmus.abi import Errno
from isthmus.actor.ask import Aside, Prompt
from isthmus.actor.handles import HandleTable
from isthmus.actor.message import Message
from isthmus.actor.shares import Share
from isthmus.actor.virtual import SeededRandom, VirtualClock
from isthmus.config import Limits
from isthmus.counters import Counters
from isthmus.device.buffer import Binding
from isthmus.errors import ContextFull, GuestFault, ModelNotFound, ModelUnsupported, Overloaded
from isthmus.memory import Region
from isthmus.model import Model, Session
from isthmus.model.spans import Embeddings
from isthmus.model.step import Chunk
from isthmus.tools import Tool
from isthmus.units import KIB, MIB, align_up
from isthmus.wasm.hostcalls import GuestMemory

_Flags = TypeVar("_Flags", bound=IntFlag)

MAX_NAME_NBYTES = 256
MAX_TEXT_NBYTES = MIB
MAX_HANDLES = 1024
IN_LINE_NBYTES = 64 * KIB
"""Bytes that a host function copies, decodes or draws at once, in a millisecond or two; more is
done by a thread of a pool, since everybody else waits meanwhile."""
MAX_SAID = 300
"""Characters of a guest's own reason that its caller is told."""
FREE_OUTPUT_NBYTES = MIB
"""Bytes of a message's output that the budget does not count. More counts in steps of this size."""
OUTPUT_COPIES = 3
"""Copies of a message's output: as bytes, as text on its way, and in the reply."""
PIECE_NBYTES = 64
"""Bytes of memory that a piece of output takes beside its text, however short it is."""
LOG_RECORD_NBYTES = 32
"""Bytes of output that a log record counts as, beside its text."""

MIN_INHERITED = 8
"""Tokens in common with another actor's session that are worth a copy."""

guest_log = logging.getLogger("isthmus.guest")


@dataclass(frozen=True)
class Granted:
    """What one actor was given: everything that it can reach outside its own memory."""

    models: Mapping[str, Model] = field(default_factory=dict)
    tools: Mapping[str, Tool] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    label: str = ""
    """Its name in the log."""


class Context:
    """See the module. Used by one thread at a time: the loop's, or the slow lane's."""

    def __init__(
        self, granted: Granted, clock: VirtualClock, random: SeededRandom, counters: Counters
    ) -> None:
        self.granted = granted
        self.limits = granted.limits
        self.clock = clock
        self.random = random
        self.counters = counters
        self.handles = HandleTable(MAX_HANDLES)
        self.donors: Sequence[Session] = ()
        """Sessions of another actor, whose tokens need not be computed again; see `inheriting`."""
        self.log_position = 0
        """How many records the guest has logged in all its life."""
        self.message = Message(b"", "", Share())
        """The message that it serves, or served last."""
        self.tool_call: object | None = None
        """What stands for the call of a tool that runs for it now."""
        self.region: Region
        self.memory: GuestMemory
        self.binding: Binding
        self.hold: Callable[[int], None]
        """Counts bytes of output as memory until the message ends, or raises Overloaded."""

    # ------------------------------------------------------------------ what a guest names

    def model(self, handle: int) -> Model:
        """An open model; GuestFault(EBADF)."""
        return self.handles.get(handle, Model)

    def session(self, handle: int) -> Session:
        """An open session; GuestFault(EBADF)."""
        return self.handles.get(handle, Session)

    def require_no_session(self, ptr: int, nbytes: int) -> None:
        """GuestFault(EBUSY) if any of the bytes belongs to a session."""
        sessions = self.handles.all(Session)
        if any(s.ptr < ptr + nbytes and ptr < s.ptr + s.layout.nbytes for s in sessions):
            raise GuestFault(Errno.EBUSY)

    def require_no_top(self, ptr: int, nbytes: int) -> None:
        """GuestFault(EBUSY) if any of the bytes belongs to a session's candidates."""
        tops = [it.top for it in self.handles.all(Session) if it.top is not None]
        if any(it.ptr < ptr + nbytes and ptr < it.ptr + it.nbytes for it in tops):
            raise GuestFault(Errno.EBUSY)

    def fill(self, ptr: int, cap: int, data: bytes) -> int:
        """Writes `data` if it fits in `cap` bytes; returns how many it needs."""
        return self.memory.fill(ptr, cap, data)

    def fill_soon(self, ptr: int, cap: int, data: bytes) -> int | Aside[int]:
        """As `fill`, on another thread if the data is large."""
        if len(data) > IN_LINE_NBYTES:
            return Aside(self.message, partial(self.fill, ptr, cap, data))
        return self.fill(ptr, cap, data)

    # ------------------------------------------------------------------ limits

    def limit(self, name: str, value: int, limit: int | None) -> None:
        """GuestFault(ELIMIT) if a value is beyond a limit, which is noted."""
        if limit is not None and value > limit:
            self.message.reached(name, limit)
            raise GuestFault(Errno.ELIMIT)

    def require_tokens(self, n_in: int, n_out: int) -> None:
        """Raises unless the message goes on, and may use so many tokens more."""
        message, limits = self.message, self.limits
        message.check_going_on()
        if limits.tokens is not None:
            self.limit("tokens", message.n_tokens + n_in + n_out, limits.tokens)
        if limits.tokens_in is not None and n_in:
            self.limit("tokens_in", message.tokens_in + n_in, limits.tokens_in)
        if limits.tokens_out is not None and n_out:
            self.limit("tokens_out", message.tokens_out + n_out, limits.tokens_out)

    def refuse_if_stopping(self) -> None:
        """GuestFault(ECANCELED) if the caller does not listen any longer."""
        if self.message.stopping:
            raise GuestFault(Errno.ECANCELED)

    def output(self, ptr: int, nbytes: int, *, stoppable: bool = True) -> bytes:
        """Bytes that the guest says; counts them."""
        self.memory.check(ptr, nbytes)
        if stoppable:
            self.refuse_if_stopping()
        self.spend_output(nbytes)
        return self.memory.read(ptr, nbytes)

    def spend_output(self, nbytes: int) -> None:
        """Counts bytes of output: by the limit, and as memory if they are many."""
        message = self.message
        total, most = message.output_nbytes + nbytes, self.limits.output_nbytes
        if most is not None and total > most:
            self.limit("output_nbytes", total, most)
        taken = OUTPUT_COPIES * total + PIECE_NBYTES * message.n_outputs
        if taken > FREE_OUTPUT_NBYTES + message.held_nbytes:
            self.hold(align_up(taken, FREE_OUTPUT_NBYTES) - message.held_nbytes)
        message.output_nbytes = total
        message.n_outputs += 1

    # ------------------------------------------------------------------ what it tells

    def log(self, level: int, text: str, error: BaseException | None = None) -> None:
        """Writes a record to the guest's log, with the traceback of an error if there is one."""
        self.log_position += 1
        if level >= logging.WARNING:
            self.message.last_warning = text[:MAX_SAID]
        guest_log.log(level, "%s", text, extra={"agent": self.granted.label}, exc_info=error)

    def note(self, text: str, level: int = logging.INFO) -> None:
        """Writes a record about what the guest asked for to its log, if that has room."""
        with suppress(GuestFault):
            self.spend_output(LOG_RECORD_NBYTES + len(text))
            self.log(level, f"wasi-nn: {text}")

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Keeps an error's text for the caller, who hears of an errno only through the guest."""
        try:
            yield
        except (ModelNotFound, ModelUnsupported, ContextFull, Overloaded) as error:
            if error.errno is not None:
                self.message.explained[error.errno] = error
            raise

    # ------------------------------------------------------------------ what it computes

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Counts the time until it is closed as the host's."""
        start = time.perf_counter_ns()
        try:
            yield
        finally:
            self.counters.host_ns += time.perf_counter_ns() - start

    async def prefill(self, session: Session, tokens: Sequence[int]) -> None:
        """Appends tokens to a session, one chunk after another; between two, others may go first.

        On any error the session's tokens are what they were. Raises TokenError, ContextFull,
        DeviceFailed, and what ends the message.
        """
        model = Model.of(session)
        model.require_tokens(tokens)
        n_before = session.n_tokens
        rest = tokens[await self._inherit(session, tokens) :]
        try:
            await self._append(session, model.executor.chunks(session, rest))
        except BaseException:
            session.roll_back(n_before)
            raise

    async def _inherit(self, session: Session, tokens: Sequence[int]) -> int:
        """Copies what another actor's session has computed of tokens that are to be appended, all
        but the last of them; returns how many. A session that cannot is as it was, and nothing ends
        the copy in between, which would leave it empty."""
        wanted = [*session.tokens, *tokens[:-1]] if self.donors else []
        best, n = None, session.n_tokens + MIN_INHERITED - 1
        for donor in self.donors:
            alike = Model.of(donor) is Model.of(session) and donor.layout == session.layout
            n_common = donor.reach(_n_common(donor.tokens, wanted)) if alike else 0
            if n_common > n and not donor.spans:
                best, n = donor, n_common
        if best is None or session.spans or not self.binding.copies_from_others:
            return 0
        n_before = session.n_tokens
        with session.restorable():
            try:
                await Aside(self.message, partial(session.copy_from, best, n))
            except ModelUnsupported:  # of states, only some lengths can be copied
                return 0
        self.message.tokens_in += n - n_before
        return n - n_before

    async def prefill_embeddings(self, session: Session, embeddings: Embeddings) -> None:
        """As `prefill`, of embeddings that were checked. Raises ModelUnsupported too."""
        executor = Model.of(session).executor
        await self._append(session, executor.embedded_chunks(session, embeddings))

    async def _append(self, session: Session, chunks: Sequence[Chunk]) -> None:
        model, message, n_before = Model.of(session), self.message, session.n_tokens
        executor = model.executor
        with session.restorable():
            try:
                for chunk in chunks:
                    packable = chunk.last and len(chunk.tokens) > 1 and chunk.embeddings is None
                    begin = partial(executor.append, [chunk])
                    n = len(chunk.tokens)
                    await Prompt(message, model, n, begin, chunk if packable else None)
            except BaseException:
                session.roll_back(n_before)
                raise
        message.tokens_in += session.n_tokens - n_before


def signed(value: int) -> int:
    """An i32 as a guest means it."""
    return value - (1 << 32) if value >= 1 << 31 else value


def flags_of(kind: type[_Flags], value: int) -> _Flags:
    """The flags that `value` stands for; GuestFault(EINVAL) if a bit is not known."""
    require_bits(value, _all_bits(kind))
    return kind(value)


def require_bits(value: int, known: int) -> None:
    """GuestFault(EINVAL) if a bit is not among the known ones."""
    if value & ~known:
        raise GuestFault(Errno.EINVAL)


@cache
def _all_bits(kind: type[IntFlag]) -> int:
    return sum(flag.value for flag in kind)


def require_logits(session: Session) -> None:
    """GuestFault(EINVAL) if a session has no logits."""
    if not session.has_logits:
        raise GuestFault(Errno.EINVAL)


def _n_common(tokens: Sequence[int], wanted: Sequence[int]) -> int:
    """How many tokens two lists begin with alike."""
    pairs = zip(tokens, wanted)  # noqa: B905 - until the shorter one ends
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(tokens), len(wanted)))
