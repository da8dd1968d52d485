"""What a guest says of a graph or a context: the metadata of WasmEdge's GGML backend, in JSON.

Keys that say how the host should compute, and those that nobody knows, are ignored. Keys that would
give another answer than asked for are refused unless they have their neutral value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from isthmus.actor.nn.fault import NnFault, refused, unsupported
from isthmus.errors import SettingsError
from isthmus.model import SamplerSettings
from isthmus.units import MIB
from isthmus.wasm.wasi_nn import NnErrno

MAX_CONFIG_NBYTES = MIB
DEFAULT_N_CTX = 4096
"""Tokens of a context that says nothing of its size, if the model takes as many."""
_NO_SEED = 2**32 - 1
"""What llama.cpp takes for no seed, as it takes every negative one."""
_LARGE = 2**64
"""A whole number that is as good as infinite."""
_INT32 = (-(2**31), 2**31 - 1)
_UINT32 = (0, 2**32 - 1)


class NnSettings(msgspec.Struct, frozen=True):
    """See the module."""

    n_ctx: int = 0
    """Tokens of the context; 0 for the smaller of DEFAULT_N_CTX and what the model takes."""
    n_predict: int = -1
    """Most tokens of one `compute`; below 0 without a bound."""
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    last_n: int = 64
    """Tokens that the penalties look at; below 0 all of them."""
    seed: int = -1
    """Below 0: the actor's random numbers give one."""
    ignore_eos: bool = False
    grammar: str = ""
    json_schema: str = ""
    reverse_prompt: str = ""
    """Text that ends a `compute` once it is in the output."""
    stream_stdout: bool = False
    enable_log: bool = False
    embedding: bool = False
    normalise: int = 2
    """2 divides an embedding by its length, -1 leaves it."""
    batch_size: int = 2048
    """Most tokens of a text to embed."""

    def context_size(self, most: int) -> int:
        """Tokens of a context, for a model that takes `most`."""
        return min(self.n_ctx or DEFAULT_N_CTX, most)

    @property
    def sampler(self) -> SamplerSettings:
        """How tokens are drawn."""
        return SamplerSettings(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p or math.ulp(0.0),
            min_p=self.min_p,
            repeat_penalty=self.repeat_penalty or 1.0,
            repeat_last_n=self.last_n if self.last_n >= 0 else _INT32[1],
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
        )


@dataclass(frozen=True, slots=True)
class _Key:
    """One key of the metadata: the field that it is, and what it may be."""

    field: str
    kind: Any
    """Its type."""
    low: float = -math.inf
    high: float = math.inf
    floor: float = -math.inf
    """Values below it count as this."""

    def value(self, key: str, given: Any) -> object:
        """What the field becomes."""
        found = given
        if self.kind is float and type(given) is int:
            found = float(given) if abs(given) < _LARGE else math.inf
        if type(found) is not self.kind:
            raise refused(f"{key} is {_shown(given)}: give {_KINDS[self.kind]}")
        if self.kind in (bool, str):
            return found
        if abs(found) == math.inf or not self.low <= found <= self.high:
            raise refused(f"{key} is {_shown(given)}: give {self.low:g} to {self.high:g}")
        return self.floor if found < self.floor else found


_KINDS = {bool: "true or false", str: "a text", int: "a whole number", float: "a number"}

_KEYS = {
    "ctx-size": _Key("n_ctx", int, *_UINT32),
    "n-predict": _Key("n_predict", int, *_INT32),
    "temp": _Key("temperature", float, floor=0.0),
    "top-k": _Key("top_k", int, *_INT32, floor=0),
    "top-p": _Key("top_p", float, high=1.0, floor=0.0),
    "min-p": _Key("min_p", float, 0.0, 1.0),
    "repeat-penalty": _Key("repeat_penalty", float, floor=0.0),
    "presence-penalty": _Key("presence_penalty", float),
    "frequency-penalty": _Key("frequency_penalty", float),
    "last-n-penalty": _Key("last_n", int, *_INT32),
    "seed": _Key("seed", int, -(2**63), 2**64 - 1),
    "ignore-eos": _Key("ignore_eos", bool),
    "grammar": _Key("grammar", str),
    "json-schema": _Key("json_schema", str),
    "reverse-prompt": _Key("reverse_prompt", str),
    "stream-stdout": _Key("stream_stdout", bool),
    "enable-log": _Key("enable_log", bool),
    "enable-debug-log": _Key("enable_log", bool),
    "embedding": _Key("embedding", bool),
    "embd-normalize": _Key("normalise", int, *_INT32),
    "batch-size": _Key("batch_size", int, 1, _UINT32[1]),
}
_NEUTRAL: dict[str, tuple[type, object]] = {
    "mmproj": (str, ""),
    "image": (str, ""),
    "tts": (bool, False),
    "model-vocoder": (str, ""),
    "typ-p": (float, 1.0),
    "xtc-probability": (float, 0.0),
    "dry-multiplier": (float, 0.0),
    "mirostat": (int, 0),
    "dynatemp-range": (float, 0.0),
}
"""Keys that are refused unless they have this value: what each of them switches on is not here.
The keys that only shape it, such as xtc-threshold, change nothing then."""


def parsed(data: bytes, base: NnSettings) -> NnSettings:
    """`base`, changed as a guest's JSON says. NnFault, with the reason."""
    try:
        given = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        said = f"the configuration is no JSON: {error}"
        raise NnFault(NnErrno.INVALID_ENCODING, said) from None
    if not isinstance(given, Mapping):
        raise NnFault(NnErrno.INVALID_ENCODING, "the configuration is no JSON object")
    return _checked(_changed(given, base))


def _changed(given: Mapping[str, object], base: NnSettings) -> NnSettings:
    changes: dict[str, object] = {}
    logs = []
    for key, value in given.items():
        if value is None:
            continue
        if key in _NEUTRAL:
            _require_neutral(key, value)
        elif known := _KEYS.get(key):
            changes[known.field] = known.value(key, value)
            logs += [changes[known.field]] if known.field == "enable_log" else []
    if logs:  # two keys are one field
        changes["enable_log"] = any(logs)
    return msgspec.structs.replace(base, **changes)


def _require_neutral(key: str, value: object) -> None:
    kind, neutral = _NEUTRAL[key]
    _Key(key, kind).value(key, value)
    if value != neutral:
        raise unsupported(f"{key} is {_shown(value)}, which is not here; leave it out")


def _checked(settings: NnSettings) -> NnSettings:
    """The settings, if they go together."""
    if settings.normalise not in (-1, 2):
        raise unsupported(f"embd-normalize is {settings.normalise}: give 2 or -1")
    if settings.grammar and settings.json_schema:
        raise refused("grammar and json-schema are both given: leave one out")
    if settings.seed == _NO_SEED:
        settings = msgspec.structs.replace(settings, seed=-1)
    try:
        _ = settings.sampler
    except SettingsError as error:
        raise refused(str(error)) from None
    return settings


def _shown(value: object) -> str:
    return repr(value)[:60]
