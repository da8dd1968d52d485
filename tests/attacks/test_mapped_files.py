"""Files that change while they are mapped: the process goes on, with the bytes it had."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wasmtime

from isthmus import Actor, Limits, Runtime
from isthmus.actor.keeper import Keeper
from isthmus.actor.pages import Pages
from isthmus.config import Environment, ModelSettings
from isthmus.device import Device
from isthmus.errors import ActorClosed, IsthmusError, ModelFileError, Overloaded, RegionError
from isthmus.memory import FileGuard, FileMapping, Region, lease, rescue
from isthmus.memory.lease import State
from isthmus.model import Model, open_model
from isthmus.native import libc
from isthmus.native.loader import Library
from isthmus.snapshot import open_snapshot
from tests.split_gguf import split
from tests.tiny_gguf import TinyLlama, TinyLora, TinyModel

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="leases are Linux's")
PATIENCE_S = 40
"""The kernel waits for 45 s, then the writer goes on all the same."""
TRUNCATE = "import os, sys; os.truncate(sys.argv[1], 4096)"
OVERWRITE = "import sys; f = open(sys.argv[1], 'r+b'); f.write(bytes(1 << 20))"


@pytest.fixture(autouse=True)
def with_leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_POLL_S", 0.05)
    (tmp_path / "probe").write_bytes(b"x")
    with FileMapping(tmp_path / "probe") as mapping:
        if mapping._file.state is not State.LEASED:
            pytest.skip("this file system, or this user, has no leases")


def attacked(path: Path, code: str) -> None:
    """Another process does it, and is held up until the mapping is safe."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=120)
    assert time.monotonic() - started < PATIENCE_S


def embedder() -> TinyModel:
    return TinyModel(architecture="bert", with_tokenizer=True)


def embedding(model: Model) -> np.ndarray:
    return model.embed([[5, 6, 7]])[0]


@pytest.mark.parametrize("code", [TRUNCATE, OVERWRITE])
def test_a_model_computes_on_with_what_it_had(device: Device, tmp_path: Path, code: str) -> None:
    path = embedder().write(tmp_path / "x.gguf")
    model = open_model(device, path, ModelSettings())
    before = embedding(model)
    attacked(path, code)
    assert model.weights._mappings[0]._file.state is State.COPIED
    assert np.array_equal(embedding(model), before)
    with pytest.raises(ModelFileError, match="was replaced or written to"):
        _ = model.weights_sha256
    model.close()


def test_every_mapping_of_a_file_is_saved(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    data = bytes(range(256)) * 4096
    path.write_bytes(data)
    with FileMapping(path) as first, FileMapping(path) as second:
        attacked(path, TRUNCATE)
        for mapping in (first, second):
            assert ctypes.string_at(mapping.base, mapping.nbytes) == data
            assert mapping.intact
    assert path.stat().st_size == 4096


def test_readers_see_no_gap(tmp_path: Path) -> None:
    """A thread reads while the copy takes the mapping's place."""
    path = tmp_path / "weights"
    data = bytes(range(256)) * 65_536
    path.write_bytes(data)
    wrong: list[int] = []
    done = threading.Event()
    with FileMapping(path) as mapping:

        def read() -> None:
            while not done.is_set():
                if ctypes.string_at(mapping.base, mapping.nbytes) != data:
                    wrong.append(1)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            attacked(path, TRUNCATE)
        finally:
            done.set()
            reader.join()
        assert mapping._file.state is State.COPIED
    assert not wrong


def test_a_writer_in_this_process_is_held_up_too(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"a" * 8192)
    with FileMapping(path) as mapping:
        path.write_bytes(b"b")
        assert ctypes.string_at(mapping.base, 8192) == b"a" * 8192


def no_memory() -> int:
    return 0


def test_without_memory_for_a_copy_the_model_fails_and_not_the_process(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = embedder().write(tmp_path / "x.gguf")
    model = open_model(device, path, ModelSettings())
    embedding(model)
    monkeypatch.setattr(lease, "available_nbytes", no_memory)
    attacked(path, TRUNCATE)
    with pytest.raises(ModelFileError, match="was written to while it was in use"):
        embedding(model)
    model.close()


def test_adapters_are_saved(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = TinyLlama(with_tokenizer=True)
    model = open_model(device, base.write(tmp_path / "base.gguf"), ModelSettings())
    path = TinyLora(base).write(tmp_path / "lora.gguf")
    adapter = model.load_adapter(path)
    mapping = adapter.weights._mappings[0]
    before = ctypes.string_at(mapping.base, mapping.nbytes)
    attacked(path, TRUNCATE)
    assert ctypes.string_at(mapping.base, mapping.nbytes) == before
    adapted = model.adapted({adapter: 1.0})
    adapted._require_intact()
    adapted.close()
    model.close()


def refused(_fd: int) -> bool:
    return False


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-64]),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
    ],
)
def test_without_a_lease_a_change_is_seen_before_the_next_pass(
    device: Device,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], object],
) -> None:
    monkeypatch.setattr(lease, "take", refused)
    path = embedder().write(tmp_path / "x.gguf")
    model = open_model(device, path, ModelSettings())
    embedding(model)
    time.sleep(0.02)  # a file's time has the grain of the kernel's tick
    change(path)
    with pytest.raises(ModelFileError, match="was written to while it was in use"):
        embedding(model)
    model.close()


