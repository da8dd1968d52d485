"""Opens model files of strangers: each is tried in a process of its own before it is used here.

libllama ends the process on much of what can be wrong with a file, or never comes back. So a child
process opens the file first, with limits of time and memory, and does with it what is done here
(`file_trial`). What it found out is remembered by the identities of file and library.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isthmus.errors import ModelFileError, ModelNotFound, ModelUnsupported
from isthmus.file_hash import FileHashes, file_identity, joined_identity
from isthmus.model.checks import nothing
from isthmus.model.files.gguf import GgufFile
from isthmus.model.files.graph_facts import GraphFacts
from isthmus.model.files.header import file_status
from isthmus.native.child import last_words, told
from isthmus.native.loader import Library
from isthmus.shards import model_files
from isthmus.trial import Ending, Outcome, TrialLimits, try_out
from isthmus.units import MIB

_SCRIPT = Path(__file__).with_name("file_trial.py")
_LIMITS = TrialLimits(cpu_s=20, memory_nbytes=2048 * MIB, stack_nbytes=8 * MIB)
"""Limits for a file whose weights are not computed with. A vocabulary of 49,152 tokens takes half a
second and 100 MB."""
_WEIGHTS_NBYTES_PER_CPU_S = 128 * MIB
"""Bytes of weights for each further second of processor time: eight tokens read them all, and a
slow processor multiplies 2 GB in a second."""
_WEIGHTS_NBYTES_PER_WALL_S = 32 * MIB
"""Bytes that a slow disk reads in a second."""
_PROJECTOR_S = 900
"""Seconds of processor time for a projector: encoding one large picture may take a minute."""
_VERSION = 3
"""Grows when `file_trial` tries more than before."""
_YES, _NO = _ANSWERS = ("yes", "no")
_ERRORS = {kind.__name__: kind for kind in (ModelFileError, ModelNotFound, ModelUnsupported)}


@dataclass(frozen=True)
class Opened:
    """A file that was tried."""

    file: GgufFile
    graph: GraphFacts | None
    """What libllama's own graph of it is; None if it is not computed by that."""


def open_gguf(
    library: Library, path: Path, hashes: FileHashes, check: Callable[[], None] = nothing
) -> GgufFile:
    """A file's header, or those of a model's shards, after header, vocabulary and chat template
    were tried.

    Raises as `open_tried`.
    """
    return open_tried(library, path, hashes, check).file


def open_tried(
    library: Library,
    path: Path,
    hashes: FileHashes,
    check: Callable[[], None] = nothing,
    own: Sequence[str] | None = None,
) -> Opened:
    """A file's header, after everything in the file was tried that will be used.

    `own` are the architectures that we have graphs of; libllama's own graph of all others is tried
    as well. With None it is tried of no file. `check` is called while this waits, and may raise.
    Raises as `GgufFile`; ModelFileError if the library does not survive the file, or the file
    changes meanwhile; ModelUnsupported for what the library has no graph for.
    """
    files = model_files(path)
    before = joined_identity([file_identity(file_status(it)) for it in files])
    try:
        text = hashes.recall(
            files,
            f"tried-{_identity(library, own)}",
            lambda _: _tried(library, files, check, own),
            _is_result,
        )
    except OSError as error:
        raise ModelFileError(f"{path} cannot be tried: {error}") from None
    file = GgufFile(library, files[0])
    if file.identity != before:
        raise ModelFileError(f"{path} changed while it was opened: try again when it is complete")
    return Opened(file, _facts(text))


def require_embeddings(library: Library, path: Path, hashes: FileHashes) -> None:
    """Has a child process compute embeddings in place of tokens by libllama's own graph, which ends
    the process for some architectures.

    Raises ModelUnsupported, and as `open_tried`.
    """
    files = model_files(path)
    kind = f"takes-embeddings-{_identity(library, ())}"
    known = hashes.recall(
        files, kind, lambda _: _embeddings_tried(library, files), lambda text: text in _ANSWERS
    )
    if known != _YES:
        raise ModelUnsupported(
            f"libllama's graph of {path} computes tokens alone, and no embeddings in their place"
        )


def require_projector(library: Library, path: Path, projector: Path, hashes: FileHashes) -> None:
    """Has a child process open a projector file for a model, and do with it what guests can have it
    do.

    Raises ModelUnsupported if it is for another model, ModelFileError, and as `open_tried`.
    """
    files = model_files(path)
    kind = f"projector-{_identity(library, ())}"
    try:
        text = hashes.recall(
            (*files, projector),
            kind,
            lambda _: _projector_tried(library, files, projector),
            _is_json,
        )
    except OSError as error:
        raise ModelFileError(f"{projector} cannot be tried: {error}") from None
    if problem := json.loads(text):
        raise _ERRORS.get(problem[0], ModelFileError)(problem[1])


