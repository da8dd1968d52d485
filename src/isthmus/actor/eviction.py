"""Where evicted actors are kept: a folder of this process's own, gone when the runtime closes."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
import threading
from pathlib import Path

from isthmus.errors import SnapshotError


class EvictionFolder:
    """Owns a folder under `parent`, made when it is first needed, readable by this user only."""

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        self._folder: Path | None = None
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def new_path(self) -> Path:
        """A file that is not there yet. SnapshotError where the folder cannot be made."""
        with self._lock:
            if self._folder is None:
                try:
                    self._parent.mkdir(parents=True, exist_ok=True)
                    self._folder = Path(tempfile.mkdtemp(prefix="actors-", dir=self._parent))
                except OSError as error:
                    raise SnapshotError(
                        f"actors cannot be evicted to {self._parent}: {error.strerror}"
                    ) from None
            return self._folder / f"{next(self._numbers)}.safetensors"

    def close(self) -> None:
        """Removes it and everything in it; a second call does nothing."""
        folder, self._folder = self._folder, None
        if folder is not None:
            with contextlib.suppress(OSError):
                shutil.rmtree(folder)
