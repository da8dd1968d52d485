"""Work on a request's texts that grows with them: templates and tokens, in threads of its own.

The event loop and the threads for agents serve other callers meanwhile. A caller who leaves, and a
server that ends, end it between two pieces of text.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from starlette.requests import Request

from isthmus.errors import Cancelled, SettingsError
from isthmus.server.events import unless_left

_T = TypeVar("_T")
Check = Callable[[], None]
_threads = ThreadPoolExecutor(max(2, os.cpu_count() or 1), thread_name_prefix="texts")
"""As many as can work at a time: who waits for one keeps no other."""


async def of_texts(http: Request, work: Callable[[Check], _T]) -> _T:
    """What `work` gives, in a thread; ClientDisconnect where the caller leaves before.

    `work` is given what it should call between two pieces: it raises Cancelled once nobody waits.
    """
    return await unless_left(http, _in_thread(work))


async def _in_thread(work: Callable[[Check], _T]) -> _T:
    left = threading.Event()

    def check() -> None:
        if left.is_set():
            raise Cancelled("nobody waits for this any more")

    loop, context = asyncio.get_running_loop(), copy_context()
    try:
        return await loop.run_in_executor(_threads, context.run, work, check)
    except RecursionError:
        raise SettingsError("the request is nested too deeply: give lists in fewer lists") from None
    finally:
        left.set()
