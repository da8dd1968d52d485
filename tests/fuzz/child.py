"""The child process of a fuzzer: `python -m tests.fuzz.child SURFACE FOLDER`.

Reads cases from standard input, one a line, and answers each with a line of JSON. An input is
written to FOLDER/input before it is run, so that the parent has it if this process dies.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import resource
import sys
import traceback
from pathlib import Path

from isthmus.errors import IsthmusError
from tests.fuzz.surface import Surface, surface_class

INPUT = "input"


def main(name: str, folder: Path) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library that prints does not write into the answers
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    work = folder / "work"
    work.mkdir()
    surface = surface_class(name)(work)
    with contextlib.closing(surface):
        print(json.dumps({"ready": True}), file=answers, flush=True)
        for line in sys.stdin:
            answer = _run(surface, line.strip(), folder / INPUT)
            print(json.dumps(answer), file=answers, flush=True)


def _run(surface: Surface, case: str, path: Path) -> dict[str, str]:
    """What came of a case: its `outcome`, or the `kind` and `text` of what it raised."""
    data = surface.input(case)
    path.write_bytes(data)
    try:
        return {"outcome": surface.run(data)}
    except IsthmusError as error:
        return {"outcome": type(error).__name__}
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        kind = f"{type(error).__name__} in {Path(last.filename).name}:{last.name}"
        return {"kind": kind, "text": traceback.format_exc()}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
