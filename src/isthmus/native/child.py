"""The library in a child process of `isthmus.trial`: which one it is, and its last words there."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from isthmus.native.loader import Candidate, Library
from isthmus.printable import printable

_ABORT = re.compile(r"^(?:\S*/)?(?P<where>[^\s/:]+:\d+: .+)$", re.M)
"""`ggml_abort`: a source file, a line in it, and what did not hold."""
_EXCEPTION = re.compile(r"^\s+what\(\):\s+(?P<what>.+)$", re.M)
"""What C++ says of an exception that nobody catches."""
_WRAPPER = "error loading model: "
"""What the library puts before each reason not to load a file."""
_MAX = 300
"""Characters of the longest reason."""


def told(library: Library) -> str:
    """What a child needs to know to open the same library."""
    return json.dumps({"source": library.source, "files": [str(it) for it in library.files]})


def open_told(text: str) -> Library:
    """The library that another process has `told` of.

    Graphics devices are hidden from it, and it starts no debugger where it aborts.
    """
    os.environ |= {
        "CUDA_VISIBLE_DEVICES": "",
        "GGML_DISABLE_VULKAN": "1",
        "GGML_NO_BACKTRACE": "1",
    }
    found = json.loads(text)
    return Library(Candidate(found["source"], tuple(map(Path, found["files"]))))


def last_words(said: str) -> str:
    """The reason for which a child ended, in one printable line; empty if it said nothing.

    `said` is what it wrote to standard error.
    """
    for form, group in ((_ABORT, "where"), (_EXCEPTION, "what")):
        found = list(form.finditer(said))
        if found:
            return printable(found[-1][group].strip())[:_MAX]
    lines = said.split("\n")
    return printable(next((it.strip() for it in reversed(lines) if it.strip()), ""))[:_MAX]


def reason(complaints: Sequence[str], otherwise: str) -> str:
    """The library's first complaint without the name of the function that made it, in one line."""
    if not complaints:
        return otherwise
    words = complaints[0].partition(": ")[2] or complaints[0]
    lines = words.removeprefix(_WRAPPER).strip().splitlines()
    return printable("; ".join(lines))[:_MAX]
