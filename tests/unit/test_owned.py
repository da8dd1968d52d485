"""Native handles: freed once, and not while the process exits."""

from __future__ import annotations

import subprocess
import sys

from isthmus.native.owned import Owned

_LEAVING = """
from isthmus.native.owned import Owned

kept, dropped = Owned(1, print), Owned(2, print)
del dropped
"""


def test_a_handle_is_freed_once() -> None:
    freed: list[int] = []
    with Owned(7, freed.append) as owned:
        assert owned.handle == 7
        assert freed == []
    owned.close()
    assert owned.closed
    assert freed == [7]


def test_what_is_freed_while_the_process_exits() -> None:
    """Nothing, since a daemon thread may still be computing with it; all on macOS, where ggml's
    Metal backend wants that."""
    found = subprocess.run(
        [sys.executable, "-c", _LEAVING], capture_output=True, text=True, check=True
    )
    assert found.stdout == ("2\n1\n" if sys.platform == "darwin" else "2\n")
