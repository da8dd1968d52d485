"""What a setting may be, and how it is read from an environment variable."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from isthmus.config import (
    CACHES,
    GRAPHS,
    KV_TYPES,
    LOG_LEVELS,
    MAX_CHECKPOINTS,
    MAX_RUNNING,
    SHARING,
    WIDTH,
)
from isthmus.errors import SettingsError
from isthmus.server.duration import MAX_S, seconds_of
from isthmus.tools.hosts import AllowedHosts
from isthmus.tools.spec import specs_of_table
from isthmus.units import KIB, MIB

_DURATION = "seconds, or a duration such as 30s, 5m or 1h"
_MAX_WHOLE = 2**63 - 1
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True, slots=True)
class Kind:
    """What a setting may be, in words and as a test, and what a variable's text is as one.

    A text that cannot be read stays a text, which `accepts` refuses.
    """

    allowed: str
    accepts: Callable[[object], bool]
    read: Callable[[str], object] = str


def _or_absent(kind: Kind) -> Kind:
    return Kind(kind.allowed, lambda it: it is None or kind.accepts(it), kind.read)


def _whole(least: int, most: int | None = None) -> Kind:
    def accepts(it: object) -> bool:
        whole = isinstance(it, int) and not isinstance(it, bool)
        return whole and least <= it <= (most or _MAX_WHOLE)  # type: ignore[operator]

    def read(text: str) -> object:
        return int(text) if re.fullmatch(r"\s*[0-9]{1,20}\s*", text) else text

    return Kind(f"a whole number, {least} " + (f"to {most}" if most else "or more"), accepts, read)


def _seconds(allowed: str, in_range: Callable[[float], bool]) -> Kind:
    def accepts(it: object) -> bool:
        number = isinstance(it, (int, float)) and not isinstance(it, bool)
        return number and it <= MAX_S and in_range(it)  # type: ignore[operator, arg-type]

    return Kind(f"{_DURATION}, {allowed}", accepts, in_seconds)


def in_seconds(text: object) -> object:
    """A duration in seconds; what is none as it is."""
    with contextlib.suppress(SettingsError):
        return seconds_of(text) if isinstance(text, str) else text
    return text


def _switch() -> Kind:
    def read(text: str) -> object:
        word = text.strip().lower()
        return True if word in _TRUE else False if word in _FALSE else text

    return Kind("true or false", lambda it: isinstance(it, bool), read)


def _one_of(choices: Sequence[str]) -> Kind:
    *most, last = choices
    return Kind(f"{', '.join(most)} or {last}", lambda it: it in choices)


def _text() -> Kind:
    def accepts(it: object) -> bool:
        return isinstance(it, Path) or (isinstance(it, str) and it != "")

    return Kind("a text, which is not empty", accepts)


def _list(allowed: str, fits: Callable[[str], bool]) -> Kind:
    def accepts(it: object) -> bool:
        return isinstance(it, (list, tuple)) and all(isinstance(e, str) and fits(e) for e in it)

    def read(text: str) -> object:
        return tuple(part.strip() for part in text.split(",") if part.strip())

    return Kind(allowed, accepts, read)


def _table(allowed: str, is_line: Callable[[object, object], bool]) -> Kind:
    def accepts(it: object) -> bool:
        return isinstance(it, Mapping) and all(is_line(*line) for line in it.items())

    def read(text: str) -> object:
        pairs = [part.partition("=") for part in text.split(",") if part.strip()]
        made = {name.strip(): value.strip() for name, _, value in pairs}
        return made if len(made) == len(pairs) else text  # a name twice: no table

    return Kind(allowed, accepts, read)


def _like(form: str) -> Callable[[str], bool]:
    found = re.compile(form, re.I)
    return lambda it: found.fullmatch(it) is not None and not it.endswith("://")


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


def _is_model(name: object, said: object) -> bool:
    """Whether a line of `models` is one."""
    table = said if isinstance(said, Mapping) else {"file": said}
    file, load, mmproj = table.get("file"), table.get("load", False), table.get("mmproj", "")
    known = table.keys() <= {"file", "load", "mmproj"} and isinstance(load, bool)
    return bool(name) and known and isinstance(file, str) and bool(file) and isinstance(mmproj, str)


def _is_alias(alias: object, model: object) -> bool:
    """Whether a line of `aliases` is one."""
    return bool(alias) and isinstance(model, str) and bool(model)


def tools_problem(value: object) -> str | None:
    """Why tools cannot be that; whether they can be opened is seen at the start."""
    try:
        specs_of_table(value)
    except SettingsError as error:
        return str(error)
    return None


_ORIGIN = r"\*|null|[a-z][a-z0-9+.-]*://(\*\.)?[a-z0-9._-]*(\[[0-9a-f:]+\])?(:([0-9]{1,5}|\*))?"
_ADDRESS = r"https?://([a-z0-9._-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?"
_HOST = r"\*|(\*\.)?[a-z0-9._-]+|\[[0-9a-f:.]+\]"
DAY_S = 86_400.0


def _is_asked(text: str) -> bool:
    """Whether that is a host that may be asked."""
    try:
        AllowedHosts([text])
    except SettingsError:
        return False
    return True


_POSITIVE = _seconds("more than 0", lambda it: it > 0)
_MODEL = _list("a list of models, each as [NAME=]PATH", bool)

KINDS: Mapping[str, Kind] = {
    "host": _text(),
    "port": _whole(0, 65535),
    "data": _text(),
    "cache": _or_absent(_text()),
    "lease_s": _seconds("more than 0, up to a day", lambda it: 0 < it <= DAY_S),
    "advertise": _or_absent(
        Kind(
            "a URL without a path, such as http://10.0.0.7:8080",
            lambda it: isinstance(it, str) and re.fullmatch(_ADDRESS, it, re.I) is not None,
        )
    ),
    "keys": _or_absent(_text()),
    "n_ctx": _or_absent(_whole(1)),
    "model": Kind(
        "a model as [NAME=]PATH, or a list of them",
        lambda it: (isinstance(it, str) and it != "") or _MODEL.accepts(it),
        _MODEL.read,
    ),
    "lora": _list("a list of adapters, each as [NAME=]PATH[:SCALE]", bool),
    "mmproj": _list("a list of projector files, each as [NAME=]PATH", bool),
    "models": _table(
        'a table of lines NAME = "FILE" or NAME = { file = "FILE", load = true }', _is_model
    ),
    "models_folder": _or_absent(_text()),
    "tools": replace(
        _table('a table of lines NAME = "COMMAND"', lambda *_: True),
        accepts=lambda it: tools_problem(it) is None,
    ),
    "aliases": _table('a table of lines NAME = "MODEL"', _is_alias),
    "models_nbytes": _or_absent(_whole(MIB)),
    "keep_alive_s": _seconds("0 to unload at once, -1 for never", lambda it: it == -1 or it >= 0),
    "slots": _whole(1, MAX_RUNNING),
    "memory64": _or_absent(_switch()),
    "memory_nbytes": _or_absent(_whole(MIB)),
    "waiting": _whole(0),
    "share_beginnings": _switch(),
    "share_agents": _switch(),
    "guests": _whole(0),
    "guests_nbytes": _whole(0),
    "guest_kept_s": _POSITIVE,
    "responses": _whole(1),
    "responses_kept_s": _POSITIVE,
    "save_tokens": _whole(0),
    "save_s": _seconds("0 for at no time, up to a day", lambda it: 0 <= it <= DAY_S),
    "live": _whole(1, MAX_RUNNING),
    "max_tokens": _or_absent(_whole(1)),
    "deadline_s": _POSITIVE,
    "body_nbytes": _whole(KIB),
    "json_nbytes": _whole(KIB),
    "bodies_nbytes": _whole(KIB),
    "upload_nbytes": _whole(KIB),
    "concurrent": _whole(1),
    "output_nbytes": _whole(KIB),
    "connections": _whole(1),
    "head_s": _POSITIVE,
    "idle_s": _POSITIVE,
    "stalled_s": _POSITIVE,
    "silent_s": _POSITIVE,
    "drain_s": _seconds("0 to an hour", lambda it: 0 <= it <= 3600),
    "origins": _list(
        "a list of origins without a path, such as https://app.example.org, "
        "https://*.example.org and http://localhost:*; or of * for all",
        _like(_ORIGIN),
    ),
    "hosts": _list(
        "a list of names without a port, such as llm.example.org and *.example.org; or of *",
        _like(_HOST),
    ),
    "proxies": _list(
        "a list of addresses and networks, such as 10.0.0.7 and 172.16.0.0/12", _is_network
    ),
    "traces": _or_absent(
        Kind(
            "the URL of a collector, such as http://localhost:4318",
            lambda it: isinstance(it, str) and re.match("https?://[^/]", it) is not None,
        )
    ),
    "media_hosts": _list(
        "a list of hosts, such as example.org, *.example.org and 10.0.0.7, each maybe with :PORT; "
        "or of * for all",
        _is_asked,
    ),
    "log_format": _one_of(("line", "json")),
    "log_level": _one_of(LOG_LEVELS),
    "device": _text(),
    "threads": _whole(0, 512),
    "sharing": _or_absent(_one_of(SHARING)),
    "caches": _one_of(CACHES),
    "ggml": _or_absent(_text()),
    "kv_type": _one_of(KV_TYPES),
    "deterministic": _switch(),
    "inexact": _switch(),
    "width": Kind(
        "alone, few, many, or a class of the model, as 9-128",
        lambda it: isinstance(it, str) and WIDTH.fullmatch(it) is not None,
    ),
    "repack": _switch(),
    "checkpoints": _whole(0, MAX_CHECKPOINTS),
    "message_checkpoints": _switch(),
    "graph": _one_of(GRAPHS),
}
"""What each setting may be."""
TABLES = ("models", "aliases")


def problem_of(name: str, value: object) -> str | None:
    """Why a setting cannot be that, and what it may be; None where it can."""
    kind = KINDS[name]
    if _has_zero_byte(value):
        return f"{name} has a zero byte in it: give {kind.allowed}"
    if kind.accepts(value):
        return None
    if name == "tools":
        return tools_problem(value)
    if name in TABLES and isinstance(value, Mapping):  # only the line that is wrong is told
        key, said = next(it for it in value.items() if not kind.accepts(dict([it])))
        name, value = f"{name}.{key}" if key else name, said
    return f"{name} is {value!r}: give {kind.allowed}"


def _has_zero_byte(value: object) -> bool:
    """Whether a text has one, anywhere in it: no path and no name of a host may."""
    if isinstance(value, Mapping):
        return any(_has_zero_byte(it) for line in value.items() for it in line)
    if isinstance(value, (list, tuple)):
        return any(map(_has_zero_byte, value))
    return "\0" in str(value)
