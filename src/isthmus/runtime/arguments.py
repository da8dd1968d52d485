"""Checks of what a caller gives an actor, or a snapshot of one.

They raise SettingsError; those of snapshots raise SnapshotMismatch and SnapshotInvalid.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from isthmus.config import Limits
from isthmus.errors import SettingsError, SnapshotInvalid, SnapshotMismatch
from isthmus.model import Model
from isthmus.snapshot import Snapshot
from isthmus.spelling import suggestion
from isthmus.tools import Tool
from isthmus.tools.function import tool_of
from isthmus.tools.tool import require_name
from isthmus.units import MAX_NBYTES_32, format_nbytes
from isthmus.wasm import Guest
from isthmus.wasm.names import shown
from isthmus.wasm.wasi import c_strings

_log = logging.getLogger("isthmus")


def options_of(
    args: Sequence[str] | Mapping[str, object], options: Mapping[str, object] = MappingProxyType({})
) -> tuple[str, ...]:
    """Options for a guest, each as `key=value`, those in `options` last."""
    if isinstance(args, str):
        raise SettingsError(f"args is {args!r}: give a list of key=value, or a mapping")
    found = _written(args) if isinstance(args, Mapping) else list(args)
    for option in found:
        if not isinstance(option, str) or "=" not in option:
            raise SettingsError(f"an option for a guest is key=value, not {option!r}")
    named = {option.partition("=")[0] for option in found}
    if twice := sorted(named & options.keys()):
        raise SettingsError(f"the option {twice[0]} is given twice: by name, and in args")
    return (*found, *_written(options))


def _written(options: Mapping[str, object]) -> list[str]:
    return [f"{name}={text}" for name, text in option_texts(options).items()]


def option_texts(options: Mapping[str, object]) -> dict[str, str]:
    """Options of JSON's types as guests read them; those that are None are left out."""
    given = {name: value for name, value in options.items() if value is not None}
    return {name: _text_of(name, value) for name, value in given.items()}


def _text_of(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(int(value))
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise SettingsError(
            f"the option {name} is of the type {type(value).__name__}, which cannot be given to a "
            f"guest: give a JSON value ({error})"
        ) from None


def command_line(
    guest: Guest,
    options: Sequence[str],
    argv: Sequence[str],
    environ: Mapping[str, str] | None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A command's arguments, and its variables as NAME=VALUE; none of either for another guest."""
    if isinstance(argv, str) or not all(isinstance(it, str) for it in argv):
        raise SettingsError(f"argv is {argv!r}: give a list of texts")
    variables = dict(environ or {})
    if not all(isinstance(it, str) for pair in variables.items() for it in pair):
        raise SettingsError("environ is a mapping of texts to texts")
    if any(not name or "=" in name for name in variables):
        raise SettingsError("a variable's name is empty, or has = in it")
    if guest.is_command and options:
        raise SettingsError(
            f"{guest.name} is a command and takes no options such as {options[0]}: give it "
            "arguments, argv=[…] or after --, and variables, environ={…} or --env"
        )
    if not guest.is_command and (argv or variables):
        raise SettingsError(
            f"{guest.name} is no command: arguments and variables are for guests with _start; "
            "give it options, args={…} or --arg"
        )
    texts = tuple(argv), tuple(f"{name}={value}" for name, value in variables.items())
    for each in texts:
        c_strings(each)
    return texts


def warn_of_unknown(guest: Guest, options: Sequence[str]) -> None:
    """Warns of each option that a guest does not list among its own, if it lists any: in the log,
    or by a UserWarning in a program that configured none. A guest that runs a script cannot know
    the script's."""
    card = guest.card
    known = [it.name for it in card.options] if card is not None else ["script"]
    if "script" in known:
        return
    for name in dict.fromkeys(option.partition("=")[0] for option in options):
        if name not in known:
            hint = suggestion(name, known) or f": it has {', '.join(known) or 'none'}"
            said = f"{guest.name} knows no option {shown(name)}{hint}"
            if _is_heard():
                _log.warning("%s", said)
            else:
                warnings.warn(said, stacklevel=3)


def _is_heard() -> bool:
    """Whether somebody configured logging."""
    handlers = [*logging.getLogger("isthmus").handlers, *logging.getLogger().handlers]
    return not all(isinstance(it, logging.NullHandler) for it in handlers)


def require_given(models: object, limits: object) -> None:
    """Refuses models and limits of another type."""
    if not isinstance(models or {}, Mapping):
        raise SettingsError("models are given by name: models={'default': model}")
    for name, model in (models or {}).items():  # type: ignore[attr-defined]
        if not isinstance(model, Model):
            raise SettingsError(f"models[{name!r}] is no Model: Runtime.load_model makes one")
    if not isinstance(limits, Limits | None):
        raise SettingsError("limits are isthmus.Limits(…)")


def tools_of(given: Mapping[str, Tool | Callable[..., object]] | None) -> dict[str, Tool]:
    """Tools by name; functions become tools."""
    if not isinstance(given or {}, Mapping):
        raise SettingsError("tools are given by name: tools={'now': function}")
    for name in given or {}:
        require_name(name)
    return {name: tool_of(it) for name, it in (given or {}).items()}


def require_range(name: str, value: int | None, low: int, end: int) -> None:
    """Refuses a number below `low`, or of `end` or more."""
    if value is not None and not low <= value < end:
        raise SettingsError(f"{name} is {value}: give {low} to {end - 1}")


def require_reach(guest: Guest, limits: Limits) -> None:
    """Refuses more memory than the guest's pointers can reach."""
    if limits.memory_nbytes > MAX_NBYTES_32 and not guest.is_64:
        raise SettingsError(
            f"{guest.name} may have {format_nbytes(limits.memory_nbytes)} of memory, and its "
            "memory is 32-bit: it can have 4 GiB less one wasm page. Use a guest built for "
            "wasm64, as chat64 and complete64 are, or give less"
        )


def require_guest_of(snapshot: Snapshot, guest: Guest) -> None:
    """Refuses another guest than the snapshot's."""
    record = snapshot.manifest.guest
    if guest.is_64 != snapshot.manifest.memory.is_64:
        raise SnapshotInvalid(f"the memory in {snapshot.path} is not of the kind of its guest's")
    if guest.is_command != (snapshot.manifest.actor.argv is not None):
        raise SnapshotInvalid(f"{snapshot.path} is of another kind of guest than its own")
    if guest.sha256 != record.sha256:
        raise SnapshotMismatch(
            f"the snapshot is of the guest {record.name} {record.sha256[:12]}…, "
            f"not of {guest.name} {guest.sha256[:12]}…"
        )


def require_memory_for(snapshot: Snapshot, limits: Limits) -> None:
    """Refuses a snapshot that has more memory than its actor may have."""
    nbytes = snapshot.manifest.memory.nbytes
    if nbytes > limits.memory_nbytes:
        raise SnapshotMismatch(
            f"the snapshot has {format_nbytes(nbytes)} of memory; "
            f"{format_nbytes(limits.memory_nbytes)} are allowed: give more, by "
            "--memory or limits=Limits(memory_nbytes=…)"
        )
