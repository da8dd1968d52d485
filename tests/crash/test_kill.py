"""kill -9 at random moments: what is there afterwards is the old snapshot or the new one, whole.

A child process writes snapshots and collects a store without a pause, and is killed. Children are
forked, not started, so that a thousand of them take minutes. What they write is synthetic memory,
since what is tested is writing; `test_actors` does the same with whole actors in new processes.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from isthmus import Limits
from isthmus.snapshot import CHUNK_NBYTES, Draft, MemorySource, Store, open_snapshot, save_file
from isthmus.snapshot.chunk import hash_chunks
from isthmus.snapshot.records import ActorRecord, DeviceRecord, GuestRecord, LimitsRecord
from isthmus.units import HostAddr

N_CHUNKS = 256
NAMES = ("a", "b", "c")


class Memory:
    """Synthetic linear memory of 4 MiB, whose contents a number decides."""

    def __init__(self) -> None:
        self.bytes = (ctypes.c_ubyte * (N_CHUNKS * CHUNK_NBYTES + CHUNK_NBYTES))()
        self.base = HostAddr(-(-ctypes.addressof(self.bytes) // CHUNK_NBYTES) * CHUNK_NBYTES)

    def draft(self, number: int) -> Draft:
        """A snapshot in which every third chunk differs from number to number."""
        for chunk in range(0, N_CHUNKS, 2):
            words = (ctypes.c_uint64 * (CHUNK_NBYTES // 8)).from_address(
                self.base + chunk * CHUNK_NBYTES
            )
            words[0], words[1] = chunk + 1, number if chunk % 3 == 0 else 0
        nbytes = N_CHUNKS * CHUNK_NBYTES
        chunks = hash_chunks(self.base, nbytes, range(N_CHUNKS))
        return Draft.make(
            MemorySource(self.base, nbytes, chunks),
            {"guest": ("U8", b"guest")},
            format_version=2,
            isthmus="test",
            created_ns=number,
            parent=None,
            guest=GuestRecord("test", "0" * 64),
            globals=(),
            models=(),
            handles=(),
            sessions=(),
            actor=ActorRecord((), (), LimitsRecord(**asdict(Limits())), "0", 0, 0, 0, 0, 0),
            device=DeviceRecord("test", "test", "0" * 64, (), 1),
        )


def killed_after(seconds: float, work: Callable[[], None]) -> None:
    """Runs `work` again and again in a forked child, and kills it."""
    child = os.fork()
    if child == 0:
        try:
            while True:
                work()
        except BaseException:
            os._exit(1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the child failed before it was killed"


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".partial")]


def file_is_old_or_new(folder: Path, rounds: int) -> int:
    memory, path = Memory(), folder / "agent.safetensors"
    save_file(memory.draft(0), path)
    numbers, n_left = {0}, 0
    for turn in range(rounds):
        first = turn * 100 + 1

        def work(state: list[int] = [first]) -> None:  # noqa: B006 - the child's own copy
            save_file(memory.draft(state[0]), path)
            state[0] += 1

        killed_after(random.uniform(0.0, 0.05), work)
        n_left += len(leftovers(folder))
        found = open_snapshot(path)
        found.verify()
        number = found.manifest.created_ns
        assert number in numbers or first <= number < first + 100
        numbers = {number}
    save_file(memory.draft(1), path)
    assert os.listdir(folder) == ["agent.safetensors"]
    return n_left


def store_is_old_or_new(folder: Path, rounds: int) -> int:
    memory, n_left = Memory(), 0
    store = Store(folder / "store")
    for number, name in enumerate(NAMES):
        store.save(memory.draft(number), name)
    before = {name: store.open(name).manifest.created_ns for name in NAMES}
    for turn in range(rounds):
        first = turn * 100 + 10

        def work(state: list[int] = [first]) -> None:  # noqa: B006 - the child's own copy
            store.save(memory.draft(state[0]), NAMES[state[0] % len(NAMES)])
            state[0] += 1
            if state[0] % 2:
                store.gc()

        killed_after(random.uniform(0.0, 0.06), work)
        n_left += len(leftovers(store.folder))
        for name in NAMES:
            found = store.open(name)
            found.verify()
            number = found.manifest.created_ns
            assert number == before[name] or first <= number < first + 100
            before[name] = number
    store.gc()
    used = {digest for name in NAMES for digest in store.open(name).chunks.values()}
    stored = sum(path.stat().st_size for path in (store.folder / "packs").iterdir())
    assert stored < 3 * len(used) * CHUNK_NBYTES
    names = {name for name in os.listdir(store.folder) if not name.startswith("index.sqlite")}
    assert names == {"lock", "packs", "snapshots"}
    assert leftovers(folder) == []
    assert sorted(store.names()) == sorted(NAMES)
    return n_left


def test_file(tmp_path: Path) -> None:
    file_is_old_or_new(tmp_path, 15)


def test_store(tmp_path: Path) -> None:
    store_is_old_or_new(tmp_path, 15)


@pytest.mark.long
def test_file_600_times(tmp_path: Path) -> None:
    assert file_is_old_or_new(tmp_path, 600) > 0, "no kill came while a file was being written"


@pytest.mark.long
def test_store_600_times(tmp_path: Path) -> None:
    assert store_is_old_or_new(tmp_path, 600) > 0, "no kill came while a file was being written"


ACTOR = """
import sys, itertools
from isthmus import Runtime
with Runtime(device="cpu", threads=1) as runtime:
    model = runtime.load_model(sys.argv[1])
    actor = runtime.spawn("bench", models={"default": model}, args=["n_ctx=256"], seed=1)
    print("ready", flush=True)
    for n in itertools.count(1):
        actor.send(f"prefill 2 {n}" if n % 100 else "truncate 0")
        actor.snapshot(sys.argv[2])
        actor.snapshot(sys.argv[3], name="agent")
"""


@pytest.mark.long
def test_actors(tiny: Path, tmp_path: Path) -> None:
    from isthmus import Runtime

    store, file = tmp_path / "store", tmp_path / "agent.safetensors"
    store.mkdir()
    with Runtime(device="cpu", threads=1) as runtime:
        model = runtime.load_model(tiny)
        for _ in range(40):
            process = subprocess.Popen(
                [sys.executable, "-c", ACTOR, tiny, file, store], stdout=subprocess.PIPE
            )
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(random.uniform(0.03, 0.2))
            process.kill()
            process.wait()
            process.stdout.close()
            for path in (file, store / "snapshots" / "agent.safetensors"):
                if path.exists():
                    with runtime.restore(path, models={"default": model}) as actor:
                        assert actor.send("sequence 1").text.isdecimal()
