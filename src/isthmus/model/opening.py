"""Opens model files of strangers: each is tried in a process of its own before it is used here.

libllama ends the process on much of what can be wrong with a file, or never comes back. So a child
process opens the file first, with limits of time and memory, and does with it what is done here
(`file_trial`). That it survived is remembered by the identities of file and library.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from isthmus.errors import ModelFileError, ModelNotFound, ModelUnsupported
from isthmus.file_hash import FileHashes, file_identity, joined_identity
from isthmus.model.checks import nothing
from isthmus.model.gguf import GgufFile, file_status
from isthmus.native.loader import Library
from isthmus.shards import model_files
from isthmus.trial import Ending, TrialLimits, try_out
from isthmus.units import MIB

_SCRIPT = Path(__file__).with_name("file_trial.py")
_LIMITS = TrialLimits(cpu_s=20, memory_nbytes=2048 * MIB, stack_nbytes=8 * MIB)
"""A vocabulary of 49,152 tokens takes half a second and 100 MB."""
_VERSION = 1
"""Grows when `file_trial` tries more than before."""
_ERRORS = {kind.__name__: kind for kind in (ModelFileError, ModelNotFound, ModelUnsupported)}


def open_gguf(
    library: Library, path: Path, hashes: FileHashes, check: Callable[[], None] = nothing
) -> GgufFile:
    """A file's header, or those of a model's shards, after the files were tried.

    `check` is called while this waits, and may raise. Raises as `GgufFile`, and ModelFileError if
    the library does not survive the file, or the file changes meanwhile.
    """
    files = model_files(path)
    before = joined_identity([file_identity(file_status(it)) for it in files])
    try:
        hashes.get(files, _kind(library), lambda first: _tried(library, first, check))
    except OSError as error:
        raise ModelFileError(f"{path} cannot be tried: {error}") from None
    file = GgufFile(library, files[0])
    if file.identity != before:
        raise ModelFileError(f"{path} changed while it was opened: try again when it is complete")
    return file


def _kind(library: Library) -> str:
    """What a result depends on beside the file."""
    files = [f"{file}-{file_identity(os.stat(file))}" for file in library.files]
    text = "\n".join([str(_VERSION), library.llama_version, *files])
    return f"tried-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _tried(library: Library, path: Path, check: Callable[[], None]) -> str:
    """A digest that says nothing but that the file was survived."""
    used = json.dumps({"source": library.source, "files": [str(it) for it in library.files]})
    outcome = try_out(_SCRIPT, "try_out", os.fsencode(path), _LIMITS, check, used)
    if outcome.ending is Ending.BUSY:
        raise ModelFileError(
            f"{path} was not tried, since the machine is too busy: wait a moment and try again"
        )
    if outcome.ending is Ending.OUT_OF_TIME:
        raise ModelFileError(
            f"{path} keeps the library busy for more than {_LIMITS.cpu_s} s, as no good model does"
        )
    if outcome.ending is Ending.CRASHED:
        raise ModelFileError(
            f"{path} is damaged or malicious: the library that reads it ended the process in "
            "which it was tried; fetch the file again"
        )
    problem = json.loads(outcome.result)
    if problem:
        raise _ERRORS.get(problem[0], ModelFileError)(problem[1])
    return hashlib.sha256(outcome.result).hexdigest()
