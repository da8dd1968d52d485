"""Reads headers of model files, in a process of its own: see `headers`.

This file is what that process runs. It imports few of the package's modules.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from isthmus.errors import ModelError
from isthmus.model.files.gguf import GgufFile
from isthmus.native.child import open_told
from isthmus.native.loader import Library

_ENOUGH_S = 2.0
"""Seconds of processor time after which the rest is left to another process."""
_opened: list[Library] = []
"""The library, once `prepare` has opened it."""


def prepare(library: str) -> None:
    """Opens the library that `native.child` told of, before limits hold."""
    _opened.append(open_told(library))


def read_headers(job: bytes) -> bytes:
    """The first headers of files, whose paths the job is, with a zero byte between two.

    Returns JSON, for each file [identity] or [error's name, text]. What the library does not
    survive ends the process.
    """
    end, told = time.process_time() + _ENOUGH_S, list[list[str]]()
    for path in job.split(b"\0"):
        told.append(_told(Path(os.fsdecode(path))))
        if time.process_time() > end:
            break
    return json.dumps(told).encode()


def _told(path: Path) -> list[str]:
    try:
        return [GgufFile(_opened[0], path).identity]
    except ModelError as error:
        return [type(error).__name__, str(error)]
