"""Snapshots of one file: damaged ones, and ones that lie under hashes that are right."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from isthmus import Limits, Model, Runtime
from isthmus.config import Environment
from isthmus.errors import IsthmusError
from isthmus.snapshot.chunk import CHUNK_NBYTES
from tests.attacks.test_snapshots import Forgery
from tests.fuzz.surface import CAPACITY, Surface
from tests.tiny_gguf import TinyLlama, TinyModel

_NUMBERS = (0, 1, -1, 2, 255, 4096, 65_535, 65_536, 2**31 - 1, 2**31, 2**32, 2**53, 2**63, 10**80)
_VALUES = (None, True, "", "x", "\0", "\ud800", "a" * 100_000, [], {}, [[]], 0.5, 1e308, "../x")


def lied(change: Callable[[Forgery], object]) -> Callable[[], bytes]:
    """The good snapshot, in which `change` has changed something."""

    def made() -> bytes:
        import tempfile

        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            with _runtime(folder) as runtime:
                forgery = Forgery(_good(runtime, folder))
            change(forgery)
            return forgery.write(folder / "lie").read_bytes()

    return made


def _runtime(folder: Path) -> Runtime:
    return Runtime(
        device="cpu", threads=1, environment=Environment(cache=folder / "cache"), capacity=CAPACITY
    )


_MAX_NBYTES = 1 << 26
"""Bytes of a snapshot that is tried; a lie about the memory's length makes sparse ones of GiBs."""


def _good(runtime: Runtime, folder: Path) -> Path:
    """A snapshot of an agent whose session has a KV cache alone."""
    model = runtime.load_model(TinyLlama(with_tokenizer=True).write(folder / "tiny.gguf"))
    return _saved(runtime, model, folder / "good.safetensors")


def _saved(runtime: Runtime, model: Model, path: Path) -> Path:
    args = ["n_ctx=256"]
    with runtime.spawn("bench", models={"default": model}, args=args, seed=1, clock_ns=1) as actor:
        actor.send("prefill 20 3")
        return actor.snapshot(path).path


def _endless_replay(it: Forgery) -> None:
    loop = "(func (export {}) (result i32) (loop $l (br $l)) (i32.const 0))"
    it.guest(loop.format('"on_replay"'))


