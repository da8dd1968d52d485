"""What a process holds, from outside; and a server that has no models."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from isthmus import Runtime
from isthmus.server.models.catalog import Catalog
from isthmus.server.models.models import Models
from isthmus.server.settings import ServerSettings


def no_models(runtime: Runtime) -> Models:
    """A server's models, of which there are none."""
    return Models(runtime, Catalog(), ServerSettings())


def resident_nbytes(pid: int) -> int:
    """Bytes of its own in memory: without those of files, which the system may drop at any time."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


class Peak:
    """The most that a process had meanwhile, and what it had before."""

    def __init__(self, pid: int) -> None:
        self.before = self.most = resident_nbytes(pid)

    @property
    def grown(self) -> int:
        return self.most - self.before


@contextmanager
def watching(pid: int) -> Iterator[Peak]:
    """Looks at a process every few milliseconds."""
    peak, ended = Peak(pid), threading.Event()

    def look() -> None:
        while not ended.wait(0.005):
            peak.most = max(peak.most, resident_nbytes(pid))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        time.sleep(0.02)
        ended.set()
        thread.join()
