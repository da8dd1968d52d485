"""Whatever is done to a snapshot, it is refused with its reason and nothing is half restored.

Files that are cut, flipped or swapped, and files that lie: their hashes are right, what they say
is not. After each refusal no actor, no memory and no descriptor is left, and a good snapshot
still gives the same answer.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import random
import resource
import shutil
import threading
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from isthmus import Limits, Model, Runtime, errors
from isthmus.errors import SettingsError, SnapshotError, SnapshotInvalid, SnapshotMismatch
from isthmus.snapshot import CHUNK_NBYTES, Store, open_snapshot
from isthmus.snapshot.header import LENGTH, encode_header, sign, tensors_of
from isthmus.snapshot.manifest import decode_manifest
from isthmus.units import MIB
from tests.patience import PATIENCE_S, eventually
from tests.tiny_gguf import TinyLlama, TinyModel

ASK = "sequence 2"
MAX_NBYTES = 192 * MIB
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

    def refuse(self, path: Path, error: Any, match: str, **options: Any) -> None:
        """Restoring raises that, leaves nothing behind and takes little memory."""
        before, nbytes = self.held(), resident("VmRSS")
        with pytest.raises(error, match=match) as caught:
            self.restore(path, **options)
        assert isinstance(caught.value, errors.IsthmusError)
        caught.value.__context__ = None
        del caught
        assert resident("VmHWM") - nbytes < MAX_NBYTES
        # The thread that looks at leases may have a file in its hand.
        assert eventually(lambda: self.held() == before)


def resident(name: str) -> int:
    """The process's memory, VmRSS, or the most since this was last asked for VmRSS, VmHWM."""
    if not Path("/proc/self/clear_refs").exists():
        return 0
    if name == "VmRSS":
        Path("/proc/self/clear_refs").write_text("5")
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split(f"{name}:")[1].split()[0])


