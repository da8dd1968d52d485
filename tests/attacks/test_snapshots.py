"""Whatever is done to a snapshot, it is refused with its reason and nothing is half restored.

Files that are cut, flipped or swapped, and files that lie: their hashes are right, what they say
is not. After each refusal no actor, no memory and no descriptor is left, and a good snapshot
still gives the same answer.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import json
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from isthmus import Limits, Model, Runtime
from isthmus.config import Environment
from isthmus.errors import (
    DeadlineExceeded,
    GuestInvalid,
    IsthmusError,
    SettingsError,
    SnapshotError,
    SnapshotInvalid,
    SnapshotMismatch,
    SnapshotNotFound,
    SnapshotUnsupported,
    SnapshotUntrusted,
)
from isthmus.snapshot import CHUNK_NBYTES, Snapshot, Store, open_snapshot
from isthmus.snapshot.header import LENGTH, encode_header, sign, tensors_of
from isthmus.snapshot.manifest import decode_manifest
from isthmus.units import MIB
from tests.tiny_gguf import TinyLlama

ASK = "sequence 2"
MOST_NBYTES = 192 * MIB
KEY = b"sixteen bytes or more"


@dataclass
class World:
    """A runtime, a good snapshot of an agent in it, and what that agent answers."""

    runtime: Runtime
    model: Model
    good: Path
    answer: str = ""

    def restore(self, path: Path, **options: Any) -> Any:
        return self.runtime.restore(path, **{"models": {"default": self.model}, **options})

    def require_good(self) -> None:
        with self.restore(self.good) as actor:
            assert actor.send(ASK).text == self.answer

    def held(self) -> tuple[int, int, int]:
        gc.collect()
        n_fds = len(os.listdir("/dev/fd"))
        return len(self.runtime.actors), self.runtime.engine.memory_creator.n_memories, n_fds

    def refuse(self, path: Path, error: type[BaseException], match: str, **options: Any) -> None:
        """Restoring raises that, leaves nothing behind and takes little memory."""
        before, peak = self.held(), Peak()
        with pytest.raises(error, match=match) as caught:
            self.restore(path, **options)
        assert isinstance(caught.value, IsthmusError)
        caught.value.__context__ = None
        del caught
        assert peak.nbytes < MOST_NBYTES
        assert self.held() == before


class Peak:
    """How far the process's resident memory rose since; 0 where Linux does not tell."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self._before = self._read("VmRSS:")

    @staticmethod
    def _read(name: str) -> int:
        with contextlib.suppress(OSError):
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
        return 0

    @property
    def nbytes(self) -> int:
        return self._read("VmHWM:") - self._before


@pytest.fixture(scope="module")
def world(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    good = tmp_path_factory.mktemp("good") / "good.safetensors"
    with Runtime(device="cpu", threads=1) as runtime:
        model = runtime.load_model(tiny)
        with runtime.spawn(
            "bench", models={"default": model}, args=["n_ctx=256"], seed=1, clock_ns=5
        ) as actor:
            actor.send("prefill 20 3")
            actor.snapshot(good)
            world = World(runtime, model, good, actor.send(ASK).text)
        world.require_good()
        yield world
        world.require_good()


@dataclass
class Forgery:
    """A snapshot's manifest and bytes, to be changed and written with hashes that are right."""

    source: Path
    manifest: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        opened = open_snapshot(self.source)
        raw = self.source.read_bytes()
        self.manifest = json.loads(opened.manifest.encode())
        begin = opened.file_nbytes - opened.tensors[-1].offset - opened.tensors[-1].nbytes
        self.memory = raw[begin : begin + opened.manifest.memory.nbytes]
        self.parts = {part.name: opened.part(part.name) for part in opened.manifest.parts}
        self.tensors = opened.tensors

    def part(self, name: str, data: bytes | None = None, **changes: Any) -> None:
        record = next(part for part in self.manifest["parts"] if part["name"] == name)
        if data is not None:
            self.parts[name] = data
            record["sha256"] = hashlib.sha256(data).hexdigest()
            record["shape"] = [len(data) // (1 if record["dtype"] == "U8" else 4)]
        record.update(changes)

    def put(self, where: str, value: object) -> None:
        *outer, last = where.split(".")
        holder: Any = self.manifest
        for name in outer:
            holder = holder[int(name) if isinstance(holder, list) else name]
        holder[last] = value

    def write(self, path: Path, signature: str | None = None, nbytes: int | None = None) -> Path:
        text = json.dumps(self.manifest)
        with contextlib.suppress(SnapshotError):
            self.tensors = tensors_of(decode_manifest(text), with_memory=True)
        header = encode_header(text, self.tensors, signature)
        with open(path, "wb") as file:
            file.write(header + self.memory)
            for tensor in self.tensors:
                if tensor.name in self.parts:
                    file.seek(len(header) + tensor.offset)
                    file.write(self.parts[tensor.name])
            end = len(header) + self.tensors[-1].offset + self.tensors[-1].nbytes
            file.truncate(end if nbytes is None else nbytes)
        return path


@pytest.fixture
def forgery(world: World) -> Forgery:
    return Forgery(world.good)


# ---------------------------------------------------------------------------------- damaged files


def test_truncated_and_extended(world: World, tmp_path: Path) -> None:
    raw, path = world.good.read_bytes(), tmp_path / "cut"
    lengths = [*range(0, len(raw), CHUNK_NBYTES), 1, 7, 8, 9, len(raw) - 1, len(raw) + 1]
    for nbytes in lengths:
        path.write_bytes(raw[:nbytes].ljust(nbytes, b"\0"))
        world.refuse(path, SnapshotInvalid, "truncated|damaged|bytes long instead of")


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda path, good: path.write_bytes(random.Random(1).randbytes(70_000)), None, "damaged"),
        (lambda path, good: path.write_bytes(b"\x10" + b"\0" * 90_000), None, "damaged"),
        (lambda path, good: path.mkdir(), None, "folder"),
        (lambda path, good: os.mkfifo(path), None, "not a plain file"),
        (lambda path, good: path.symlink_to(good), None, "symbolic link"),
        (lambda path, good: None, SnapshotNotFound, "there is no snapshot"),
    ],
    ids=["random", "zeroes", "folder", "fifo", "symlink", "missing"],
)
def test_no_snapshot(
    world: World, tmp_path: Path, make: Callable[..., None], error: type | None, match: str
) -> None:
    make(tmp_path / "it", world.good)
    world.refuse(tmp_path / "it", error or SnapshotInvalid, match)


