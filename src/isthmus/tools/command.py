"""A program as a tool: arguments on standard input, the result on standard output.

What takes a run back is another program, whose standard input is `{"arguments": …, "result": …}`:
each as JSON if that is what it is, and otherwise as text.

An exit status other than 0 is a failure, whose text is the end of standard error. A line break at
the very end of the result is left out, as a shell's `$(…)` does.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from isthmus.errors import SettingsError, ToolFailed
from isthmus.tools.process import Ended, Program, run_program
from isthmus.tools.tool import Check, TakeBack, Tool, json_of, require_short


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandTool(Tool):
    """See the module."""

    program: Program
    undo: Program | None = None
    """What takes back one run that is undone with its message; None if runs stay done."""

    def run(self, arguments: bytes, check: Check) -> bytes:
        """What the program printed. ToolFailed if its exit status is not 0."""
        ended = run_program(self.program, arguments, self.limits, check)
        if ended.status != 0:
            raise ToolFailed(_failure(ended))
        output = ended.output.removesuffix(b"\n")
        require_short(len(output), self.limits)
        return output

    @property
    def take_back(self) -> TakeBack | None:
        """The program `undo`, in time; None if it was not given."""
        return None if self.undo is None else partial(self._undo, self.undo)

    def _undo(self, program: Program, arguments: bytes, result: bytes) -> None:
        said = {"arguments": json_of(arguments), "result": json_of(result)}
        ended = run_program(program, msgspec.json.encode(said), self.limits, lambda: None)
        if ended.status != 0:
            raise ToolFailed(_failure(ended))


def program_of(words: str | Sequence[str], folder: Path | None = None) -> Program:
    """The program of a command line, which no shell reads: quotes count, `|`, `$` and `*` do not.

    SettingsError if there is no such program.
    """
    try:
        argv = shlex.split(words) if isinstance(words, str) else list(words)
    except ValueError as error:
        raise SettingsError(f"{words}: {str(error).lower()}") from None
    if not argv or not all(isinstance(it, str) and "\0" not in it for it in argv):
        raise SettingsError(f"{words!r} is no command: give a program and its arguments")
    place = str((folder or Path.cwd()) / argv[0]) if "/" in argv[0] else argv[0]
    found = shutil.which(place)
    if found is None:
        raise SettingsError(f"there is no program {argv[0]} that can be run")
    return Program((found, *argv[1:]), folder)


def _failure(ended: Ended) -> str:
    how = f"exit status {ended.status}" if ended.status > 0 else f"signal {-ended.status}"
    return f"{how}: {ended.said}" if ended.said else how
