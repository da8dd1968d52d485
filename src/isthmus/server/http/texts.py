"""Work on a request's texts that grows with them: templates and tokens.

Threads do it, so that the event loop serves other callers meanwhile. A caller who leaves, and a
server that ends, end it between two pieces of text. Texts of a short request are done at once, in
the event loop: each way to a thread and back waits for all who want the interpreter, for longer
than such a text takes. What cannot fit into the context is refused by
its length first (`most_nbytes`, `require_room`), since all threads share one interpreter.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from starlette.requests import Request

from isthmus.errors import Cancelled, ContextFull, SettingsError
from isthmus.server.http.entry import current
from isthmus.server.http.events import unless_left
from isthmus.server.http.fair import Threads
from isthmus.units import KIB

_T = TypeVar("_T")
Check = Callable[[], None]
_AT_A_TIME = 4
"""Texts that are written down and tokenized at the same time: milliseconds each."""
_STINT_S, _PAUSE_S = 0.002, 0.001
"""Seconds of work on a text after which others have the interpreter, and for how long they have it.
A long text would otherwise delay each token of everybody by some milliseconds."""

_SHORT_NBYTES = 2048
"""Bytes of a body whose texts are done in the event loop, for up to `_STINT_S`."""
TOKEN_NBYTES = 64
"""Bytes of a body for each token of its prompts, at most. Texts of people take 4 to 12, escaped."""
_OTHER_NBYTES = 512 * KIB
"""Bytes of a body beside its prompts, at most: a grammar or schema with its quotes escaped."""


class _TooLong(Cancelled):
    """It takes longer than the event loop may wait."""


class Texts:
    """See the module. Owns the threads, which owners share fairly."""

    def __init__(self) -> None:
        self._threads = Threads(_AT_A_TIME, "isthmus-texts")

    async def of(self, http: Request, work: Callable[[Check], _T]) -> _T:
        """What `work` gives; ClientDisconnect where the caller leaves before.

        `work` is given what it should call between two pieces: it raises Cancelled once nobody
        waits, or if the work is to begin once more, in a thread.
        """
        if 0 < current().nbytes_in <= _SHORT_NBYTES:
            with contextlib.suppress(_TooLong):
                return _done_here(work)
        return await unless_left(http, self._in_thread(work))

    def close(self) -> None:
        """Waits for the threads, which use models."""
        self._threads.close()

    async def _in_thread(self, work: Callable[[Check], _T]) -> _T:
        left, since = threading.Event(), time.monotonic()

        def check() -> None:
            nonlocal since
            if left.is_set():
                raise Cancelled("nobody waits for this any more")
            if time.monotonic() - since >= _STINT_S:
                time.sleep(_PAUSE_S)
                since = time.monotonic()

        try:
            return await self._threads.do(current().owner, partial(_shallow, work, check))
        finally:
            left.set()


def _done_here(work: Callable[[Check], _T]) -> _T:
    """What `work` gives, at once; _TooLong."""
    end = time.thread_time() + _STINT_S

    def check() -> None:
        if time.thread_time() > end:
            raise _TooLong("others wait for the event loop")

    return _shallow(work, check)


def _shallow(work: Callable[[Check], _T], check: Check) -> _T:
    """What `work` gives. SettingsError if it goes through more lists in lists than it can."""
    try:
        return work(check)
    except RecursionError:
        raise SettingsError("the request is nested too deeply: give lists in fewer lists") from None


def most_nbytes(n_tokens: int) -> int:
    """Bytes of the longest JSON body whose prompts can have up to `n_tokens` tokens."""
    return _OTHER_NBYTES + TOKEN_NBYTES * n_tokens


def require_room(n_messages: int, n_ctx: int) -> None:
    """ContextFull for a conversation of more messages than tokens: each becomes one or more."""
    if n_messages > n_ctx:
        raise ContextFull(
            f"the conversation has {n_messages} messages; the context has {n_ctx} tokens"
        )
