"""Work that Ctrl-C ends, though Python's signal handlers do not run inside WebAssembly."""

from __future__ import annotations

import threading
from collections.abc import Callable

_CANCEL_AGAIN_S = 0.02


def interruptibly(work: Callable[[], None], cancel: Callable[[], object]) -> None:
    """Runs `work`. On the main thread, where signals arrive, it is run by another one meanwhile.

    `cancel` has it end soon, and is called until it has.
    """
    if threading.current_thread() is not threading.main_thread():
        work()
        return
    outcome: list[BaseException | None] = [None]
    ended = threading.Event()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            outcome[0] = error
        ended.set()

    threading.Thread(target=run, name="isthmus initialize", daemon=True).start()
    try:
        ended.wait()
    except BaseException:
        while not ended.wait(_CANCEL_AGAIN_S):
            cancel()
        raise
    if outcome[0] is not None:
        raise outcome[0]