def flips(good: Path) -> Iterator[tuple[str, int]]:
    """A place in each section of a snapshot's file."""
    snapshot, raw = open_snapshot(good), good.read_bytes()
    (header,) = LENGTH.unpack(raw[:8])
    for at in range(8):
        yield "length", at
    for mark in (b"{", b"__metadata__", b"n_tokens", b"sha256", b'"U8"', b"data_offsets", b"[0,"):
        yield mark.decode(), raw.index(mark) + 1
    yield "padding", header + 7
    for tensor in snapshot.tensors:
        if tensor.name in {part.name for part in snapshot.manifest.parts}:
            yield tensor.name, header + 8 + tensor.offset + tensor.nbytes // 2
    n_chunks = snapshot.manifest.memory.nbytes // CHUNK_NBYTES
    for number in (*snapshot.chunks, *(n for n in range(n_chunks) if n not in snapshot.chunks)):
        yield f"chunk {number}", header + 8 + number * CHUNK_NBYTES + 77 * number


def test_flipped_bits(world: World, tmp_path: Path) -> None:
    raw, path = world.good.read_bytes(), tmp_path / "flipped"
    for name, at in flips(world.good):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 0x10]) + raw[at + 1 :])
        world.refuse(path, SnapshotInvalid, "damaged|malformed|header|instead of|truncated|format")
        if name.startswith("chunk "):
            with pytest.raises(SnapshotInvalid, match="damaged"):
                open_snapshot(path).verify()


def test_one_byte_in_a_hole(world: World, tmp_path: Path) -> None:
    snapshot, path = open_snapshot(world.good), tmp_path / "hole"
    hole = next(n for n in range(100) if n not in snapshot.chunks)
    path.write_bytes(world.good.read_bytes())
    begin = snapshot.file_nbytes - snapshot.tensors[-1].offset - snapshot.tensors[-1].nbytes
    with open(path, "r+b") as file:
        file.seek(begin + hole * CHUNK_NBYTES + 5)
        file.write(b"\1")
    world.refuse(path, SnapshotInvalid, f"bytes {hole * CHUNK_NBYTES} to")
    with pytest.raises(SnapshotInvalid, match="damaged"):
        open_snapshot(path).verify()


# ---------------------------------------------------------------------------------- wrong givens


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"guest": "chat"}, SnapshotMismatch, "of the guest bench"),
        ({"models": {}}, SnapshotMismatch, "the model 'default'"),
        ({"limits": Limits(memory_nbytes=65_536)}, SnapshotMismatch, "64.0 KiB are allowed"),
        ({"limits": Limits(kv_nbytes=1000)}, SnapshotMismatch, "1000 are allowed"),
        ({"limits": Limits(sessions=0)}, SnapshotMismatch, "0 are allowed"),
        ({"require": "good"}, SettingsError, "require is 'good'"),
        ({"verify": "no"}, SettingsError, "verify is 'no'"),
    ],
    ids=["guest", "no model", "memory", "kv", "sessions", "require", "verify"],
)
def test_wrong_options(
    world: World, options: dict[str, Any], error: type[IsthmusError], match: str
) -> None:
    world.refuse(world.good, error, match, **options)


@pytest.mark.parametrize("require", ["exact", "state-exact"])
@pytest.mark.parametrize(
    ("tiny_options", "options", "match"),
    [
        ({"seed": 9}, {}, "weights"),
        ({"n_vocab": 400}, {}, "tokenizer"),
        ({}, {"kv_type": "f32"}, "KV cache of f16 then, f32 now"),
    ],
    ids=["weights", "tokenizer", "kv"],
)
def test_wrong_models(
    world: World,
    tmp_path: Path,
    tiny_options: dict[str, Any],
    options: dict[str, Any],
    match: str,
    require: str,
) -> None:
    path = TinyLlama(with_tokenizer=True, **tiny_options).write(tmp_path / "other.gguf")
    other = world.runtime.load_model(path, **options)
    world.refuse(
        world.good,
        SnapshotMismatch,
        f"would be replayed.*{match}",
        models={"default": other},
        require=require,
    )
