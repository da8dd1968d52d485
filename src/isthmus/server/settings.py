"""Settings of a server: frozen, from the command line or a TOML file, both checked here."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from isthmus.errors import SettingsError
from isthmus.server.duration import seconds_of
from isthmus.spelling import suggestion
from isthmus.tools.spec import specs_of_table
from isthmus.units import GIB, KIB, MIB

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


_WHOLE: dict[str, tuple[int, int | None]] = {
    "port": (0, 65535),
    "n_ctx": (1, None),
    "slots": (1, None),
    "waiting": (0, None),
    "live": (1, None),
    "connections": (1, None),
    "body_nbytes": (KIB, None),
    "bodies_nbytes": (KIB, None),
    "upload_nbytes": (KIB, None),
    "json_nbytes": (KIB, None),
    "concurrent": (1, None),
    "output_nbytes": (KIB, None),
    "guests": (0, None),
    "guests_nbytes": (0, None),
    "responses": (1, None),
}
"""The least and the most that a setting may be."""
_BOUNDS = {"memory_nbytes": MIB, "models_nbytes": MIB, "max_tokens": 1}
"""The least that a setting may be which may also be absent."""
_SECONDS = (
    "deadline_s",
    "lease_s",
    "head_s",
    "idle_s",
    "stalled_s",
    "silent_s",
    "guest_kept_s",
    "responses_kept_s",
)
_DURATIONS = "seconds, or a duration such as 30s, 5m or 1h"
_CHOICES = {"log_format": ("line", "json")}
_LISTS = {
    "origins": re.compile(
        r"\*|null|[a-z][a-z0-9+.-]*://(\*\.)?[a-z0-9._-]*(\[[0-9a-f:]+\])?(:([0-9]{1,5}|\*))?", re.I
    ),
    "hosts": re.compile(r"\*|(\*\.)?[a-z0-9._-]+|\[[0-9a-f:.]+\]", re.I),
    "proxies": re.compile(r"[0-9a-f:./]+", re.I),
}
"""What an element of a list must look like."""
_ELEMENTS = {
    "origins": "a list of origins without a path, such as https://app.example.org, "
    "https://*.example.org and http://localhost:*; or of * for all",
    "hosts": "a list of names without a port, such as llm.example.org and *.example.org; or of *",
    "proxies": "a list of addresses and networks, such as 10.0.0.7 and 172.16.0.0/12",
}
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
"""Ports that a browser leaves out of an origin."""


@dataclass(frozen=True)
class ServerSettings:
    """What a server does; each field is a key of its TOML file too, in which seconds may be written
    as a duration, such as `5m`."""

    host: str = "127.0.0.1"
    """Where it listens. Beyond this machine only with keys."""
    port: int = 8080
    """0 takes any that is free."""
    data: Path | str = field(default_factory=lambda: Path("isthmus-data"))
    """Folder of the agents, made if it is not there; or URL of an object store, such as s3://…"""
    cache: Path | None = None
    """Folder on the local disk for what a URL holds; by default in the user's cache folder."""
    lease_s: float = 30.0
    """For which a URL stays a server's that has died without giving it back."""
    keys: Path | None = None
    """File of hashed API keys (`isthmus serve --new-key`); without it everybody may ask."""
    n_ctx: int | None = None
    """Tokens of context of each stateless request, and of agents that say nothing else. By default
    what the model was trained for, halved until the memory of `slots` requests is at most half of
    `memory_nbytes`, and each fits into a 32-bit memory; but 4,096 if the model has them."""
    models: Mapping[str, object] = field(default_factory=dict)
    """Models by name: a file, or a table with `file` and `load`. With `load = true` one is loaded
    at the start and stays, others when a request asks for them."""
    models_folder: Path | None = None
    """Folder whose GGUF files are models that are loaded when a request asks for them. By default,
    if no model is named, the one where `isthmus pull` keeps what it fetched."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Further names of models, each with the name that it stands for."""
    tools: Mapping[str, object] = field(default_factory=dict)
    """Tools that agents may be given, by name: a command, a function as MODULE:FUNCTION, or a table
    that says more (docs/tools.md). Without `keys`, every key may use a tool."""
    models_nbytes: int | None = None
    """Bytes of the weights that are in memory together; by default three quarters of what the
    machine has left at the start, or of a device's own memory."""
    keep_alive_s: float = 300.0
    """Seconds for which a model stays that was loaded for a request, after its last use; 0 for
    none, -1 until another one needs its room."""
    slots: int = 16
    """Stateless requests that are computed at the same time."""
    memory64: bool | None = None
    """Whether stateless requests are answered in 64-bit memories; by default only where the KV
    cache of `n_ctx` tokens does not fit into 4 GiB."""
    memory_nbytes: int | None = None
    """Bytes that agents and stateless requests have together; by default what the machine has left
    beside the models (`Capacity.memory_nbytes`). Agents that are idle make room for others."""
    waiting: int = 256
    """Stateless requests that wait for a slot; further ones are refused."""
    share_beginnings: bool = False
    """Whether what is remembered of one key's prompts speeds up others' that begin alike. It tells
    them, by the time that an answer takes and by `cached_tokens`, how those prompts begin."""
    share_agents: bool = False
    """Whether each key sees and uses the agents of all others; otherwise they do not exist for it.
    Agents that were made without a key are everybody's."""
    guests: int = 64
    """Guests that the owner of a key has brought and not removed; all together without keys."""
    guests_nbytes: int = 64 * MIB
    """Bytes of those."""
    guest_kept_s: float = 604_800.0
    """After which a guest is removed that was brought and no agent uses: a week."""
    responses: int = 1000
    """Responses that the owner of a key has stored; all together without keys. Of more, the chains
    and conversations go that were used longest ago."""
    responses_kept_s: float = 2_592_000.0
    """After which a chain of responses goes that nobody went on with: 30 days."""
    live: int = 64
    """Agents kept in memory; others lie on the disk until their next message."""
    max_tokens: int | None = None
    """Tokens of an answer at most, whatever its request says; by default as many as the context has
    room for."""
    deadline_s: float = 600.0
    """Seconds that a request may take."""
    body_nbytes: int = 16 * MIB
    """Largest body of a request, guests that are brought among them; see `upload_nbytes`."""
    json_nbytes: int = 4 * MIB
    """Largest body of a request that is JSON. Decoded it takes up to 20 times as much."""
    bodies_nbytes: int = 256 * MIB
    """All bodies together that are in memory, half of it for one key; more are told 503."""
    upload_nbytes: int = 4 * GIB
    """Largest snapshot that an agent may be restored from; it is not kept in memory."""
    concurrent: int = 256
    """Requests at a time of a key whose own limits do not say."""
    output_nbytes: int = 16 * MIB
    """Bytes that an agent may emit, reply and log for one message: its caller may be slower than
    it, and what waits is in memory."""
    connections: int = 4096
    """Open at the same time; further ones are told 503 and closed."""
    head_s: float = 10.0
    """For a request's line and headers, from their first byte or the connection's begin."""
    idle_s: float = 30.0
    """For which a connection is kept between two requests."""
    stalled_s: float = 60.0
    """After which a client is cut off that takes nothing of its answer."""
    silent_s: float = 10.0
    """After which a stream of events that has nothing to say yet says that it goes on, so that no
    proxy takes it for dead."""
    origins: tuple[str, ...] = ()
    """Other origins whose pages may use the server; `*` for those of everybody."""
    hosts: tuple[str, ...] = ()
    """Names that the server has, beside this machine's own: requests for others are refused. By
    default those of this machine alone, and with keys any."""
    proxies: tuple[str, ...] = ()
    """Addresses of proxies whose X-Forwarded-For is believed; it is in the log."""
    log_format: str = "line"
    """`line` for people, `json` for programs: one object for each request and event."""

    def __post_init__(self) -> None:
        for it in fields(self):
            if said := _problem(it.name, getattr(self, it.name)):
                raise SettingsError(said)
        for name in _LISTS:
            object.__setattr__(self, name, tuple(_usual(it) for it in getattr(self, name)))
        for name in ("data", "cache", "keys", "models_folder"):
            value = getattr(self, name)
            object.__setattr__(self, name, _place(value) if value is not None else None)
        if any(isinstance(it, str) for it in (self.cache, self.keys, self.models_folder)):
            raise SettingsError(
                "cache, keys and models_folder are local files: only data may be a URL"
            )
        if self.cache is not None and isinstance(self.data, Path):
            raise SettingsError(f"cache is for agents at a URL, and data is the folder {self.data}")
        if not self._is_loopback() and self.keys is None:
            raise SettingsError(
                f"{self.host} can be reached from other machines: give --keys FILE "
                "(isthmus serve --new-key makes one), or listen on 127.0.0.1"
            )

    def _is_loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @staticmethod
    def make(file: Path | None, given: Mapping[str, Any]) -> ServerSettings:
        """What a TOML file says, and over it what was given. SettingsError for unknown keys."""
        known = {it.name for it in fields(ServerSettings)}
        said = _in_seconds(_read(file)) if file is not None else {}
        if unknown := sorted(said.keys() - known):
            meant = suggestion(unknown[0], known) or f"; there are {', '.join(sorted(known))}"
            raise SettingsError(f"{file}: there is no setting {unknown[0]}{meant}")
        for name, value in said.items():
            if problem := _problem(name, value):
                raise SettingsError(f"{file}: {problem}")
        given = _in_seconds({name: it for name, it in given.items() if it is not None})
        return ServerSettings(**{**said, **given})


