"""Progress bars on long work, on standard error and only where somebody watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def progress_bar(what: str, total: int | None) -> Iterator[Callable[[], None]]:
    """A bar of `total` steps, or a count of them; call what it gives once for each."""
    with tqdm(total=total, desc=what, leave=False, disable=None) as bar:
        yield lambda: bar.update(1)
