"""Settings, all frozen, and the only place that reads the environment.

A setting's field says its unit and its range; `__post_init__` refuses what is outside it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from isthmus.errors import SettingsError
from isthmus.paths import expanded
from isthmus.units import KIB, MAX_NBYTES_32, MAX_NBYTES_64, MIB, WASM_PAGE

WIDTH = re.compile("alone|few|many|[1-9][0-9]{0,3}(-[1-9][0-9]{0,3}(/[1-9][0-9]{0,3})?)?")
KvType: TypeAlias = Literal["f16", "f32", "q8_0", "q4_0"]
GraphBy: TypeAlias = Literal["auto", "own", "adopted"]
Sharing: TypeAlias = Literal["same", "imported", "managed", "registered", "lent", "copied"]
Caches: TypeAlias = Literal["auto", "guest", "own"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
OnFailure: TypeAlias = Literal["keep", "undo", "close"]
Level: TypeAlias = Literal["exact", "state-exact", "replayed"]
"""How exact a restored actor has to be; see `Runtime.restore`."""
Verify: TypeAlias = Literal["full", "lazy"]
KV_TYPES: tuple[KvType, ...] = get_args(KvType)
GRAPHS: tuple[GraphBy, ...] = get_args(GraphBy)
SHARING: tuple[Sharing, ...] = get_args(Sharing)
CACHES: tuple[Caches, ...] = get_args(Caches)
LOG_LEVELS: tuple[LogLevel, ...] = get_args(LogLevel)
MAX_RUNNING = 4096
"""Messages of one runtime that are handled at the same time."""
ON_FAILURE: tuple[OnFailure, ...] = get_args(OnFailure)
MAX_CHECKPOINTS = 64
"""Of one session."""
_OPTIONAL_LIMITS = (
    *("kv_nbytes", "tokens", "tokens_in", "tokens_out"),
    *("output_nbytes", "fuel", "deadline_s"),
)
_MAX_FUEL = 2**63
_INDEX_VARIABLES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")
_PREFIX = "ISTHMUS_"
_COLLECTOR = "OTEL_EXPORTER_OTLP_ENDPOINT"
_OWN_VARIABLES = ("ISTHMUS_CACHE", "ISTHMUS_SNAPSHOT_KEY_FILE", "ISTHMUS_API_KEY")
MAX_GUEST_NBYTES = 128 * MIB
"""Bytes of a guest's module: what a snapshot carries."""
MAX_GUEST_GLOBALS = 4096
"""Mutable globals of a guest: what a snapshot holds."""
MAX_GRAMMAR_NBYTES = 256 * KIB
"""Of a grammar's source."""
MAX_GRAMMAR_TOKENS = 128 * KIB
"""Of a text that follows one: all are gone through again when its actor is restored."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise SettingsError(message)


def _require_number(
    name: str, value: object, *, whole: bool = True, optional: bool = False, least: float = 0
) -> None:
    """SettingsError where a value is no number, not whole where it must be, or less than `least`.

    NaN is less than everything here.
    """
    kinds = (int,) if whole else (int, float)
    good = isinstance(value, kinds) and not isinstance(value, bool) and value >= least
    what = "a whole number" if whole else "a number"
    end = ", or None" if optional else ""
    _require(
        good or (optional and value is None),
        f"{name} is {value!r}: give {what}, {least:g} or more{end}",
    )


def require_deadline(seconds: object) -> None:
    """SettingsError where it is neither None nor a number of seconds; infinity is like None."""
    _require_number("deadline_s", seconds, whole=False, optional=True)


@dataclass(frozen=True)
class Environment:
    """What the process's environment says."""

    ggml: str | None = None
    """ISTHMUS_GGML: a ggml library, or the folder of one, to use instead of the installed ones."""
    cache: Path = field(default_factory=Path)
    """ISTHMUS_CACHE, or the user's cache folder: models, compiled guests, hashes of files."""
    snapshot_key_file: Path | None = None
    """ISTHMUS_SNAPSHOT_KEY_FILE: the key that the command line signs snapshots with."""
    hub_url: str = "https://huggingface.co"
    """HF_ENDPOINT: the Hugging Face hub, or a mirror of it."""
    hub_token: str | None = field(default=None, repr=False)
    """HF_TOKEN: the hub's secret for repositories that are private or gated."""
    settings: Mapping[str, str] = field(default_factory=dict, repr=False)
    """All other variables that begin with ISTHMUS_, without that and in small letters: settings of
    `isthmus serve`. OTEL_EXPORTER_OTLP_ENDPOINT is `traces`, if ISTHMUS_TRACES is not there."""
    api_key: str | None = field(default=None, repr=False)
    """ISTHMUS_API_KEY: the key that commands give a server which they ask."""
    colour: bool = True
    """Whether a terminal may be written to in colour: NO_COLOR is not there, and TERM not dumb."""
    index_url: str = field(default="https://pypi.org/simple", repr=False)
    """UV_DEFAULT_INDEX, UV_INDEX_URL or PIP_INDEX_URL, the first that is there: the Python package
    index. It may have a user's name and password."""

    @staticmethod
    def read(variables: Mapping[str, str] | None = None) -> Environment:
        """Reads `variables`, by default the environment of this process."""
        variables = os.environ if variables is None else variables
        key_file = variables.get("ISTHMUS_SNAPSHOT_KEY_FILE")
        return Environment(
            ggml=variables.get("ISTHMUS_GGML") or None,
            cache=_cache(variables),
            snapshot_key_file=expanded(key_file) if key_file else None,
            hub_url=variables.get("HF_ENDPOINT") or Environment.hub_url,
            hub_token=variables.get("HF_TOKEN") or None,
            settings=_settings(variables),
            api_key=variables.get("ISTHMUS_API_KEY") or None,
            colour=not variables.get("NO_COLOR") and variables.get("TERM") != "dumb",
            index_url=_first(variables, *_INDEX_VARIABLES) or Environment.index_url,
        )


