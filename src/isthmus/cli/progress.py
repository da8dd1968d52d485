"""Progress bars on long work, on standard error and only where somebody watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from tqdm import tqdm

from isthmus.download import Progress, Watch
from isthmus.printable import printable


@contextmanager
def progress_bar(what: str, total: int | None) -> Iterator[Callable[[], None]]:
    """A bar of `total` steps, or a count of them; call what it gives once for each."""
    with tqdm(total=total, desc=what, leave=False, disable=None) as bar:
        yield lambda: bar.update(1)


@contextmanager
def download_bars() -> Iterator[tuple[Callable[[str], None], Watch]]:
    """What a download is watched by: a function for lines, and one for bars, one for each file."""
    with ExitStack() as stack:
        bars: dict[str, tqdm] = {}

        def watch(it: Progress) -> None:
            bar = bars.get(it.sha256)
            if bar is None:
                what = printable(it.name)
                bar = tqdm(total=it.nbytes, desc=what, unit="B", unit_scale=True, disable=None)
                bars[it.sha256] = stack.enter_context(bar)
            bar.update(it.done - bar.n)

        yield lambda text: tqdm.write(printable(text, lines=True), file=sys.stderr), watch
