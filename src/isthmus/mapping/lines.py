"""Inputs and results as JSON lines, and a file of results that a job goes on with.

An input is a line with a JSON string, or with an object that has a string `input` and perhaps an
`id`. A result is a line with an object:

1. `index`, the number of the input, from 0 on, and its `id` if it has one;
2. `output` and `n_tokens`, or `error`;
3. `key`, 16 hexadecimal digits of a hash of the job and the input.

Line N of the results is that of input N. So a job that ended early goes on after the last whole
line, once each `key` was found to be that of this job; a line that was torn is written again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import msgspec
from msgspec import Struct

from isthmus.errors import SettingsError
from isthmus.mapping.mapper import Mapped

_SHOWN = 60
"""Characters of a bad line that an error shows."""


class Input(Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the inputs."""

    input: str
    id: str | int | None = None


class _Line(Struct, frozen=True):
    index: int
    key: str
    output: str | None = None
    error: str | None = None


_input = msgspec.json.Decoder(str | Input)
_line = msgspec.json.Decoder(_Line)


def read_inputs(lines: Iterable[bytes], name: str) -> Iterator[Input]:
    """The inputs of a file's lines. SettingsError for a line that is none, by its number."""
    for number, line in enumerate(lines, 1):
        try:
            found = _input.decode(line)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            shown = line[:_SHOWN].decode(errors="replace").strip()
            raise SettingsError(
                f'{name}, line {number} is no input: {error}; give "text" or {{"input": "text"}}, '
                f"not {shown or 'nothing'}"
            ) from None
        yield Input(found) if isinstance(found, str) else found


def key_of(job: str, given: Input) -> str:
    """What ties a result to its job and its input."""
    said = msgspec.json.encode([job, given.input, given.id])
    return hashlib.sha256(said).hexdigest()[:16]


def line_of(mapped: Mapped, given: Input, job: str) -> bytes:
    """A result's line."""
    said: dict[str, object] = {"index": mapped.index}
    if given.id is not None:
        said["id"] = given.id
    if mapped.error is None:
        said |= {"output": mapped.output, "n_tokens": mapped.n_tokens}
    else:
        said["error"] = mapped.error
    return msgspec.json.encode({**said, "key": key_of(job, given)}) + b"\n"


@contextlib.contextmanager
def open_results(path: Path) -> Iterator[IO[bytes]]:
    """A file of results, made if it is not there, and nobody else's meanwhile. SettingsError."""
    try:
        with path.open("ab+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SettingsError(f"another isthmus map writes {path}") from None
            yield file
    except OSError as error:
        raise SettingsError(f"cannot write {path}: {error.strerror}") from None


def resume(file: IO[bytes], inputs: Iterator[Input], job: str) -> tuple[int, int]:
    """Goes past the inputs whose results are in the file, and cuts off a torn last line. How many
    there are, and how many of them are errors. SettingsError if they are of another job."""
    file.seek(0)
    n_done = n_failed = nbytes = 0
    for line in file:
        if not line.endswith(b"\n"):
            break
        given = next(inputs, None)
        _require_same(line, given, job, n_done, file.name)
        nbytes += len(line)
        n_done += 1
        n_failed += _line.decode(line).error is not None
    file.truncate(nbytes)
    file.seek(0, io.SEEK_END)
    return n_done, n_failed


def _require_same(line: bytes, given: Input | None, job: str, index: int, name: str) -> None:
    try:
        found = _line.decode(line)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise SettingsError(
            f"{name}, line {index + 1} is no result of isthmus map: {error}; give another --output"
        ) from None
    if given is None or found.index != index or found.key != key_of(job, given):
        raise SettingsError(
            f"{name}, line {index + 1} is of another job: its inputs, guest, models, options or "
            "seed are not these; give another --output"
        )
