"""Settings of a server: frozen, from the command line or a TOML file, both checked here."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from isthmus.config import MAX_RUNNING, Caches, GraphBy, KvType, LogLevel, Sharing
from isthmus.errors import SettingsError
from isthmus.paths import expanded
from isthmus.server.kinds import KINDS, in_seconds, problem_of
from isthmus.spelling import suggestion
from isthmus.toml_file import read_toml
from isthmus.units import GIB, MIB

_LISTS = ("origins", "hosts", "proxies", "media_hosts")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
"""Ports that a browser leaves out of an origin."""


_OPTIONS = {
    "alias": "aliases",
    "keep_alive": "keep_alive_s",
    **dict.fromkeys(("tool", "tools_file", "fetch", "mcp"), "tools"),
}
"""Options of the command line whose settings are called otherwise."""
_VARIABLES = {"data_cache": "cache"}
"""Variables that are not named as their settings: ISTHMUS_CACHE is the folder of models."""
_NONE: Mapping[str, str] = MappingProxyType({})
_log = logging.getLogger("isthmus.server")


@dataclass(frozen=True)
class ServerSettings:
    """What a server does; each field is a key of its TOML file too, and an environment variable
    such as ISTHMUS_PORT. Seconds may be written as a duration, such as `5m`."""

    host: str = "127.0.0.1"
    """Where it listens. Beyond this machine only with keys."""
    port: int = 8080
    """0 takes any that is free."""
    data: Path | str = field(default_factory=lambda: Path("isthmus-data"))
    """Folder of the agents, made if it is not there; or URL of an object store, such as s3://…"""
    cache: Path | None = None
    """Folder on the local disk for what a URL holds; by default in the user's cache folder."""
    lease_s: float = 30.0
    """For which agents at a URL stay a server's that has died without giving them back."""
    advertise: str | None = None
    """Where other servers over the same URL reach this one, such as `http://10.0.0.7:8080`; by
    default where it listens."""
    keys: Path | None = None
    """File of hashed API keys (`isthmus serve --new-key`); without it everybody may ask."""
    n_ctx: int | None = None
    """Tokens of context of each stateless request, and of agents that say nothing else. By default
    what the model was trained for, halved until the memory of `slots` requests is at most half of
    `memory_nbytes`, and each fits into a 32-bit memory; but 4,096 if the model has them."""
    model: tuple[str, ...] = ()
    """Models that are loaded at the start and stay, each as `[NAME=]PATH`."""
    lora: tuple[str, ...] = ()
    """Adapters of them, each as `[NAME=]PATH[:SCALE]`."""
    mmproj: tuple[str, ...] = ()
    """Projector files of them, each as `[NAME=]PATH`."""
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
    save_tokens: int = 256
    """Tokens after which the answer of a durable agent is saved in its middle, so that it goes on
    after the server has ended; 0 to save at no number of tokens."""
    save_s: float = 30.0
    """Seconds after which it is saved, if it has fewer tokens by then; 0 at no time. With both 0
    answers end with the server."""
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
    drain_s: float = 0.0
    """For which it goes on to answer after it was told to stop, while /readyz says 503: as long as
    a balancer may take to see that."""
    origins: tuple[str, ...] = ()
    """Other origins whose pages may use the server; `*` for those of everybody."""
    hosts: tuple[str, ...] = ()
    """Names that the server has, beside this machine's own: requests for others are refused. By
    default those of this machine alone, and with keys any."""
    proxies: tuple[str, ...] = ()
    """Addresses of proxies whose X-Forwarded-For is believed; it is in the log."""
    traces: str | None = None
    """URL of a collector that gets OpenTelemetry's spans of requests, by OTLP over HTTP (`pip
    install 'isthmus[otel]'`); by default OTEL_EXPORTER_OTLP_ENDPOINT, and none without that."""
    media_hosts: tuple[str, ...] = ()
    """Hosts from which pictures are fetched that requests name by URL, as `tools/hosts.py` lists
    them; by default none."""
    log_format: str = "line"
    """`line` for people, `json` for programs: one object for each request and event."""
    log_level: LogLevel = "warning"
    """The least important lines of the log, guests' own among them; the server's own are there at
    any level but `error`."""
    device: str = "auto"
    """What computes: `auto`, `cpu`, `cuda:0`, …; see `Runtime`, also for the next four."""
    threads: int = 0
    sharing: Sharing | None = None
    caches: Caches = "auto"
    ggml: str | None = None
    """A ggml library, or the folder of one, to use instead of the installed ones."""
    kv_type: KvType = "f16"
    """Type of KV caches; see `ModelSettings`, also for the next five."""
    deterministic: bool = False
    inexact: bool = False
    """Whether agents decode together also where that changes bits."""
    width: str = "many"
    repack: bool = False
    checkpoints: int = 2
    message_checkpoints: bool = False
    graph: GraphBy = "auto"

    def __post_init__(self) -> None:
        for it in fields(self):
            if said := problem_of(it.name, getattr(self, it.name)):
                raise SettingsError(said)
        for name in _LISTS:
            object.__setattr__(self, name, tuple(_usual(it) for it in getattr(self, name)))
        for name in ("model", "lora"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        for name in ("data", "cache", "keys", "models_folder"):
            value = getattr(self, name)
            object.__setattr__(self, name, _place(value) if value is not None else None)
        if any(isinstance(it, str) for it in (self.cache, self.keys, self.models_folder)):
            raise SettingsError(
                "cache, keys and models_folder are local files: only data may be a URL"
            )
        if self.cache is not None and isinstance(self.data, Path):
            raise SettingsError(f"cache is for agents at a URL, and data is the folder {self.data}")
        if self.running > MAX_RUNNING:
            raise SettingsError(
                f"slots is {self.slots} and live is {self.live}, which may be {self.running} "
                f"messages at a time, and {MAX_RUNNING} are possible: give less"
            )
        if not self._is_loopback() and self.keys is None:
            raise SettingsError(
                f"{self.host} can be reached from other machines: give --keys FILE "
                "(isthmus serve --new-key makes one), or listen on 127.0.0.1"
            )

    @property
    def running(self) -> int:
        """Messages that may be handled at the same time: stateless requests, stored responses,
        which have slots of their own, and agents. With keys there is a spare place for each, which
        a key gets that has none."""
        return (2 * self.slots + self.live) * (1 if self.keys is None else 2)

    def _is_loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @staticmethod
    def make(
        file: Path | None, given: Mapping[str, Any], variables: Mapping[str, str] = _NONE
    ) -> ServerSettings:
        """What a TOML file says, over it what variables say, and over that what was given.

        `variables` are those of the environment, without ISTHMUS_ and in small letters. Raises
        SettingsError, also for unknown keys of the file.
        """
        said = {} if file is None else _of_file(file)
        given = _in_seconds({name: it for name, it in given.items() if it is not None})
        return ServerSettings(**{**said, **_of_variables(variables), **given})


def _of_file(file: Path) -> dict[str, Any]:
    """What a TOML file says, checked."""
    known, said = KINDS.keys(), _in_seconds(read_toml(file))
    if unknown := sorted(said.keys() - known):
        meant = _meant(unknown[0], known) or f"; there are {', '.join(sorted(known))}"
        raise SettingsError(f"{file}: there is no setting {unknown[0]}{meant}")
    for name, value in said.items():
        if problem := problem_of(name, value):
            raise SettingsError(f"{file}: {problem}")
    return said


def _of_variables(variables: Mapping[str, str]) -> dict[str, Any]:
    """What the environment says, checked. Variables that are no settings may be somebody's own:
    one that is nearly a setting is told in the log."""
    said: dict[str, Any] = {}
    for variable, text in variables.items():
        name = _VARIABLES.get(variable, variable)
        shown = f"ISTHMUS_{variable.upper()}"
        if name not in KINDS:
            if meant := _meant(name, KINDS):
                _log.warning("%s is no setting%s", shown, meant)
            continue
        said[name] = KINDS[name].read(text)
        if problem := problem_of(name, said[name]):
            raise SettingsError(f"{shown}: {problem}")
    return said


def _meant(name: str, known: Iterable[str]) -> str:
    """`: did you mean aliases?`, or nothing."""
    name = name.lower().replace("-", "_")
    return f": did you mean {_OPTIONS[name]}?" if name in _OPTIONS else suggestion(name, known)


def _in_seconds(said: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with durations as seconds; what is no duration is left for `problem_of`."""
    return {name: in_seconds(it) if name.endswith("_s") else it for name, it in said.items()}


def _usual(text: str) -> str:
    """A name or an origin as browsers write it."""
    text = text.lower()
    return text.removesuffix(_DEFAULT_PORTS.get(text.partition("://")[0], ""))


def _place(value: str | Path) -> str | Path:
    """A URL, or a path where it is none or a file's."""
    if "://" in str(value) and not str(value).startswith("file://"):
        return str(value)
    return expanded(str(value).removeprefix("file://"))