def _in_seconds(said: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with durations as seconds; what is no duration is left for `_problem`."""
    found = dict(said)
    for name in (*_SECONDS, "keep_alive_s"):
        if isinstance(found.get(name), str):
            with contextlib.suppress(SettingsError):
                found[name] = seconds_of(found[name])
    return found


def _problem(name: str, value: object) -> str | None:
    """Why a setting cannot be that, and what it may be; None where it can."""
    if name == "n_ctx" and value is None:
        return None
    return _tools_problem(value) if name == "tools" else _other_problem(name, value)


def _other_problem(name: str, value: object) -> str | None:
    if name in _WHOLE:
        least, most = _WHOLE[name]
        good = isinstance(value, int) and not isinstance(value, bool)
        allowed = f"a whole number, {least} " + (f"to {most}" if most else "or more")
        good = good and least <= value and (most is None or value <= most)  # type: ignore[operator]
    elif name in _SECONDS:
        allowed = f"{_DURATIONS}, more than 0"
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
    elif name in _BOUNDS:
        good = value is None or (type(value) is int and value >= _BOUNDS[name])
        allowed = f"a whole number, {_BOUNDS[name]} or more"
    elif name == "keep_alive_s":
        good = isinstance(value, (int, float)) and type(value) is not bool and -1 <= value < 1e9
        allowed = f"{_DURATIONS}, 0 to unload at once, -1 for never"
        good = good and (value >= 0 or value == -1)  # type: ignore[operator]
    elif name in _TABLES:
        allowed, is_line = _TABLES[name]
        lines = value.items() if isinstance(value, Mapping) else ()
        good = isinstance(value, Mapping) and all(map(is_line, lines))
        key, value = next((it for it in lines if not is_line(it)), ("", value))
        name += f".{key}" if key else ""
    elif name in ("memory64", "share_beginnings", "share_agents"):
        allowed = "true or false"
        good = isinstance(value, bool) or (name == "memory64" and value is None)
    elif name in _LISTS:
        allowed = _ELEMENTS[name]
        good = isinstance(value, (list, tuple)) and all(_fits(name, it) for it in value)
    elif name in _CHOICES:
        allowed = " or ".join(_CHOICES[name])
        good = value in _CHOICES[name]
    else:
        allowed = "a text, which is not empty"
        none = name in ("cache", "keys", "models_folder") and value is None
        good = none or isinstance(value, Path) or (isinstance(value, str) and value != "")
    return None if good else f"{name} is {value!r}: give {allowed}"


def _tools_problem(value: object) -> str | None:
    """Why tools cannot be that; whether they can be opened is seen at the start."""
    try:
        specs_of_table(value)
    except SettingsError as error:
        return str(error)
    return None


def _fits(name: str, element: object) -> bool:
    """Whether it may be in the list of that name."""
    if not isinstance(element, str) or not _LISTS[name].fullmatch(element):
        return False
    if name == "proxies":
        try:
            ipaddress.ip_network(element)
        except ValueError:
            return False
    return not element.endswith("://")


def _usual(text: str) -> str:
    """A name or an origin as browsers write it."""
    text = text.lower()
    return text.removesuffix(_DEFAULT_PORTS.get(text.partition("://")[0], ""))


def _is_model(pair: tuple[object, object]) -> bool:
    """Whether a line of `models` is one."""
    name, said = pair
    table = said if isinstance(said, Mapping) else {"file": said}
    file, load, mmproj = table.get("file"), table.get("load", False), table.get("mmproj", "")
    known = table.keys() <= {"file", "load", "mmproj"} and isinstance(load, bool)
    return bool(name) and known and isinstance(file, str) and bool(file) and isinstance(mmproj, str)


def _is_alias(pair: tuple[object, object]) -> bool:
    """Whether a line of `aliases` is one."""
    alias, model = pair
    return bool(alias) and isinstance(model, str) and bool(model)


_TABLES: dict[str, tuple[str, Callable[[tuple[object, object]], bool]]] = {
    "models": (
        'a table of lines NAME = "FILE" or NAME = { file = "FILE", load = true }',
        _is_model,
    ),
    "aliases": ('a table of lines NAME = "MODEL"', _is_alias),
}
"""Settings that are tables: what they may be, and whether a line is good."""


def _place(value: str | Path) -> str | Path:
    """A URL, or a path where it is none or a file's."""
    if "://" in str(value) and not str(value).startswith("file://"):
        return str(value)
    return Path(str(value).removeprefix("file://")).expanduser()


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            return tomllib.load(opened)
    except UnicodeDecodeError:
        raise SettingsError(f"{file} is not UTF-8 text") from None
    except OSError as error:
        raise SettingsError(f"cannot read {file}: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{file} is no TOML: {error}") from None
