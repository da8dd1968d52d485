"""Steps of one guest: of one token, or of several with the bits of as many single ones.

Several are as many passes as the model's class needs (`Model.rows_at_once`). On any error no
session has more tokens than before; those that were computed have lost their logits.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from typing import Any

from isthmus.actor.ask import Ask, Decode
from isthmus.actor.host_api.context import Context
from isthmus.model import Model, Session
from isthmus.model.step import Step
from isthmus.units import HostAddr


class Append(Decode):
    """A step of one token of a guest's session. `await` counts the token, and gives `result`.

    One for all tokens that a message appends to a session: making it takes as long as a step.
    """

    __slots__ = ("_context", "_step", "_text_of", "result", "session")

    def __init__(self, context: Context, session: Session) -> None:
        self._step = Step(session, (0,))
        super().__init__(context.message, self._step)
        self._context = context
        self._text_of: Callable[[int], bytes | None] | None = None
        self.session = session
        self.result = 0
        """What the guest gets, once the token is appended."""

    @staticmethod
    def of(context: Context, session: int) -> Append:
        """That of an open session; GuestFault(EBADF)."""
        kept = context.handles.kept
        ask: Append | None = kept.get(session)
        if ask is None or ask.message is not context.message:
            ask = kept[session] = Append(context, context.session(session))
        return ask

    def text_of(self, token: int) -> bytes | None:
        """As `Tokenizer.text_of`; ModelUnsupported. The model stays open while the session is."""
        if self._text_of is None:
            self._text_of = self.model.tokenizer.text_of
        return self._text_of(token)

    def next(self, token: int, result: int = 0) -> Append:
        """The same, to append a token that a guest passes as an i32. Raises unless it may."""
        session = self.session
        self._context.require_tokens(0, 1)
        if token >= 1 << 31:
            token -= 1 << 32
        session.owner.require_token(token)
        if len(session.tokens) >= session.layout.n_ctx:
            session.require_room(1)
        session.require_whole()
        self._step.tokens = (token,)
        self.result = result
        return self

    def __await__(self) -> Generator[Ask, Any, int]:
        start = time.perf_counter_ns()
        try:
            yield self
        finally:
            self._context.counters.host_ns += time.perf_counter_ns() - start
        self.message.tokens_out += 1
        return self.result


async def append_many(
    context: Context, session: Session, tokens: array[int], logits: HostAddr
) -> None:
    """Appends several tokens to one session.

    The logits after each token but the last go to `logits`, f32 [n_tokens - 1, n_vocab].
    """
    message, n_before = context.message, session.n_tokens
    most = Model.of(session).rows_at_once if len(tokens) > 1 else 1
    row_nbytes = 4 * session.layout.n_vocab
    if most > 1:
        context.binding.cover(logits, row_nbytes * (len(tokens) - 1))
    with session.restorable():
        try:
            for i in range(0, len(tokens), most):
                if i > 0:
                    session.copy_logits(HostAddr(logits + row_nbytes * (i - 1)))
                step = Step(session, tokens[i : i + most], logits + row_nbytes * i)
                await Decode(message, step)
        except BaseException:
            session.truncate(n_before)
            raise


async def append_each(context: Context, sessions: Sequence[Session], tokens: Sequence[int]) -> None:
    """Appends a token to each of different sessions of one model."""
    model = Model.of(sessions[0])
    steps = [Step(it, (token,)) for it, token in zip(sessions, tokens, strict=True)]
    n_kinds = len({model.executor.batch_key(it) for it in sessions})
    most = model.rows_at_once if len(steps) > 1 and n_kinds == 1 else 1
    lengths = [it.n_tokens for it in sessions]
    with ExitStack() as stack:
        for session in sessions:
            stack.enter_context(session.restorable())
        try:
            for at in range(0, len(steps), most):
                await Decode(context.message, *steps[at : at + most])
        except BaseException:
            for session, n_before in zip(sessions, lengths, strict=True):
                session.truncate(n_before)
            raise
