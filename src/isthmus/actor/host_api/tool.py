"""The host functions of the group `tool` in `abi/host.toml`, in its order."""

from __future__ import annotations

import logging
import time
from contextvars import ContextVar
from functools import partial
from typing import NoReturn

import msgspec

from isthmus.abi import Errno
from isthmus.actor.ask import Aside
from isthmus.actor.host_api.context import MAX_NAME_NBYTES, MAX_SAID, Context
from isthmus.actor.reply import ToolCall
from isthmus.actor.undoing import Undoable
from isthmus.errors import GuestFault, ToolFailed, ToolNotFound
from isthmus.tools import Tool
from isthmus.units import KIB, MIB

MAX_ARGS_NBYTES = 16 * MIB
_MAX_CALLS = 256
"""Calls that a reply tells of."""
_MAX_ERROR = 4 * KIB
"""Characters of a failure that guest and caller are told."""
_calling: ContextVar[object | None] = ContextVar("calling", default=None)
"""What stands for the call on whose behalf a thread works, also one that a tool has begun."""


class _Over(BaseException):
    """Nobody wants the result: carries what ends the call through whatever the tool catches."""

    def __init__(self, why: BaseException) -> None:
        self.why = why


class ToolFunctions:
    """See the module. One for each actor."""

    def __init__(self, context: Context) -> None:
        self._c = context

    async def tool_call(
        self, name_ptr: int, name_nbytes: int, args_ptr: int, args_nbytes: int
    ) -> int:
        c = self._c
        name = c.memory.read_text(name_ptr, name_nbytes, MAX_NAME_NBYTES)
        if args_nbytes > MAX_ARGS_NBYTES:
            raise GuestFault(Errno.EINVAL)
        c.memory.check(args_ptr, args_nbytes)
        tool = c.granted.tools.get(name)
        if tool is None:
            self._not_found(name)
        c.message.check_going_on()
        start = time.monotonic()
        try:
            run = partial(self._run, name, tool, args_ptr, args_nbytes)
            result = await Aside(c.message, run, blocks=True)
        except _Over as over:
            self._note(ToolCall(name, time.monotonic() - start, 0, "given up"))
            raise over.why from None
        except (Exception, SystemExit) as error:
            self._failed(name, error, time.monotonic() - start)
        c.message.tool_result = result
        c.message.explained.pop(Errno.EIO, None)
        self._note(ToolCall(name, time.monotonic() - start, len(result)))
        return len(result)

    def tool_result(self, ptr: int, cap: int) -> int | Aside[int]:
        c = self._c
        if c.message.tool_result is None:
            raise GuestFault(Errno.EINVAL)
        return c.fill_soon(ptr, cap, c.message.tool_result)

    def tool_list(self, ptr: int, cap: int) -> int | Aside[int]:
        c = self._c
        return c.fill_soon(ptr, cap, msgspec.json.encode(described(c)))

    # ------------------------------------------------------------------ parts

    def _run(self, name: str, tool: Tool, args_ptr: int, args_nbytes: int) -> bytes:
        """Runs a tool, on a thread that may wait."""
        c = self._c
        message, arguments = c.message, c.memory.read(args_ptr, args_nbytes)
        call = c.tool_call = object()
        token = _calling.set(call)
        try:
            result = tool.run(arguments, self._check)
        finally:
            _calling.reset(token)
            c.tool_call = None
        if (take_back := tool.take_back) is not None:
            message.undoable.append(Undoable(name, c.granted.label, take_back, arguments, result))
        return result

    def _check(self) -> None:
        try:
            self._c.message.check_going_on()
        except BaseException as why:
            raise _Over(why) from None

    def _note(self, call: ToolCall) -> None:
        c = self._c
        if len(c.message.tool_calls) < _MAX_CALLS:
            c.message.tool_calls.append(call)
        said = call.error or f"{call.nbytes} bytes"
        c.log(logging.INFO, f"the tool {call.name!r}: {said}, in {call.seconds:.3f} s")

    def _failed(self, name: str, error: BaseException, seconds: float) -> NoReturn:
        is_told = isinstance(error, ToolFailed)
        said = (str(error) if is_told else f"{type(error).__name__}: {error}")[:_MAX_ERROR]
        c = self._c
        if len(c.message.tool_calls) < _MAX_CALLS:
            c.message.tool_calls.append(ToolCall(name, seconds, 0, said[:MAX_SAID]))
        c.message.tool_result = said.encode(errors="replace")
        failure = ToolFailed(f"the tool {name!r} failed: {said}")
        failure.__cause__ = error.__cause__ if is_told and error.__cause__ else error
        c.message.explained[Errno.EIO] = failure
        c.log(logging.WARNING, str(failure), None if is_told else error)
        raise GuestFault(Errno.EIO)

    def _not_found(self, name: str) -> NoReturn:
        c = self._c
        given = ", ".join(c.granted.tools) or "none"
        error = ToolNotFound(
            f"the guest asks for a tool named {name!r}, and it was given {given}: give it by "
            f"--tool {name}=COMMAND, or tools={{{name!r}: function}}"
        )
        c.message.tool_result = str(error).encode(errors="replace")
        c.message.explained[Errno.ENOENT] = error
        raise GuestFault(Errno.ENOENT)


def described(context: Context) -> list[dict[str, object]]:
    """The actor's tools, as models are told of them."""
    return [tool.described(name) for name, tool in context.granted.tools.items()]


def is_inside(context: Context) -> bool:
    """Whether the calling thread works for a tool that the actor has called."""
    call = _calling.get()
    return call is not None and call is context.tool_call
