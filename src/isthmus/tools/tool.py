"""What every tool is: a description for models, bounds, and a way to run it."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from isthmus.errors import SettingsError, ToolFailed
from isthmus.units import MIB, format_nbytes

Check = Callable[[], None]
"""Called now and then while a tool runs; raises if nobody wants the result any more."""

TakeBack = Callable[[bytes, bytes], object]
"""Takes the arguments and the result of one run."""

MAX_OUTPUT_NBYTES = 64 * MIB
"""Bytes that a result may have, whatever is asked for: it is kept in memory."""
ANY_OBJECT: Mapping[str, Any] = {"type": "object", "additionalProperties": True}
"""Schema of arguments of which nobody said more."""
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class ToolLimits:
    """Bounds of each run of a tool."""

    deadline_s: float = 60.0
    """Seconds until a run is given up."""
    output_nbytes: int = MIB
    """Bytes of the longest result."""

    def __post_init__(self) -> None:
        if not 0 < self.deadline_s < 1e6:
            raise SettingsError(f"deadline_s is {self.deadline_s}: give seconds, more than 0")
        if not 1 <= self.output_nbytes <= MAX_OUTPUT_NBYTES:
            raise SettingsError(
                f"output_nbytes is {self.output_nbytes}: give 1 to {MAX_OUTPUT_NBYTES} bytes"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool(ABC):
    """See the module. Safe to use from several threads: many agents may have the same tool."""

    description: str = ""
    """What it does, for the model that is to use it."""
    parameters: Mapping[str, Any] = field(default_factory=lambda: ANY_OBJECT)
    """JSON schema of its arguments, which are one object."""
    limits: ToolLimits = ToolLimits()

    @abstractmethod
    def run(self, arguments: bytes, check: Check) -> bytes:
        """The result for arguments, which are JSON by custom. Waits; whatever `check` raises ends
        the run. Raises ToolFailed, or what the tool itself raises."""

    @property
    def take_back(self) -> TakeBack | None:
        """What takes back one run, after the message that asked for it was undone; None for a tool
        whose runs stay done. Waits."""
        return None

    def described(self, name: str) -> dict[str, Any]:
        """The tool as chat templates take it, which is as OpenAI writes it."""
        function: dict[str, Any] = {"name": name}
        if self.description:
            function["description"] = self.description
        return {"type": "function", "function": {**function, "parameters": self.parameters}}


def require_name(name: object) -> None:
    """SettingsError for a name that models could not write."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SettingsError(
            f"no tool can be called {str(name)[:80]!r}: give up to 64 letters, digits, _, - and ."
        )


def bytes_of(result: object, limits: ToolLimits) -> bytes:
    """A result as a guest gets it: bytes as they are, text as UTF-8, all else as JSON. Raises
    ToolFailed for what is none of these, or too long."""
    if isinstance(result, bytes | bytearray | memoryview):
        data = bytes(result)
    elif isinstance(result, str):
        data = result.encode(errors="replace")
    else:
        try:
            data = msgspec.json.encode(result)
        except (TypeError, ValueError, RecursionError) as error:
            kind = type(result).__name__
            raise ToolFailed(
                f"its result, of type {kind}, is not text, bytes or JSON: {error}"
            ) from None
    require_short(len(data), limits)
    return data


def json_of(data: bytes) -> object:
    """Bytes as the JSON that they are, or as text."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return data.decode(errors="replace")


def require_short(nbytes: int, limits: ToolLimits) -> None:
    """ToolFailed for a result that is too long."""
    if nbytes > limits.output_nbytes:
        raise ToolFailed(f"its result is longer than {format_nbytes(limits.output_nbytes)}")


def too_late(limits: ToolLimits) -> ToolFailed:
    """The error of a run that took too long."""
    return ToolFailed(f"it did not answer within {limits.deadline_s:g} s")
