"""Runs of tools that are taken back with the message that asked for them."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from isthmus.tools.tool import TakeBack

_log = logging.getLogger("isthmus.guest")


@dataclass(frozen=True, slots=True)
class Undoable:
    """One run of a tool that knows how to take it back."""

    name: str
    label: str
    """The agent's name in the log."""
    take_back: TakeBack
    arguments: bytes
    result: bytes


def undo_all(runs: list[Undoable]) -> None:
    """Takes back each run once, the last one first. Waits for the tools.

    What cannot be taken back stays done and is logged: nobody tries again.
    """
    while runs:
        run = runs.pop()
        try:
            run.take_back(run.arguments, run.result)
        except Exception:
            text = "what the tool %r did could not be undone"
            _log.exception(text, run.name, extra={"agent": run.label})
        else:
            _log.info("undid what the tool %r did", run.name, extra={"agent": run.label})
