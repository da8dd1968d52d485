"""Headers of many files of strangers, which few processes of their own read first.

To open a model, a process of its own tries its vocabulary and its template as well (`opening`),
which takes half a second. A list of models needs no more than headers, and a process reads hundreds
of them in that time. If it ends at one of them, smaller and smaller groups are read until that one
is alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from isthmus.errors import ModelError, ModelFileError, ModelNotFound, ModelUnsupported
from isthmus.model.checks import nothing
from isthmus.model.files.gguf import GgufFile
from isthmus.native.child import told
from isthmus.native.loader import Library
from isthmus.trial import Ending, Outcome, TrialLimits, try_out
from isthmus.units import MIB

_SCRIPT = Path(__file__).with_name("header_trial.py")
_AT_A_TIME, _PARTS = 512, 16
"""Headers that one process reads, and groups that they are divided into if it does not survive."""
_ALONE = TrialLimits(cpu_s=20, memory_nbytes=2048 * MIB, stack_nbytes=8 * MIB)
_TOGETHER = replace(_ALONE, cpu_s=5)
"""The process itself stops after two seconds, and leaves the rest to another one."""
_ERRORS = {kind.__name__: kind for kind in (ModelFileError, ModelNotFound, ModelUnsupported)}
_ENDS = {
    Ending.BUSY: "was not read, since the machine is too busy: wait a moment and try again",
    Ending.OUT_OF_TIME: f"keeps the library busy for more than {_ALONE.cpu_s} s, as no good model "
    "does",
    Ending.CRASHED: "is damaged or malicious: the library that reads its header ended the process "
    "in which it was read; fetch the file again",
}


def open_headers(
    library: Library, paths: Sequence[Path], check: Callable[[], None] = nothing
) -> Iterator[GgufFile | ModelError]:
    """The headers of files, or why they cannot be read, in their order.

    Vocabularies and templates are not tried: `open_gguf` does before a model is loaded. `check` is
    called while this waits, and may raise.
    """
    for begin in range(0, len(paths), _AT_A_TIME):
        group = paths[begin : begin + _AT_A_TIME]
        for path, found in zip(group, _survived(library, group, check), strict=True):
            yield found if isinstance(found, ModelError) else _opened(library, path, found)


def _opened(library: Library, path: Path, identity: str) -> GgufFile | ModelError:
    """The header of a file that was survived."""
    try:
        file = GgufFile(library, path)
    except ModelError as error:
        return error
    if file.identity != identity:
        said = f"{path} changed while it was read: try again when it is complete"
        return ModelFileError(said)
    return file


def _survived(
    library: Library, paths: Sequence[Path], check: Callable[[], None]
) -> Iterator[str | ModelError]:
    """The identities of files whose headers were survived, or why they cannot be read."""
    while paths:
        outcome = _tried(library, paths, check)
        if outcome.ending is Ending.DONE:
            found = json.loads(outcome.result)
            yield from map(_found, found)
            paths = paths[len(found) :]
        elif len(paths) == 1:
            yield ModelFileError(f"{paths[0]} {_ENDS[outcome.ending]}")
            return
        else:
            step = -(-len(paths) // _PARTS)
            for begin in range(0, len(paths), step):
                yield from _survived(library, paths[begin : begin + step], check)
            return


def _tried(library: Library, paths: Sequence[Path], check: Callable[[], None]) -> Outcome:
    """How a process ended that read the first of these files, as many as it had time for."""
    job = b"\0".join(map(os.fsencode, paths))
    limits = _ALONE if len(paths) == 1 else _TOGETHER
    return try_out(_SCRIPT, "read_headers", job, limits, check, told(library))


def _found(found: Sequence[str]) -> str | ModelError:
    """What a process has found of a file: its identity, or an error's name and text."""
    if len(found) == 1:
        return found[0]
    return _ERRORS.get(found[0], ModelFileError)(found[1])
