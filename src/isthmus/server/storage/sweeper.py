"""What is not needed any more, removed in a thread of its own, so that no caller waits for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from isthmus.errors import IsthmusError
from isthmus.snapshot import Store

_log = logging.getLogger("isthmus.server")


class Sweeper:
    """See the module. What it did not come to before `close` is found at the next start."""

    def __init__(self, store: Store, *, repack: bool) -> None:
        """With `repack` packs are written anew of which little is used."""
        self._store = store
        self._repack = repack
        self._thread = ThreadPoolExecutor(1, "isthmus-sweeper")
        self._lock = threading.Lock()
        self._n_waiting = 0
        self._closed = False

    def remove(self, names: Iterable[str] = (), also: Callable[[], object] | None = None) -> None:
        """Removes snapshots, as far as they are there, and their chunks; does `also` before."""
        with self._lock:
            if not self._closed:
                self._n_waiting += 1
                self._thread.submit(self._remove, list(names), also)

    def wait(self) -> None:
        """Returns once all is removed that was given until now."""
        done: Future[None] = self._thread.submit(lambda: None)
        done.result()

    def close(self) -> None:
        """Ends with what is being removed now."""
        with self._lock:
            self._closed = True
        self._thread.shutdown(cancel_futures=True)

    def _remove(self, names: list[str], also: Callable[[], object] | None) -> None:
        with self._lock:
            self._n_waiting -= 1
            is_last = self._n_waiting == 0
        try:
            if also is not None:
                also()
            self._store.delete_all(names)
            if is_last:
                self._store.gc(repack=self._repack, quick=True)
        except (IsthmusError, OSError) as error:
            _log.warning("what is not needed any more stays until the next start: %s", error)