def _first(variables: Mapping[str, str], *names: str) -> str | None:
    """The value of the first of these that is there and not empty."""
    return next((found for it in names if (found := variables.get(it))), None)


def _settings(variables: Mapping[str, str]) -> dict[str, str]:
    ours = {name: value for name, value in variables.items() if name.startswith(_PREFIX) and value}
    if collector := variables.get(_COLLECTOR):
        ours.setdefault("ISTHMUS_TRACES", collector)
    return {
        name.removeprefix(_PREFIX).lower(): value
        for name, value in ours.items()
        if name not in _OWN_VARIABLES
    }


def _cache(variables: Mapping[str, str]) -> Path:
    if explicit := variables.get("ISTHMUS_CACHE"):
        return expanded(explicit)
    if base := variables.get("XDG_CACHE_HOME"):
        return Path(base) / "isthmus"
    home = Path(variables.get("HOME") or expanded("~"))
    _require(home != Path("~"), "this user has no home folder: set ISTHMUS_CACHE to a folder")
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "isthmus"


@dataclass(frozen=True)
class Limits:
    """What one actor may use. `None` means without limit.

    What a guest asks for beyond a limit is refused with ELIMIT, and it may finish by itself; the
    deadline and fuel cut it off. `on_failure` says what becomes of the actor.
    """

    memory_nbytes: int = MAX_NBYTES_32
    """Linear memory; growth beyond it fails in the guest. More than 4 GiB less one wasm page is for
    guests with a 64-bit memory; so many addresses are reserved for each of them, and no memory."""
    kv_nbytes: int | None = None
    """Bytes of all open sessions together."""
    tokens: int | None = None
    """Tokens that one message may prefill and decode."""
    tokens_in: int | None = None
    """Tokens that one message may prefill."""
    tokens_out: int | None = None
    """Tokens that one message may decode."""
    output_nbytes: int | None = 64 * MIB
    """Bytes that one message may emit, reply and log together."""
    fuel: int | None = None
    """Wasm instructions, about, that the guest may run for one message. Counting them makes its
    loops up to two thirds slower, so without a limit they are not counted."""
    deadline_s: float | None = None
    """Seconds that one message may take, from when it is sent."""
    sessions: int = 64
    """Sessions open at the same time."""
    grammars: int = 4
    """Grammars open at the same time: each has memory of the host's, some megabytes as a rule."""
    media: int = 4
    """Pictures and sounds open at the same time, in one message: the host has a copy of each."""
    media_pixels: int = 64 * MIB
    """Pixels of one picture."""
    media_seconds: float = 600.0
    """Seconds of one sound."""
    weight: float = 1.0
    """Its share where more wait than the device can serve: 2 gets twice the tokens of 1."""
    on_failure: OnFailure = "keep"
    """After a message that failed: `keep` goes on where the guest returned by itself, and closes
    the actor where it was cut off; `undo` makes the actor what it was before the message, at the
    price of a frozen copy of what each message writes; `close` closes it."""

    def __post_init__(self) -> None:
        _require_number("memory_nbytes", self.memory_nbytes)
        _require(
            WASM_PAGE <= self.memory_nbytes <= MAX_NBYTES_64,
            f"memory_nbytes is {self.memory_nbytes}: give {WASM_PAGE} to {MAX_NBYTES_32}, or to "
            f"{MAX_NBYTES_64} for a guest with a 64-bit memory",
        )
        for name in _OPTIONAL_LIMITS:
            whole = name != "deadline_s"
            _require_number(name, getattr(self, name), whole=whole, optional=True)
        _require(
            self.fuel is None or self.fuel < _MAX_FUEL,
            f"fuel is {self.fuel}: give less than 2^63, or None",
        )
        _require_number("sessions", self.sessions)
        _require_number("grammars", self.grammars)
        _require_number("media", self.media)
        _require_number("media_pixels", self.media_pixels)
        _require_number("media_seconds", self.media_seconds, whole=False)
        _require_number("weight", self.weight, whole=False)
        _require(1 / 1024 <= self.weight <= 1024, f"weight is {self.weight}: give 1/1024 to 1024")
        _require(
            self.on_failure in ON_FAILURE,
            f"on_failure is {self.on_failure!r}: give {', '.join(ON_FAILURE)}",
        )

    def stricter(self, other: Limits) -> Limits:
        """Each limit of the two that allows less; what happens on failure stays."""
        least: dict[str, Any] = {"on_failure": self.on_failure}
        for part in fields(self):
            if part.name not in least:
                found = [getattr(limits, part.name) for limits in (self, other)]
                known = [value for value in found if value is not None]
                least[part.name] = min(known, default=None)
        return Limits(**least)


