"""A path as people write it."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """The path with `~` for a home folder.

    A `~` that stands for no known home stays as it is, so that the path is told as one that is not
    there; `Path.expanduser` raises RuntimeError for it.
    """
    return Path(os.path.expanduser(path))