# ---------------------------------------------------------------------------------- shards


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    return split(embedder().write(tmp_path / "x.gguf"), tmp_path)


def replaced(path: Path) -> None:
    (path.parent / "new").write_bytes(b"another")
    (path.parent / "new").replace(path)


@pytest.mark.parametrize("code", [TRUNCATE, OVERWRITE, None])
def test_a_split_model_computes_on_if_one_shard_changes(
    device: Device, shards: list[Path], code: str | None
) -> None:
    model = open_model(device, shards[0], ModelSettings())
    before = embedding(model)
    attacked(shards[2], code) if code else replaced(shards[2])
    states = [it._file.state for it in model.weights._mappings]
    third = State.COPIED if code else State.LEASED
    assert states == [State.LEASED, State.LEASED, third, State.LEASED]
    assert np.array_equal(embedding(model), before)
    with pytest.raises(ModelFileError, match=r"00003-of-00004\.gguf was replaced or written to"):
        _ = model.weights_sha256
    model.close()


def test_a_lost_shard_ends_its_model_and_no_other(
    device: Device, shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, other = (
        open_model(device, it, ModelSettings()) for it in (shards[0], tmp_path / "x.gguf")
    )
    before = embedding(other)
    monkeypatch.setattr(lease, "available_nbytes", no_memory)
    attacked(shards[1], TRUNCATE)
    with pytest.raises(ModelFileError, match=r"00002-of-00004\.gguf was written to while"):
        embedding(model)
    assert np.array_equal(embedding(other), before)
    model.close()
    other.close()


# ---------------------------------------------------------------------------------- of a library


class Llama:
    """A model that libllama has mapped by itself, guarded."""

    def __init__(self, library: Library, paths: list[Path]) -> None:
        self._library, self.guard = library, FileGuard(paths)
        params = library.llama_model_default_params()
        params.n_gpu_layers = 0
        with self.guard.mapping():
            self._handle = library.llama_model_load_from_file(os.fsencode(paths[0]), params)
        assert self._handle

    def read(self) -> list[bytes]:
        """What the library's mappings hold."""
        return [ctypes.string_at(it.base, it.nbytes) for it in self.guard.ranges]

    def close(self) -> None:
        self.guard.close()
        self._library.llama_model_free(self._handle)


@pytest.fixture(params=[1, 4])
def llama(
    request: pytest.FixtureRequest, library: Library, tmp_path: Path
) -> Iterator[tuple[Llama, list[Path]]]:
    """Of a file, and of four shards."""
    path = TinyLlama(with_tokenizer=True).write(tmp_path / "llama.gguf")
    paths = [path] if request.param == 1 else split(path, tmp_path, count=request.param)
    llama = Llama(library, paths)
    yield llama, paths
    llama.close()


@pytest.mark.parametrize("code", [TRUNCATE, OVERWRITE])
def test_what_a_library_has_mapped_is_saved(
    llama: tuple[Llama, list[Path]], code: str, library: Library
) -> None:
    found, paths = llama
    before = found.read()
    assert len(before) == len(paths)
    same = Llama(library, paths)
    attacked(paths[-1], code)
    assert found.read() == same.read() == before
    assert found.guard.changed is None
    same.close()
    assert found.read() == before


def test_what_a_library_has_mapped_may_be_lost(
    llama: tuple[Llama, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, paths = llama
    monkeypatch.setattr(lease, "available_nbytes", no_memory)
    attacked(paths[0], TRUNCATE)
    assert found.guard.changed == paths[0]
    assert not any(found.read()[0])


def test_a_file_that_changes_while_a_library_maps_it(tmp_path: Path) -> None:
    """The writer waits until it is known what is mapped."""
    path = tmp_path / "weights"
    path.write_bytes(b"a" * 8192)
    guard = FileGuard([path])
    with guard.mapping():
        attack = threading.Thread(target=attacked, args=(path, TRUNCATE))
        attack.start()
        attack.join(3)
        assert attack.is_alive()
        fd = os.open(path, os.O_RDONLY)
        address = libc.map_file(fd, 8192)
        os.close(fd)
    attack.join(PATIENCE_S)
    assert [it.base for it in guard.ranges] == [address]
    assert ctypes.string_at(address, 8192) == b"a" * 8192
    guard.close()
    libc.unmap(address, 8192)


def test_what_the_library_gave_back_is_not_touched(tmp_path: Path) -> None:
    path, other = tmp_path / "weights", tmp_path / "other"
    for it in (path, other):
        it.write_bytes(it.name.encode() * 1024)
    guard, before = FileGuard([path]), path.read_bytes()
    with path.open("rb") as file, guard.mapping():
        address = libc.map_file(file.fileno(), 8192)
    with other.open("rb") as file:
        libc.unmap(address, 8192)
        again = libc.map_file(file.fileno(), 8192)  # as a rule at the same address
    attacked(path, OVERWRITE)
    assert ctypes.string_at(again, 5) == b"other"
    assert path.read_bytes() != before
    guard.close()
    guard.close()
    libc.unmap(again, 8192)


def test_a_guard_of_what_is_missing_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"a" * 8192)
    with pytest.raises(FileNotFoundError):
        FileGuard([path, tmp_path / "missing"])
    path.write_bytes(b"b")  # which nobody holds up
    assert path.read_bytes() == b"b"


def test_a_closed_mapping_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"a" * 8192)
    FileMapping(path).close()
    path.write_bytes(b"b")
    assert path.read_bytes() == b"b"


def test_a_file_that_is_replaced_stays_mapped(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"a" * 8192)
    (tmp_path / "new").write_bytes(b"b")
    with FileMapping(path) as mapping:
        (tmp_path / "new").replace(path)
        assert ctypes.string_at(mapping.base, 8192) == b"a" * 8192
        assert mapping._file.state is State.LEASED


# ---------------------------------------------------------------------------------- actors


class Saved:
    """An actor's snapshot in a file and in a store, and what it would have answered."""

    def __init__(self, runtime: Runtime, tiny: Path, folder: Path) -> None:
        self.runtime = runtime
        self.models = {"default": runtime.load_model(tiny)}
        self.store = folder / "store"
        self.store.mkdir()
        self.file = folder / "agent.safetensors"
        with runtime.spawn("bench", models=self.models, args=["n_ctx=256"], seed=1) as actor:
            actor.send("prefill 20 3")
            actor.snapshot(self.file)
            actor.snapshot(self.store, name="agent")
            self.answers = [actor.send("sequence 4").text for _ in range(3)]

    def harmed(self, kind: str) -> Path:
        """What others write to, once an actor was restored from it."""
        return self.file if kind == "file" else next((self.store / "packs").iterdir())

    def restored(self, kind: str, **how: Any) -> Actor:
        path = self.file if kind == "file" else self.store / "agent"
        return self.runtime.restore(path, models=self.models, **how)


@pytest.fixture
def saved(tiny: Path, tmp_path: Path) -> Iterator[Saved]:
    environment = Environment(cache=tmp_path / "cache")
    with Runtime(device="cpu", threads=1, environment=environment) as runtime:
        yield Saved(runtime, tiny, tmp_path)


@pytest.mark.parametrize("code", [TRUNCATE, OVERWRITE])
@pytest.mark.parametrize("kind", ["file", "pack"])
def test_idle_actors_and_forks_go_on(saved: Saved, kind: str, code: str) -> None:
    first, second = saved.restored(kind), saved.restored(kind, verify="lazy")
    assert first.send("sequence 4").text == saved.answers[0]  # it has pages of its own
    fork = first.fork()[0]
    grandchild = second.fork()[0]
    assert first.region.maps_files or fork.region.maps_files or second.region.maps_files
    attacked(saved.harmed(kind), code)
    for actor, at in ((first, 1), (fork, 1), (second, 0), (grandchild, 0)):
        assert not actor.region.maps_files
        assert [actor.send("sequence 4").text for _ in range(3 - at)] == saved.answers[at:]
        again = actor.fork()[0]
        assert again.send("sequence 4").text
    with pytest.raises(IsthmusError):
        saved.restored(kind)


@pytest.mark.parametrize("kind", ["file", "pack"])
def test_an_actor_that_runs_is_waited_for(saved: Saved, kind: str) -> None:
    actor = saved.restored(kind)
    with actor._held():
        attack = threading.Thread(target=attacked, args=(saved.harmed(kind), TRUNCATE))
        attack.start()
        attack.join(3)
        assert attack.is_alive(), "the file was given away under an actor that is in use"
    attack.join(PATIENCE_S)
    assert not attack.is_alive()
    assert [actor.send("sequence 4").text for _ in range(3)] == saved.answers


SPINS = """(module (memory (export "memory") 1) (data (i32.const 16) "there") (func
  (export "on_message") (param $nbytes i32) (result i32)
    (if (i32.gt_u (local.get $nbytes) (i32.const 1))
      (then (loop $on (i32.store (i32.const 8) (i32.const 1)) (br $on))))
    (i32.const 0)))"""


@pytest.mark.parametrize("on_failure", ["keep", "undo", "close"])
def test_an_actor_that_runs_for_too_long_is_closed(
    saved: Saved, monkeypatch: pytest.MonkeyPatch, on_failure: Any
) -> None:
    monkeypatch.setattr(rescue, "_PATIENCE_S", 1.0)
    with saved.runtime.spawn(bytes(wasmtime.wat2wasm(SPINS))) as spinning:
        spinning.send("x")
        spinning.snapshot(saved.file)
    actor = saved.runtime.restore(saved.file, limits=Limits(on_failure=on_failure))
    stream = actor.stream("spin")
    attacked(saved.file, TRUNCATE)
    with pytest.raises(IsthmusError):
        list(stream)
    assert actor.state == "closed"
    with pytest.raises(ActorClosed, match="another process writes to the file"):
        actor.send("x")


def test_without_memory_for_a_copy_the_actor_is_evicted(
    saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = saved.restored("file")

    def refused(*_: object) -> None:
        raise Overloaded("no memory")

    monkeypatch.setattr(Pages, "freeze", refused)
    attacked(saved.file, TRUNCATE)
    assert actor.state == "evicted"
    monkeypatch.undo()
    assert [actor.send("sequence 4").text for _ in range(3)] == saved.answers


def test_without_memory_and_disk_the_actor_is_closed(
    saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = saved.restored("file")

    def refused(*_: object) -> None:
        raise Overloaded("no memory")

    monkeypatch.setattr(Pages, "freeze", refused)
    monkeypatch.setattr(Keeper, "evict", refused)
    attacked(saved.file, TRUNCATE)
    assert actor.state == "closed"
    with pytest.raises(ActorClosed, match="another process writes to the file"):
        actor.send("sequence 4")


def test_a_file_that_is_open_for_writing_is_copied(saved: Saved) -> None:
    with saved.file.open("r+b") as file:
        actor = saved.restored("file")
        file.truncate(4096)
    assert [actor.send("sequence 4").text for _ in range(3)] == saved.answers


def test_a_file_that_is_cut_short_before_it_is_mapped(saved: Saved) -> None:
    image = open_snapshot(saved.file).image()
    os.truncate(saved.file, 8192)
    with Region.reserve(image.nbytes, nbytes=image.nbytes) as region:
        with pytest.raises(RegionError, match="shorter than it was"):
            region.load(image)
        assert region.lost


def test_a_file_whose_lease_was_given_back_is_not_mapped_again(saved: Saved) -> None:
    image = open_snapshot(saved.file).image()
    with Region.reserve(image.nbytes, nbytes=image.nbytes) as region:
        region.load(image)
        region.leave = lambda _: region.close()
        attacked(saved.file, OVERWRITE)
    with (
        Region.reserve(image.nbytes, nbytes=image.nbytes) as region,
        pytest.raises(RegionError, match="restore it again"),
    ):
        region.load(image)


def test_a_closed_actor_holds_nobody_up(saved: Saved) -> None:
    saved.restored("file").close()
    gc.collect()
    start = time.monotonic()
    saved.file.write_bytes(b"")
    assert time.monotonic() - start < PATIENCE_S
    assert not rescue._rescuer._since