@dataclass(frozen=True)
class Capacity:
    """What all actors of one runtime may use together."""

    memory_nbytes: int | None = None
    """Bytes that all actors have together: linear memory as the guests have grown it, images of it
    that forks and `undo` share, and output that is on its way. Beyond it, idle actors are evicted
    to files, least recently used first; where none is idle, what would need more is refused.

    By default what this machine and its control groups have left when the runtime is opened, less
    an eighth, or 256 MiB if that is more, for everything else, and less the weights of models."""
    running: int = 1024
    """Messages handled at the same time. One that waits for a token has no thread, and takes about
    12 KiB of memory."""
    waiting: int = 1024
    """Messages that wait to be handled; further ones are refused."""
    folder: Path | None = None
    """Where evicted actors are kept while the runtime lives; by default in the cache folder."""
    initialize_s: float = 10.0
    """Seconds that a new actor may take to begin: its instance, start function and `_initialize`.
    An actor's `deadline_s` holds there as well if it is less."""
    replay_s: float = 120.0
    """Seconds that a restored actor may take to begin if its tokens are prefilled again."""

    def __post_init__(self) -> None:
        _require_number("memory_nbytes", self.memory_nbytes, optional=True, least=WASM_PAGE)
        _require_number("running", self.running)
        _require(
            1 <= self.running <= MAX_RUNNING, f"running is {self.running}: give 1 to {MAX_RUNNING}"
        )
        _require_number("waiting", self.waiting)
        for name in ("initialize_s", "replay_s"):
            _require_number(name, getattr(self, name), whole=False)
        if self.folder is not None:
            object.__setattr__(self, "folder", Path(self.folder))