class Fuzz(Surface):
    """Restores a snapshot, and has the actor talk, fork and be saved again."""

    corpus: ClassVar = {
        "endless-replay": lied(_endless_replay),
        "brackets": lied(lambda it: it.put("actor.args", json.loads("[" * 900 + "]" * 900))),
        "long-name": lied(lambda it: it.put("guest.name", "\x1b[2J\u202e" * 200_000)),
        "huge-number": lied(lambda it: it.put("actor.clock_ns", 10**4000)),
        "guest-of-one-page": lied(lambda it: it.put("memory.nbytes", 65_536)),
    }
    n_short = 20

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.runtime = _runtime(folder)
        self.good = _good(self.runtime, folder)
        self.model = self.runtime.load_model(folder / "tiny.gguf")
        states = TinyModel("lfm2", with_tokenizer=True).write(folder / "states.gguf")
        self.states = self.runtime.load_model(states, message_checkpoints=True)
        self.with_states = _saved(self.runtime, self.states, folder / "states.safetensors")
        other = TinyLlama(with_tokenizer=True, n_vocab=400, seed=9).write(folder / "other.gguf")
        self.other = self.runtime.load_model(other)

    def close(self) -> None:
        self.runtime.close()

    def make(self, rng: random.Random) -> bytes:
        good = rng.choice([self.good, self.with_states])
        if rng.random() < 0.2:
            return self._damage(good, rng)
        forgery = Forgery(good)
        path = self.folder / "made"
        try:
            for _ in range(rng.choice([1, 1, 2, 4])):
                rng.choice((_lie, _lie, _part, _memory))(forgery, rng)
            if forgery.write(path).stat().st_size <= _MAX_NBYTES:
                return path.read_bytes()
        except (ValueError, TypeError, LookupError, AttributeError, StopIteration):
            pass  # it cannot even be written
        return self._damage(good, rng)

    def _damage(self, good: Path, rng: random.Random) -> bytes:
        out = bytearray(good.read_bytes())
        for _ in range(rng.choice([1, 2, 20])):
            end = len(out) if rng.random() < 0.3 else 6000
            out[rng.randrange(end)] = rng.randrange(256)
        return bytes(out[: rng.randrange(len(out))] if rng.random() < 0.2 else out)

    def run(self, data: bytes) -> str:
        path = self.folder / "it.safetensors"
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        done = []
        models = ((self.model, "state-exact"), (self.states, "state-exact"))
        for model, require in (*models, (self.other, "replayed")):
            try:
                done.append(self._use(path, model, require))
            except IsthmusError as error:
                done.append(type(error).__name__)
        return " ".join(done)

    def _use(self, path: Path, model: Model, require: str) -> str:
        given: dict[str, Any] = {"models": {"default": model}, "tools": {"rm": bytes}}
        given["limits"] = Limits(memory_nbytes=64 << 20, tokens=1000)
        with self.runtime.restore(path, require=require, **given) as actor:
            try:
                actor.send("sequence 2", deadline_s=2)
            except IsthmusError as error:
                return f"restored, then {type(error).__name__}"
            for child in actor.fork(2):
                child.close()
            actor.snapshot(self.folder / "again.safetensors")
        return "restored"


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to each value inside a JSON value."""
    found = [path] if path else []
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in list(items)[:100]:
            found += _places(inner, (*path, key))
    return found


def _lie(it: Forgery, rng: random.Random) -> None:
    *way, last = rng.choice(_places(it.manifest))
    holder: Any = it.manifest
    for key in way:
        holder = holder[key]
    value = holder[last]
    match rng.randrange(6):
        case 0 if isinstance(holder, dict):
            del holder[last]
        case 1 if isinstance(value, list) and value:
            holder[last] = value * rng.choice([2, 100, 5000])
        case 2:
            holder[last] = rng.choice(_VALUES)
        case 3 if isinstance(holder, dict):
            holder[rng.choice(["x", "\0", last.upper()])] = value
        case _ if isinstance(value, int) and not isinstance(value, bool):
            holder[last] = rng.choice([*_NUMBERS, value + 1, value - 1, value * 2])
        case _:
            holder[last] = rng.choice([*_NUMBERS, *_VALUES])


def _part(it: Forgery, rng: random.Random) -> None:
    """Another content for a part; its hash and length are right."""
    name = rng.choice(list(it.parts))
    data = bytearray(it.parts[name])
    for _ in range(rng.choice([1, 4, 16])):
        if data:
            data[rng.randrange(len(data))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
    cut = rng.choice([0, 4, len(data) // 2, len(data), len(data)]) & ~3
    try:
        it.part(name, bytes(data[:cut]))
    except StopIteration:  # its record is gone, or has another name
        it.parts[name] = bytes(data[:cut])


def _memory(it: Forgery, rng: random.Random) -> None:
    """Other bytes in the guest's memory, hashed anew."""
    memory = bytearray(it.memory)
    at = rng.randrange(len(memory))
    memory[at : at + 64] = rng.randbytes(64)
    it.memory = bytes(memory[: len(it.memory)])
    if "chunk.sha256" in it.parts and rng.random() < 0.9:
        numbers = memoryview(it.parts.get("chunk.numbers", b"")).cast("I")
        size = CHUNK_NBYTES
        digests = b"".join(
            hashlib.sha256(it.memory[n * size : (n + 1) * size]).digest() for n in numbers
        )
        if len(digests) == len(it.parts["chunk.sha256"]):
            it.part("chunk.sha256", digests)
