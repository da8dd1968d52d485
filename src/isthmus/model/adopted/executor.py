"""Has libllama compute: each session by a context of its own, one token or one chunk at a time.

A context takes some megabytes, and some milliseconds to open, so only those are kept that were used
last. All run on the device's thread and share one scratch, but for the one whose prompt is computed
in jobs: others decode meanwhile, so it has another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import cast
from weakref import WeakKeyDictionary

from isthmus.counters import Counters
from isthmus.device.base import Device
from isthmus.model.adopted.context import MAX_AT_ONCE, Context, Contexts, Scratch
from isthmus.model.adopted.feed import Feed, feed_of
from isthmus.model.adopted.session import AdoptedSession
from isthmus.model.executor import Executor
from isthmus.model.jobs import Jobs
from isthmus.model.session import Session
from isthmus.model.step import Chunk, Step
from isthmus.units import HostAddr

_MAX_CONTEXTS = 64
"""Sessions that keep a context, of each model."""


class AdoptedExecutor(Executor):
    """Owns the contexts of a model's sessions."""

    def __init__(
        self,
        device: Device,
        contexts: Contexts,
        n_chunk: int,
        require_intact: Callable[[], None],
    ) -> None:
        """`require_intact` is called around each pass, and raises if weights were lost."""
        super().__init__(device, n_chunk)
        self._contexts = contexts
        self._require_intact = require_intact
        self._opened: WeakKeyDictionary[Session, Context] = WeakKeyDictionary()
        """The contexts of sessions, the one used last at the end."""
        self._in_pass: Session | None = None
        self._busy: Scratch | None = None
        """The scratch of a pass that is under way, between two of its jobs."""
        self._jobs = Jobs()
        self.counters = Counters()

    def _append(self, chunks: Sequence[Chunk]) -> Generator[None, None, None]:
        (chunk,) = chunks
        session = self._in_pass = chunk.session
        try:
            if chunk.last:  # otherwise the old logits stay
                self._expire(session)
            n = len(chunk.tokens)
            if self._is_known(session) and (n == 1 or self._jobs.fit_one(n)):
                feed = self._feed(chunk)
                self._pass(session, lambda it: it.append(feed, with_logits=chunk.last))
            else:
                yield from self._pass_in_jobs(session, chunk)
        finally:
            self._in_pass = None
        chunk.append()
        self.counters.tokens_prefilled += len(chunk.tokens)

    def decode(self, session: Session, token: int) -> None:
        session.require_room(1)
        self._expire(session)
        position = session.next_position if session.spans else None
        self._run(lambda: self._pass(session, lambda it: it.append_one(token, position)))
        session.tokens.append(token)
        session.has_logits = True
        self.counters.tokens_decoded += 1

    def decode_batch(self, steps: Sequence[Step]) -> None:
        """One token after the other: there is no pass over several."""
        if len(steps) == 1 and len(steps[0].tokens) == 1:
            self.decode(steps[0].session, steps[0].tokens[0])
            return
        for step in steps:
            step.session.require_room(len(step.tokens))
        lengths = [step.session.n_tokens for step in steps]
        with contextlib.ExitStack() as stack:
            for step in steps:
                stack.enter_context(step.session.restorable())
            try:
                for step in steps:
                    self._step(step)
            except BaseException:
                for step, n_tokens in zip(steps, lengths, strict=True):
                    step.session.truncate(n_tokens)
                    step.session.has_logits = False
                raise

    def _step(self, step: Step) -> None:
        row_nbytes = 4 * step.session.layout.n_vocab
        for i, token in enumerate(step.tokens):
            if i > 0:
                step.session.copy_logits(HostAddr(step.logits + (i - 1) * row_nbytes))
            self.decode(step.session, token)

    @property
    def can_batch(self) -> bool:
        return False

    def batch_key(self, session: Session) -> object:
        return session

    @property
    def finds_top(self) -> bool:
        return False

    def close(self) -> None:
        while self._opened:
            self._opened.popitem()[1].close()

    def _forget(self, session: Session) -> None:
        if session is self._in_pass:
            raise RuntimeError(
                "a session cannot close while a pass of prefill over it is under way: end the pass"
            )
        context = self._opened.pop(session, None)
        if context is not None:
            context.close()

    def _expire(self, session: Session) -> None:
        """The logits, and candidates of them, are about to be overwritten."""
        session.has_logits = False
        if session.top is not None:
            session.top.expire()

    def _feed(self, chunk: Chunk) -> Feed:
        return feed_of(chunk, has_axes=self._contexts.has_axes)

    def _pass(self, session: Session, compute: Callable[[Context], None]) -> None:
        """Computes with the session's context, in one job."""
        with self._context_of(session, apart=False) as context:
            context.know(session.tokens, session.spans)
            compute(context)

    def _pass_in_jobs(self, session: Session, chunk: Chunk) -> Generator[None, None, None]:
        """Computes with a context that leaves the others' scratch alone."""
        with self._context_of(session, apart=True) as context:
            yield from context.know_in_jobs(session.tokens, session.spans)
            self._busy = context.scratch
            try:
                feed = self._feed(chunk)
                yield from context.append_in_jobs(feed, self._jobs, with_logits=chunk.last)
            finally:
                self._busy = None

    @contextlib.contextmanager
    def _context_of(self, session: Session, *, apart: bool) -> Iterator[Context]:
        """The session's context, which may not know its tokens; thrown away after an error.

        With `apart` it can be in a pass while others are.
        """
        adopted = cast("AdoptedSession", session)
        adopted.require_whole()
        self._require_intact()
        context = self._fitting(adopted, apart)
        try:
            yield context
        except BaseException:
            context.close()
            adopted.lose()
            raise
        self._opened[session] = context
        self._require_intact()

    def _is_known(self, session: Session) -> bool:
        """Whether its context learns its tokens soon enough for a single job."""
        context = self._opened.get(session)
        known = 0 if context is None else context.n_tokens
        return len(session.tokens) - known <= MAX_AT_ONCE

    def _fitting(self, session: AdoptedSession, apart: bool) -> Context:
        """A context of the session, which is no longer among those that are kept."""
        context = self._opened.pop(session, None)
        if context is not None:
            fits = self._contexts.is_apart(context) if apart else context.scratch is not self._busy
            if fits:
                return context
            context.close()
        while len(self._opened) >= _MAX_CONTEXTS:
            self._opened.pop(next(iter(self._opened.keys()))).close()
        return self._contexts.open(session.base, session.layout, apart=apart)