def _projector_tried(library: Library, files: Sequence[Path], projector: Path) -> str:
    """The error's name and text that the child met, as JSON; null if there was none."""
    path = {"path": os.fspath(files[0]), "projector": os.fspath(projector)}
    nbytes = sum(file_status(it).st_size for it in (*files, projector))
    limits = replace(_limits_for(nbytes), cpu_s=_PROJECTOR_S, wall_s=2 * _PROJECTOR_S)
    job = json.dumps({"own": (), **path}).encode()
    outcome = try_out(_SCRIPT, "try_out", job, limits, nothing, told(library))
    if outcome.ending is not Ending.DONE:
        raise ModelFileError(_why(projector, outcome, limits, computed=True))
    return json.dumps(json.loads(outcome.result)["problem"])


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _embeddings_tried(library: Library, files: Sequence[Path]) -> str:
    job = json.dumps({"path": os.fspath(files[0]), "own": (), "embeddings": True}).encode()
    limits = _limits_for(sum(file_status(it).st_size for it in files))
    outcome = try_out(_SCRIPT, "try_out", job, limits, nothing, told(library))
    if outcome.ending is Ending.BUSY:
        raise ModelFileError(_why(files[0], outcome, limits, computed=True))
    good = outcome.ending is Ending.DONE and not json.loads(outcome.result)["problem"]
    return _YES if good else _NO


def _identity(library: Library, own: Sequence[str] | None) -> str:
    """What a result depends on beside the file."""
    files = [f"{file}-{file_identity(os.stat(file))}" for file in library.files]
    text = "\n".join([str(_VERSION), repr(own), library.llama_version, *files])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_result(text: str) -> bool:
    try:
        _facts(text)
    except (ValueError, TypeError, AttributeError):
        return False
    return True


def _facts(text: str) -> GraphFacts | None:
    fields = json.loads(text)
    return None if fields is None else GraphFacts.from_json(fields)


def _tried(
    library: Library, files: Sequence[Path], check: Callable[[], None], own: Sequence[str] | None
) -> str:
    """What the child found out about libllama's graph, as JSON; null if it was not tried."""
    path = files[0]
    job = json.dumps({"path": os.fspath(path), "own": own}).encode()
    nbytes = sum(file_status(it).st_size for it in files)
    limits = _LIMITS if own is None else _limits_for(nbytes)
    outcome = try_out(_SCRIPT, "try_out", job, limits, check, told(library))
    if outcome.ending is not Ending.DONE:
        raise ModelFileError(_why(path, outcome, limits, computed=own is not None))
    result: dict[str, Any] = json.loads(outcome.result)
    if result["problem"]:
        kind, text = result["problem"]
        raise _ERRORS.get(kind, ModelFileError)(text)
    return json.dumps(result["graph"])


def _limits_for(nbytes: int) -> TrialLimits:
    """Limits for a file of `nbytes` that is computed with."""
    return TrialLimits(
        cpu_s=_LIMITS.cpu_s + nbytes // _WEIGHTS_NBYTES_PER_CPU_S,
        memory_nbytes=_LIMITS.memory_nbytes + 2 * nbytes,
        stack_nbytes=_LIMITS.stack_nbytes,
        wall_s=_LIMITS.wall_s + nbytes / _WEIGHTS_NBYTES_PER_WALL_S,
    )


def _why(path: Path, outcome: Outcome, limits: TrialLimits, *, computed: bool) -> str:
    """`computed`: whether libllama was to compute with the file's weights too."""
    if outcome.ending is Ending.BUSY:
        return f"{path} was not tried, since the machine is too busy: wait a moment and try again"
    if outcome.ending is Ending.OUT_OF_TIME:
        return (
            f"{path} keeps the library busy for more than {limits.cpu_s} s, as no good model does"
        )
    words = last_words(outcome.said)
    said = f" ({words})" if words else ""
    if computed:
        return (
            f"{path} ended the process in which the library tried it{said}: it is damaged or "
            "malicious, or the library cannot compute it; if a new copy does the same, try another "
            "version of the library"
        )
    return (
        f"{path} is damaged or malicious: the library that reads it ended the process in which it "
        f"was tried{said}; fetch the file again"
    )