@dataclass(frozen=True)
class DeviceSettings:
    """How a device computes."""

    threads: int = 0
    """CPU threads, shared by prefill and decode; 0 takes one for each processor we may use."""
    poll: int = 1
    """How eagerly idle CPU workers look for work, 0 to 100; above 1 they burn a core."""

    sharing: Sharing | None = None
    """How a guest's memory is to reach the device, one of SHARING. By default the best way that
    works; a device refuses one that it does not have."""
    caches: Caches = "auto"
    """Where KV caches lie: in guests' memory (`guest`), in the device's own (`own`), or in its own
    if it reads guests' memory through a bus (`auto`)."""

    def __post_init__(self) -> None:
        _require(self.caches in CACHES, f"caches is {self.caches!r}: give {', '.join(CACHES)}")
        _require(
            self.sharing is None or self.sharing in SHARING,
            f"sharing is {self.sharing!r}: give {', '.join(SHARING)}",
        )
        _require_number("threads", self.threads, least=-(2**63))
        _require(0 <= self.threads <= 512, f"threads is {self.threads}: give 0 to 512")
        _require(0 <= self.poll <= 100, f"poll is {self.poll}: give 0 to 100")

    @property
    def n_threads(self) -> int:
        """The number of threads that `threads` stands for."""
        if self.threads:
            return self.threads
        try:
            return len(os.sched_getaffinity(0))
        except AttributeError:  # macOS has no affinity
            return os.cpu_count() or 1


@dataclass(frozen=True)
class ModelSettings:
    """How a model is computed."""

    kv_type: KvType = "f16"
    """Element type of KV caches: f16, f32, q8_0 or q4_0."""
    prefill_chunk: int = 512
    """Most tokens that one prefill graph takes, 1 to 4,096."""
    deterministic: bool = False
    """Same bits whatever the thread count, prefill chunk or mix of prefill and decode; slower."""
    repack: bool = False
    """Copy weights into the order that the processor's fastest kernels want, if there is one."""
    exact: bool = True
    """Compute agents together only where that changes no bit of what each would get alone."""
    width: str = "alone"
    """The class of all steps, which decides their bits on devices with several: `alone`, `few`,
    `many`, or bounds such as 9-128. See `model/probes/widths.py`; without effect unless `exact`."""
    graph: GraphBy = "auto"
    """What writes down the forward pass: `own` is Isthmus, `adopted` is libllama, and `auto` is
    Isthmus where it knows the architecture. See `model/choosing.py`."""
    checkpoints: int = 2
    """Copies of its state that a session has room for, 0 to 64, if each token rewrites that: it can
    be truncated to where they were taken. Each takes as much memory as the state."""
    message_checkpoints: bool = False
    """Take such a copy at the end of each message; otherwise guests take what they need."""
    mmproj: str | Path | None = None
    """The projector file by which the model takes pictures or sounds; None: it takes text alone."""

    def __post_init__(self) -> None:
        _require(
            self.kv_type in KV_TYPES, f"kv_type is {self.kv_type!r}: give {', '.join(KV_TYPES)}"
        )
        _require(
            1 <= self.prefill_chunk <= 4096,
            f"prefill_chunk is {self.prefill_chunk}: give 1 to 4096",
        )
        _require(
            isinstance(self.width, str) and WIDTH.fullmatch(self.width) is not None,
            f"width is {self.width!r}: give alone, few, many, or a class of the model, as 9-128",
        )
        _require_number("checkpoints", self.checkpoints)
        _require(
            self.checkpoints <= MAX_CHECKPOINTS,
            f"checkpoints is {self.checkpoints}: give 0 to {MAX_CHECKPOINTS}",
        )
        _require(self.graph in GRAPHS, f"graph is {self.graph!r}: give {', '.join(GRAPHS)}")
