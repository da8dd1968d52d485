"""Work on a request's texts that grows with them: templates and tokens, in threads of its own.

The event loop and the threads for agents serve other callers meanwhile. A caller who leaves, and a
server that ends, end it between two pieces of text.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from starlette.requests import Request

from isthmus.errors import Cancelled, SettingsError
from isthmus.server.entry import current
from isthmus.server.events import unless_left
from isthmus.server.fair import Threads

_T = TypeVar("_T")
Check = Callable[[], None]
_AT_A_TIME = 4
"""Texts that are written down and tokenized at the same time: milliseconds each."""


class Texts:
    """See the module. Owns the threads, which owners share fairly."""

    def __init__(self) -> None:
        self._threads = Threads(_AT_A_TIME, "isthmus-texts")

    async def of(self, http: Request, work: Callable[[Check], _T]) -> _T:
        """What `work` gives, in a thread; ClientDisconnect where the caller leaves before.

        `work` is given what it should call between two pieces: it raises Cancelled once nobody
        waits.
        """
        return await unless_left(http, self._in_thread(work))

    def close(self) -> None:
        """Waits for the threads, which use models."""
        self._threads.close()

    async def _in_thread(self, work: Callable[[Check], _T]) -> _T:
        left = threading.Event()

        def check() -> None:
            if left.is_set():
                raise Cancelled("nobody waits for this any more")

        try:
            return await self._threads.do(current().owner, partial(work, check))
        except RecursionError:
            raise SettingsError(
                "the request is nested too deeply: give lists in fewer lists"
            ) from None
        finally:
            left.set()
