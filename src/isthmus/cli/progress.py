"""Progress on long work, on standard error: a bar on a terminal, else a line every ten seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from tqdm import tqdm

from isthmus.download import Progress, Watch
from isthmus.printable import printable
from isthmus.units import format_nbytes

_EVERY_S = 10.0
"""Seconds between two lines, where nobody watches a bar. Shorter work says nothing."""


class ProgressLines:
    """Says how far some work is, in a thread of its own, since steps may take minutes.

    `now` says it in a few words.
    """

    def __init__(self, now: Callable[[], str]) -> None:
        self._now = now
        self._ended = threading.Event()
        self._begun = time.monotonic()

    def __enter__(self) -> ProgressLines:
        threading.Thread(target=self._tell, name="isthmus-progress", daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()

    def _tell(self) -> None:
        while not self._ended.wait(_EVERY_S):
            seconds = time.monotonic() - self._begun
            print(f"{printable(self._now())}, {seconds:.0f} s", file=sys.stderr, flush=True)


@contextmanager
def progress_bar(what: str, total: int | None) -> Iterator[Callable[[], None]]:
    """A bar of `total` steps, or a count of them; call what it gives once for each."""
    with tqdm(total=total, desc=what, leave=False, disable=None) as bar:
        if not bar.disable:
            yield lambda: bar.update(1)
            return
    done: list[None] = []
    of = "" if total is None else f" of {total}"
    with ProgressLines(lambda: f"{what}: {len(done)}{of} done"):
        yield lambda: done.append(None)


@contextmanager
def download_bars() -> Iterator[tuple[Callable[[str], None], Watch]]:
    """What a download is watched by: a function for lines, and one for bars, one for each file."""
    bars: dict[str, tqdm] = {}
    now: list[Progress] = []

    def watch(it: Progress) -> None:
        now[:] = [it]
        bar = bars.get(it.sha256)
        if bar is None:
            what = printable(it.name)
            bar = tqdm(total=it.nbytes, desc=what, unit="B", unit_scale=True, disable=None)
            bars[it.sha256] = stack.enter_context(bar)
        bar.update(it.done - bar.n)

    with ExitStack() as stack:
        if not sys.stderr.isatty():
            stack.enter_context(ProgressLines(lambda: _come(now)))
        yield lambda text: tqdm.write(printable(text, lines=True), file=sys.stderr), watch


def _come(now: list[Progress]) -> str:
    """How much of a download has come."""
    if not now:
        return "waiting for the first bytes"
    return f"{now[0].name}: {format_nbytes(now[0].done)} of {format_nbytes(now[0].nbytes)}"
