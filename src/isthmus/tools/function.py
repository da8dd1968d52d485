"""A Python function as a tool.

=========================================  ====================================================
the function                               what it is called with
=========================================  ====================================================
one parameter, `bytes` or not annotated    the bytes that the guest gave
any others                                 the fields of one JSON object, checked against their
                                           annotations, from which the model's schema is made
=========================================  ====================================================

It may be a coroutine function: its coroutine is awaited, on an event loop of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from isthmus.errors import SettingsError, ToolFailed
from isthmus.tools.tool import (
    ANY_OBJECT,
    Check,
    TakeBack,
    Tool,
    ToolLimits,
    bytes_of,
    too_late,
)
from isthmus.tools.waiting import Waiting

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionTool(Tool):
    """See the module. `function_tool` makes one."""

    function: Callable[..., object]
    fields: type[msgspec.Struct] | None = None
    """The arguments' type; None for a function that takes them as bytes."""
    undo: TakeBack | None = None

    def run(self, arguments: bytes, check: Check) -> bytes:
        """What the function returns. One that takes too long is left alone: nothing can end it."""
        call = self._call(arguments)
        return bytes_of(Waiting(call).result(self.limits, check), self.limits)

    @property
    def take_back(self) -> TakeBack | None:
        """The function `undo`, in time; None if it was not given."""
        return None if self.undo is None else self._undo

    def _undo(self, arguments: bytes, result: bytes) -> None:
        assert self.undo is not None
        work = partial(self._awaited, partial(self.undo, arguments, result))
        Waiting(work).result(self.limits, lambda: None)

    def _call(self, arguments: bytes) -> Callable[[], object]:
        if self.fields is None:
            return partial(self._awaited, partial(self.function, arguments))
        try:
            given = msgspec.json.decode(arguments or b"{}", type=self.fields)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise ToolFailed(f"its arguments are wrong: {error}") from None
        named = {name: getattr(given, name) for name in self.fields.__struct_fields__}
        return partial(self._awaited, partial(self.function, **named))

    def _awaited(self, call: Callable[[], object]) -> object:
        """The result of a call, or of the coroutine that it gives."""
        result = call()
        return _finished(result, self.limits) if inspect.isawaitable(result) else result


def function_tool(
    function: Callable[..., object],
    *,
    description: str | None = None,
    undo: TakeBack | None = None,
    limits: ToolLimits | None = None,
) -> FunctionTool:
    """A function as a tool; its docstring is the description if none is given.

    `undo` is called with the arguments and the result of each run that is undone with its message
    (`Limits.on_failure`). SettingsError for parameters that no JSON object can fill.
    """
    if not callable(function):
        raise SettingsError(f"a tool is a function or a Tool, not a {type(function).__name__}")
    fields, schema = None, ANY_OBJECT
    if not _takes_bytes(parameters := _parameters_of(function)):
        fields = _struct_of(function, parameters)
        schema = _schema_of(function, fields)
    return FunctionTool(
        description=_said_of(function) if description is None else description,
        parameters=schema,
        limits=limits or ToolLimits(),
        function=function,
        fields=fields,
        undo=undo,
    )


def tool_of(given: Tool | Callable[..., object]) -> Tool:
    """A tool as it is, a function made into one."""
    return given if isinstance(given, Tool) else function_tool(given)


def _finished(result: Awaitable[object], limits: ToolLimits) -> object:
    """What a coroutine returns, on an event loop of its own; it is cancelled if it takes too long.

    ToolFailed then.
    """
    import asyncio  # noqa: PLC0415 - few tools need it, and it takes long to import

    async def waiting() -> object:
        return await result

    async def in_time() -> object:
        task = asyncio.ensure_future(waiting())
        done, _ = await asyncio.wait([task], timeout=limits.deadline_s)
        if not done:
            task.cancel()
            raise too_late(limits)
        return task.result()

    return asyncio.run(in_time())


def _parameters_of(function: Callable[..., object]) -> list[inspect.Parameter] | None:
    """The function's parameters; None if nobody knows them, as for many that are not Python."""
    try:
        return list(inspect.signature(function, eval_str=True).parameters.values())
    except (ValueError, TypeError):
        return None
    except Exception as error:  # an annotation may be any expression
        raise SettingsError(f"{_named(function)}: an annotation cannot be read: {error}") from None


def _takes_bytes(parameters: list[inspect.Parameter] | None) -> bool:
    if parameters is None:
        return True
    needed = [it for it in parameters if it.default is it.empty and it.kind is not it.VAR_KEYWORD]
    return len(needed) == 1 and needed[0].annotation in (inspect.Parameter.empty, bytes)


def _struct_of(
    function: Callable[..., object], parameters: list[inspect.Parameter] | None
) -> type[msgspec.Struct]:
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for it in parameters or ():
        if it.kind not in _NAMED:
            raise SettingsError(
                f"{_named(function)}: the parameter {it.name} cannot be given by name"
            )
        annotation = Any if it.annotation is it.empty else it.annotation
        default = () if it.default is it.empty else (_default(it.default),)
        fields.append((it.name, annotation, *default))
    return msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True)


def _default(value: object) -> Any:
    """A default as a field of a struct has it, which may be mutable."""
    return msgspec.field(default_factory=lambda: value)


def _schema_of(function: Callable[..., object], fields: type[msgspec.Struct]) -> dict[str, Any]:
    try:
        (_, others) = msgspec.json.schema_components([fields], ref_template="#/$defs/{name}")
    except (TypeError, NotImplementedError) as error:
        raise SettingsError(f"{_named(function)}: no JSON fits a parameter: {error}") from None
    schema = {name: it for name, it in others.pop("Arguments").items() if name != "title"}
    return {**schema, "$defs": others} if others else schema


def _said_of(function: Callable[..., object]) -> str:
    said = getattr(function, "__doc__", None)
    has_own = inspect.isroutine(function) and isinstance(said, str)
    return inspect.cleandoc(said) if has_own and said else ""


def _named(function: Callable[..., object]) -> str:
    return getattr(function, "__qualname__", type(function).__name__)