@pytest.fixture(scope="module")
def world(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    good = tmp_path_factory.mktemp("good") / "good.safetensors"
    with Runtime(device="cpu", threads=1) as runtime:
        model = runtime.load_model(tiny)
        with runtime.spawn("bench", models={"default": model}, args=["n_ctx=256"]) as actor:
            actor.send("prefill 20 3")
            actor.snapshot(good)
            world = World(runtime, model, good, actor.send(ASK).text)
        world.require_good()
        yield world
        world.require_good()


class Forgery:
    """A snapshot's manifest and bytes, to be changed and written with hashes that are right."""

    def __init__(self, source: Path) -> None:
        opened, raw = open_snapshot(source), source.read_bytes()
        self.manifest: dict[str, Any] = json.loads(opened.manifest.encode())
        self.parts = {part.name: opened.part(part.name) for part in opened.manifest.parts}
        self.tensors = opened.tensors
        self.begin = LENGTH.unpack(raw[:8])[0] + 8
        self.memory = raw[self.begin : self.begin + opened.manifest.memory.nbytes]

    def put(self, where: str, value: object) -> None:
        *outer, last = where.split(".")
        holder: Any = self.manifest
        for name in outer:
            holder = holder[int(name) if isinstance(holder, list) else name]
        holder[last] = value

    def part(self, name: str, data: bytes | None = None, **changes: Any) -> None:
        record = next(part for part in self.manifest["parts"] if part["name"] == name)
        record.update(changes)
        if data is not None:
            self.parts[name] = data
            record["sha256"] = hashlib.sha256(data).hexdigest()
            record["shape"] = [len(data) // (1 if record["dtype"] == "U8" else 4)]

    def numbers(self, *found: int) -> None:
        self.part("chunk.numbers", array("I", found).tobytes())

    def tokens(self, *ids: int) -> None:
        self.part("session.2.tokens", array("i", ids).tobytes())
        self.put("sessions.0.n_tokens", len(ids))

    def session(self, handle: int, n_models: int = 1) -> None:
        """Gives the session another handle, and the model so many, from 1 on."""
        self.put("sessions.0.handle", handle)
        self.put("handles", [{"handle": n + 1, "model": "default"} for n in range(n_models)])
        for part in self.manifest["parts"]:
            if (name := part["name"]).startswith("session."):
                part["name"] = name.replace(".2.", f".{handle}.")
                self.parts[part["name"]] = self.parts.pop(name)

    def again(self, where: str, **changes: int) -> None:
        self.manifest[where].append({**self.manifest[where][-1], **changes})

    def odd(self, name: str) -> None:
        self.part(name, self.parts[name] + b"\0", dtype="U8")

    def guest(self, text: str) -> None:
        wasm = module(f"(global (mut i32) (i32.const 0)) {text}")
        self.part("guest", wasm)
        self.put("guest.sha256", hashlib.sha256(wasm).hexdigest())

    def adapted(self, scale: float) -> None:
        self.put("format_version", 3)
        self.put("models.0.adapters", [{**ADAPTERS[0], "scale": scale}])

    def write(self, path: Path, signature: str | None = None) -> Path:
        text = json.dumps(self.manifest)
        with contextlib.suppress(SnapshotError):
            self.tensors = tensors_of(decode_manifest(text), with_memory=True)
        header = encode_header(text, self.tensors, signature)
        with open(path, "wb") as file:
            file.write(header + self.memory)
            for tensor in self.tensors:
                file.seek(len(header) + tensor.offset)
                file.write(self.parts.get(tensor.name, b""))
            file.truncate(len(header) + self.tensors[-1].offset + self.tensors[-1].nbytes)
        return path


def module(text: str) -> bytes:
    memory = "" if "(memory" in text else '(memory (export "memory") 1)'
    on_message = '(func (export "on_message") (param i32) (result i32) (i32.const 0))'
    return bytes(wasmtime.wat2wasm(f"(module {text} {memory} {on_message})"))


@pytest.fixture
def forgery(world: World) -> Forgery:
    return Forgery(world.good)


# ---------------------------------------------------------------------------------- damaged files


def test_truncated_and_extended(world: World, tmp_path: Path) -> None:
    raw, path = world.good.read_bytes(), tmp_path / "cut"
    for n in (*range(0, len(raw), CHUNK_NBYTES), 1, 7, 8, 9, len(raw) - 1, len(raw) + 1):
        path.write_bytes(raw[:n].ljust(n, b"\0"))
        world.refuse(path, SnapshotInvalid, "truncated|damaged|bytes long instead of")


NO_SNAPSHOTS: dict[str, Callable[[Path, Path], object]] = {
    "damaged": lambda path, good: path.write_bytes(random.Random(1).randbytes(70_000)),
    "its header is damaged": lambda path, good: path.write_bytes(b"\x10" + b"\0" * 90_000),
    "folder": lambda path, good: path.mkdir(),
    "not a plain file": lambda path, good: os.mkfifo(path),
    "symbolic link": lambda path, good: path.symlink_to(good),
    "there is no snapshot": lambda path, good: None,
}


@pytest.mark.parametrize("match", NO_SNAPSHOTS)
def test_no_snapshot(world: World, tmp_path: Path, match: str) -> None:
    NO_SNAPSHOTS[match](tmp_path / "it", world.good)
    world.refuse(tmp_path / "it", (SnapshotInvalid, errors.SnapshotNotFound), match)


def flips(it: Forgery, raw: bytes) -> Iterator[tuple[str, int]]:
    """A place in each section of a snapshot's file: used chunks and holes, parts, header."""
    for mark in (b"{", b"__metadata__", b"n_tokens", b"sha256", b'"U8"', b"data_offsets", b"[0,"):
        yield mark.decode(), raw.index(mark) + 1
    yield from (("length or padding", at) for at in (*range(8), it.begin - 1))
    for tensor in it.tensors:
        if tensor.name in it.parts:
            yield tensor.name, it.begin + tensor.offset + tensor.nbytes // 2
    for at in range(77, len(it.memory), CHUNK_NBYTES):
        yield "memory", it.begin + at


@pytest.mark.parametrize("text", [False, True], ids=["all else", "text"])
def test_flipped_bits(world: World, forgery: Forgery, tmp_path: Path, text: bool) -> None:
    raw, path = world.good.read_bytes(), tmp_path / "flipped"
    for name, at in flips(forgery, raw):
        if name.endswith(".text") == text:
            path.write_bytes(raw[:at] + bytes([raw[at] ^ 0x10]) + raw[at + 1 :])
            world.refuse(path, SnapshotInvalid, "damaged|malformed|header|instead|truncated|no sna")
            with pytest.raises(SnapshotInvalid):
                open_snapshot(path).verify()


# ---------------------------------------------------------------------------------- wrong givens

WRONG: list[tuple[dict[str, Any], type, str]] = [
    ({"guest": "chat"}, SnapshotMismatch, "of the guest bench"),
    ({"models": {}}, SnapshotMismatch, "the model 'default'"),
    ({"limits": Limits(memory_nbytes=65_536)}, SnapshotMismatch, "64.0 KiB are allowed"),
    ({"limits": Limits(kv_nbytes=1000)}, SnapshotMismatch, "1000 are allowed"),
    ({"limits": Limits(sessions=0)}, SnapshotMismatch, "0 are allowed"),
    ({"require": "good"}, SettingsError, "require is 'good'"),
    ({"verify": "no"}, SettingsError, "verify is 'no'"),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong[2])
def test_wrong_options(world: World, wrong: tuple[dict[str, Any], type, str]) -> None:
    options, error, match = wrong
    world.refuse(world.good, error, match, **options)


@pytest.mark.parametrize("require", ["exact", "state-exact"])
@pytest.mark.parametrize("what", ["weights", "tokenizer", "KV cache of f16 then, f32 now"])
def test_wrong_models(world: World, tmp_path: Path, what: str, require: str) -> None:
    n_vocab, seed = 400 if what == "tokenizer" else 320, 9 if what == "weights" else 0
    path = TinyLlama(with_tokenizer=True, n_vocab=n_vocab, seed=seed).write(tmp_path / "other.gguf")
    other = world.runtime.load_model(path, kv_type="f32" if "KV" in what else "f16")
    given = {"models": {"default": other}, "require": require}
    world.refuse(world.good, SnapshotMismatch, f"would be replayed.*{what}", **given)


# ---------------------------------------------------------------------------------- lies

ADAPTERS = [{"file_name": "x.gguf", "sha256": "0" * 64, "scale": 1.0}]
LIES: dict[str, tuple[list[object], str]] = {
    "format_version": ([0, 3, 4, 5, 6], "format version"),
    "sessions.0.top_k": ([1, 257, -1], "of candidates|malformed"),
    "memory.nbytes": ([2**44, 2**32, 65_536, 65_537], "malformed|are allowed|leaves the memory"),
    "memory.n_chunks": ([8, 2**32], "another type or shape|malformed"),
    "sessions.0.ptr": ([266_241, 589_824, 2**32 - 1], "memory"),
    "sessions.0.kv_offset": ([0, 32, 1313, 5408, 2**31], "overlaps|begin"),
    "sessions.0.n_ctx": ([0, 257, 2**24], "malformed|leaves"),
    "sessions.0.n_layer": ([1, 3, 4096], "layout|leaves"),
    "sessions.0.n_vocab": ([1, 321, 2**24], "layout|leaves"),
    "sessions.0.row_nbytes": ([2, 127, 130], "layout|whole"),
    "sessions.0.n_tokens": ([19, 21], "another type or shape"),
    "sessions.0.kv_type": (["f32", "q4"], "another KV type|malformed"),
    "sessions.0.model": (["other"], "does not describe"),
    "handles.0.model": (["other"], "does not describe"),
    "handles.0.weight": (["none"], "no weight"),
    "handles.0.handle": ([0, 2], "taken|malformed"),
    "actor.last_handle": ([2**31, 2**32], "handle"),  # a guest's handles are i32, not negative
    "actor.limits.memory_nbytes": ([0, 2**63 - 1, None], "impossible limits|malformed"),
    "actor.limits.kv_nbytes": ([0, 2**63], "0 are allowed|malformed"),
    "actor.seed": (["9" * 81, "x"], "malformed"),
    "actor.n_random_blocks": ([2**63, -1], "malformed"),
    "actor.clock_ns": ([-1, 2**64, 10**100], "."),
    "actor.args": ([["a\0b"], ["\ud800"], 5], "."),
    "actor.tools": ([["rm"]], "tool 'rm'"),
    "models": ([[]], "does not describe"),
    "models.0.adapters": ([ADAPTERS, [5], ADAPTERS * 9], "that of adapters|malformed"),
    "models.0.width": (
        ["9-128", "4", "0-4", "many", 4, "9-128\n"],
        "what it holds is of 4|malformed",
    ),
    "globals": ([[]], "globals"),
    "globals.0.index": ([1], "globals"),
    "globals.0.type": (["i64", "f32", "x"], "globals"),
    "globals.0.bits": (["0000010000", "00"], "wrong size|malformed"),
    "guest.name": (["a\0b", "x" * 10 * MIB], "."),
    "parts": ([[]], "a part is missing"),
    "unknown": ([1], "unknown field"),
}


@pytest.mark.parametrize("where", LIES)
def test_lies(world: World, tmp_path: Path, where: str) -> None:
    accepted, (values, match) = [], LIES[where]
    for value in values:
        forgery = Forgery(world.good)
        forgery.put(where, value)
        try:
            world.refuse(forgery.write(tmp_path / "lie"), SnapshotError, match)
        except BaseException as error:
            accepted.append((ascii(value)[:40], error))
        world.require_good()
    assert accepted == []


SHAPES: dict[str, tuple[Callable[[list[int]], dict[str, Any]], str]] = {
    "in another order": (lambda rows: {"rows": rows[::-1]}, "layout"),
    "one too few": (lambda rows: {"rows": rows[1:]}, "layout"),
    "one too many": (lambda rows: {"rows": [*rows, rows[0]]}, "layout|overlaps|leaves"),
    "half an element": (lambda rows: {"rows": [rows[0] - 1, *rows[1:]]}, "no whole number"),
    "nothing": (lambda rows: {"rows": [0, *rows[1:]]}, "malformed"),
    "too much": (lambda rows: {"rows": [2**27, *rows[1:]]}, "malformed"),
    "two caches": (lambda rows: {"n_layer": 2, "row_nbytes": 64}, "no KV cache, or two"),
    "no cache": (lambda rows: {"rows": []}, "holds is of 2"),
}


def test_lies_about_caches_of_different_shapes(world: World, tmp_path: Path) -> None:
    path = TinyModel("gemma4", quantisation="Q8_0", with_tokenizer=True).write(tmp_path / "x.gguf")
    model = world.runtime.load_model(path)
    with world.runtime.spawn("bench", models={"default": model}, args=["n_ctx=256"]) as actor:
        actor.send("prefill 20 3")
        good = actor.snapshot(tmp_path / "good.safetensors").path
    world.restore(good, models={"default": model}).close()
    rows = Forgery(good).manifest["sessions"][0]["rows"]
    assert Forgery(good).manifest["format_version"] == 6
    assert len(rows) == 6
    for what, (change, match) in SHAPES.items():
        forgery = Forgery(good)
        forgery.manifest["sessions"][0].update(change(rows))
        lie = forgery.write(tmp_path / f"{what}.safetensors")
        world.refuse(lie, SnapshotError, match, models={"default": model})
    model.close()


@pytest.mark.parametrize("given", [{}, {"guest": "bench"}], ids=["its own guest", "given"])
def test_lies_about_the_width_of_memory(
    world: World, tmp_path: Path, given: dict[str, Any]
) -> None:
    forgery = Forgery(world.good)
    forgery.manifest["format_version"] = 3
    forgery.manifest["memory"]["is_64"] = True
    for model in forgery.manifest["models"]:
        model["adapters"] = []
    world.refuse(forgery.write(tmp_path / "lie"), SnapshotError, "not of the kind", **given)


@pytest.mark.parametrize(
    ("k", "ptr", "match"),
    [
        (2, lambda session: 4, "do not lie"),
        (2, lambda session: 2**32 - 32, "do not lie"),
        (256, lambda session: 2**39, "do not lie"),
        (256, lambda session: 2**40, "malformed"),
        (257, lambda session: 4096, "malformed"),
        (2, lambda session: session, "lie in a session"),
        (256, lambda session: session - 32, "lie in a session"),
    ],
)
def test_lies_about_candidates(
    world: World, tmp_path: Path, k: int, ptr: Callable[[int], int], match: str
) -> None:
    forgery = Forgery(world.good)
    forgery.manifest["format_version"] = 4
    forgery.manifest["memory"]["is_64"] = False
    for model in forgery.manifest["models"]:
        model["adapters"], model["width"] = [], ""
    forgery.put("sessions.0.top_k", k)
    forgery.put("sessions.0.top_ptr", ptr(forgery.manifest["sessions"][0]["ptr"]))
    world.refuse(forgery.write(tmp_path / "lie"), SnapshotError, match)


Change = Callable[[Forgery], object]
TRICKS: dict[str, tuple[Change, str]] = {
    "session handle 0": (lambda it: it.session(0), "malformed"),
    "adapters": (lambda it: it.adapted(1.0), "would be replayed"),
    "an adapter by 1e9": (lambda it: it.adapted(1e9), "malformed"),
    "session handle taken": (lambda it: it.session(1), "handle 1 is taken"),
    "1,024 handles first": (lambda it: it.session(50_000, 1024), "one too many"),
    "5,000 handles": (lambda it: it.session(50_000, 5000), "."),
    "same session twice": (lambda it: it.again("sessions"), "overlaps|same name"),
    "overlap": (lambda it: it.again("sessions", handle=3, ptr=270_336), "overlap"),
    "token 320": (lambda it: it.tokens(3, 320), "vocabulary"),
    "token -1": (lambda it: it.tokens(-1), "vocabulary"),
    "257 tokens": (lambda it: it.tokens(*[3] * 257), "full"),
    "globals twice": (lambda it: it.again("globals"), "globals"),
    "part twice": (lambda it: it.again("parts"), "there twice"),
    "no guest": (lambda it: it.manifest["parts"].pop(3), "a part is missing"),
    "no tokens": (lambda it: it.manifest["parts"].pop(1), "a part is missing"),
    "odd numbers": (lambda it: it.odd("chunk.numbers"), "."),
    "odd tokens": (lambda it: it.odd("session.2.tokens"), "."),
    "odd digests": (lambda it: it.odd("chunk.sha256"), "another type or shape"),
    "numbers fall": (lambda it: it.numbers(32, 3, 4, 8, 12, 16, 18, 20, 22), "not in order"),
    "numbers leave": (lambda it: it.numbers(3, 4, 8, 12, 16, 18, 20, 22, 36), "leaves the memory"),
    "other numbers": (lambda it: it.numbers(3, 4, 8, 12, 16, 18, 20, 22, 30), "damaged"),
    "512 MiB of numbers": (lambda it: it.part("chunk.numbers", shape=[2**27]), "."),
    "1 TiB of guest": (lambda it: it.part("guest", shape=[2**20, 2**20]), "."),
    "1 TiB of tokens": (lambda it: it.part("session.2.tokens", shape=[2**19, 2**19]), "."),
    "other globals": (lambda it: it.guest("(global (mut i64) (i64.const 0))"), "globals"),
    "guest of 2 pages": (lambda it: it.guest('(memory (export "memory") 1 2)'), "."),
    "guest of 99 pages": (lambda it: it.guest('(memory (export "memory") 99)'), "."),
}


@pytest.mark.parametrize("name", TRICKS)
def test_tricks(world: World, forgery: Forgery, tmp_path: Path, name: str) -> None:
    change, match = TRICKS[name]
    change(forgery)
    world.refuse(forgery.write(tmp_path / "trick"), SnapshotError, match)
    world.require_good()


def test_headers_that_grow_when_read(world: World, forgery: Forgery, tmp_path: Path) -> None:
    """16 MiB of brackets, and 60 sessions that say to have 4,096 layers in a header of 16 KiB."""
    path, session = tmp_path / "bomb", forgery.manifest["sessions"][0]
    text = b'{"x":[' + b"[]," * (16 * MIB // 3) + b"[]]}"
    path.write_bytes(LENGTH.pack(len(text)) + text)
    world.refuse(path, SnapshotInvalid, ".")
    shape = {"n_layer": 4096, "n_vocab": 1, "row_nbytes": 2, "kv_offset": 32}
    many = [{**session, **shape, "handle": n, "ptr": n * 5 * MIB} for n in range(1, 60)]
    forgery.put("sessions", many)
    forgery.put("memory.nbytes", 2**32)
    path.write_bytes(encode_header(json.dumps(forgery.manifest), []))
    world.refuse(path, SnapshotInvalid, ".")


def test_lone_surrogates_in_the_header(world: World, tmp_path: Path) -> None:
    meta = '{"__metadata__":{"format":"isthmus-snapshot","manifest":"\\ud800","sha256":""}}'
    (tmp_path / "it").write_bytes(LENGTH.pack(len(meta)) + meta.encode())
    world.refuse(tmp_path / "it", SnapshotInvalid, ".")


REPLAYS: dict[str, tuple[Change, dict[str, Any], str]] = {
    "unaligned": (lambda it: it.put("sessions.0.ptr", 266_241), {}, "does not lie"),
    "kv limit": (lambda it: None, {"limits": Limits(kv_nbytes=200_000)}, "200000 are allowed"),
    "memory limit": (lambda it: None, {"limits": Limits(memory_nbytes=589_824)}, "."),
    "n_ctx": (lambda it: it.put("sessions.0.n_ctx", 2048), {}, "n_ctx"),
    "token -1": (lambda it: it.tokens(-1), {}, "vocabulary"),
    "257 tokens": (lambda it: it.tokens(*[3] * 257), {}, "full"),
}


@pytest.mark.parametrize("name", REPLAYS)
def test_replayed_lies(world: World, forgery: Forgery, tmp_path: Path, name: str) -> None:
    change, options, match = REPLAYS[name]
    forgery.put("memory.nbytes", 589_824 if options else 2**22)
    forgery.memory = forgery.memory.ljust(0 if options else 2**22, b"\0")
    change(forgery)
    other = world.runtime.load_model(world.model.path, kv_type="f32")
    given = {"models": {"default": other}, "require": "replayed", **options}
    world.refuse(forgery.write(tmp_path / "lie"), SnapshotError, match, **given)


def test_a_snapshot_does_not_rename_a_guest(world: World, forgery: Forgery, tmp_path: Path) -> None:
    """A guest sees its name as argv[0]; what a stranger's file calls it is not for others."""
    forgery.put("guest.name", "a\0b")
    refused = forgery.write(tmp_path / "refused")
    forgery.put("guest.name", "../other")
    renamed = forgery.write(tmp_path / "renamed")
    for path in (renamed, refused):
        with Runtime(device="null", threads=1) as runtime:
            model = {"default": runtime.load_model(world.model.path)}
            with contextlib.suppress(SnapshotError):
                runtime.restore(path, models=model).close()
            assert runtime.spawn("bench", models=model).guest.name == "bench"
            assert runtime.restore(world.good, models=model).guest.name == "bench"


SETTINGS: list[dict[str, Any]] = [
    *({"seed": 10**90}, {"clock_ns": -1}, {"clock_ns": 2**64}, {"limits": Limits(tokens=2**70)}),
    *({"tools": {"x" * 300: bytes}}, {"tools": {"\udcff": bytes}}, {"args": ["\udcff"]}),
    {"guest": module('(memory (export "memory") 0)')},
]
READ_CLOCK = """(import "wasi_snapshot_preview1" "clock_time_get" (func $c (param i32 i64 i32)
    (result i32)))
    (func $s (drop (call $c (i32.const 0) (i64.const 0) (i32.const 0)))) (start $s)"""


@pytest.mark.parametrize("given", SETTINGS, ids=lambda it: ascii(it)[:24])
def test_what_is_saved_can_be_restored(
    null_runtime: Runtime, tmp_path: Path, given: dict[str, Any]
) -> None:
    """Or it is refused when it is given, or at the latest when it is saved."""
    try:
        actor = null_runtime.spawn(**{"guest": module(READ_CLOCK), **given})
        actor.snapshot(tmp_path / "it")
    except errors.IsthmusError:
        return
    null_runtime.restore(tmp_path / "it", tools=given.get("tools")).send("")
    assert len(actor.fork(1)) == 1


@pytest.mark.parametrize("path", ["x" * 300, "a\0b", ""], ids=["long", "zero", "empty"])
def test_impossible_paths(world: World, path: str) -> None:
    with pytest.raises(SnapshotError):
        world.restore(Path(path))


# ---------------------------------------------------------------------------------- keys, stores


def test_keys(world: World, forgery: Forgery, tmp_path: Path) -> None:
    text = json.dumps(forgery.manifest)
    with pytest.raises(SettingsError, match="3 bytes"):
        Runtime(device="null", snapshot_key=b"abc")
    with Runtime(device="cpu", threads=1, snapshot_key=KEY) as runtime:
        keyed = World(runtime, runtime.load_model(world.model.path), world.good, world.answer)
        keyed.refuse(world.good, errors.SnapshotUntrusted, "not signed")
        for signature in (sign(text, KEY[1:]), sign(text + " ", KEY), "", "\u00e9" * 64):
            path = forgery.write(tmp_path / "signed", signature)
            keyed.refuse(path, errors.SnapshotUntrusted, "another key")
        keyed.good = forgery.write(tmp_path / "signed", sign(text, KEY))
        keyed.require_good()


@pytest.fixture
def store(world: World, tmp_path: Path) -> Store:
    """Two snapshots and their packs."""
    store = Store(tmp_path / "store")
    with world.restore(world.good) as actor:
        actor.snapshot(store, name="one")
        actor.send("prefill 30 5")
        actor.snapshot(store, name="two")
    return store


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "", ".hidden", "a/b", "a\n", "a\0"])
def test_names_that_are_none(world: World, store: Store, name: str) -> None:
    with world.restore(world.good) as actor, pytest.raises(SettingsError, match="no name"):
        actor.snapshot(store, name=name)
    for use in (store.open, store.delete):
        with pytest.raises(SettingsError, match="no name"):
            use(name)
    assert store.names() == ["one", "two"]


@pytest.mark.parametrize("part", [".", "snapshots", "packs", "lock"])
def test_links_in_a_store(store: Store, part: str) -> None:
    path = store.folder / part
    path.rename(store.folder.parent / "moved")
    path.symlink_to(store.folder.parent / "moved")
    with pytest.raises(SnapshotError, match="symbolic link"):
        Store(store.folder).open("one")


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


PACKS: dict[str, Callable[[Path, Path], object]] = {
    "deleted": lambda pack, other: pack.unlink(),
    "truncated": lambda pack, other: os.truncate(pack, pack.stat().st_size - 1),
    "header": lambda pack, other: flip(pack, 20),
    "chunk": lambda pack, other: flip(pack, CHUNK_NBYTES + 5),
    "digest": lambda pack, other: flip(pack, -3),
    "swapped": lambda pack, other: shutil.copy(other, pack),
    "folder": lambda pack, other: (pack.unlink(), pack.mkdir()),
    "pipe": lambda pack, other: (pack.unlink(), os.mkfifo(pack)),
}


@pytest.mark.parametrize("damage", PACKS)
def test_damaged_packs(world: World, store: Store, damage: str) -> None:
    packs = sorted((store.folder / "packs").iterdir(), key=lambda pack: pack.stat().st_mtime_ns)
    PACKS[damage](*packs)
    caught: list[BaseException] = []

    def restore() -> None:
        try:
            world.restore(store.path("one")).close()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=restore, daemon=True)  # opening a pipe waits for a writer
    thread.start()
    thread.join(PATIENCE_S)
    waits = thread.is_alive()
    if waits:
        os.close(os.open(packs[0], os.O_RDWR))
        thread.join()
    assert not waits
    assert [type(error) for error in caught] in ([SnapshotInvalid], [SnapshotError])


def test_more_packs_than_descriptors(world: World, store: Store) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with world.restore(world.good) as actor:
        gc.collect()
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 24, hard))
        try:
            for n in range(64):
                actor.send(f"prefill 1 {n}")
                actor.snapshot(store, name=f"n{n}")
            world.restore(store.path("one")).close()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_inside_a_store(world: World, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store.folder / "snapshots")
    world.restore(Path("one.safetensors")).close()


def test_endless_start(null_runtime: Runtime) -> None:
    for text in ("(func $s (loop (br 0))) (start $s)", '(func (export "_initialize") (loop br 0))'):
        with pytest.raises(errors.DeadlineExceeded):
            null_runtime.spawn(module(text), limits=Limits(deadline_s=0.2))
    assert null_runtime.actors == []
