"""Guests that want all memory there is: together they get what they may, and nobody is lost."""

from __future__ import annotations

import gc
import os
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import wasmtime

from isthmus import Actor, Capacity, Limits, Runtime
from isthmus.errors import Overloaded
from isthmus.units import MIB, WASM_PAGE
from tests.tiny_gguf import TinyLlama

EMIT = '(import "isthmus" "emit" (func $emit (param i32 i32) (result i32)))'


def guest_of(body: str, pages: int = 1, imports: str = "") -> bytes:
    return bytes(
        wasmtime.wat2wasm(f"""(module {imports} (memory (export "memory") {pages})
          (func (export "on_message") (param i32) (result i32) {body}))""")
    )


GREEDY = guest_of("""(local $at i32)
  (block $full
    (loop $grow
      (local.set $at (i32.shl (memory.size) (i32.const 16)))
      (br_if $full (i32.lt_s (memory.grow (i32.const 16)) (i32.const 0)))
      (memory.fill (local.get $at) (i32.const 7) (i32.const 1048576))
      (br $grow)))
  (i32.const 0)""")
"""Takes a MiB at a time and writes to it, until it gets no more."""
WRITES = guest_of("(memory.fill (i32.const 0) (i32.const 7) (i32.const 4194304)) (i32.const 0)", 64)
TALKS = guest_of(
    """(local $said i32)
    (loop $l
      (local.set $said (call $emit (i32.const 0) (i32.const 1048576)))
      (br_if $l (i32.eqz (local.get $said))))
    (local.get $said)""",
    16,
    EMIT,
)
"""Says a MiB after the other until it is refused, and returns why."""


def runtime_of(folder: Path, nbytes: int) -> Runtime:
    capacity = Capacity(memory_nbytes=nbytes, folder=folder)
    return Runtime(device="null", threads=1, capacity=capacity)


def used(runtime: Runtime) -> int:
    return runtime._platform.budget.used_nbytes


def test_guests_that_grow_get_what_all_may_have(tmp_path: Path) -> None:
    with runtime_of(tmp_path, 32 * MIB) as runtime:
        actors = [runtime.spawn(GREEDY, limits=Limits(memory_nbytes=24 * MIB)) for _ in range(4)]
        threads = [threading.Thread(target=actor.send, args=("x",)) for actor in actors]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 16 * MIB < used(runtime) <= 32 * MIB
        for actor in actors:
            actor.close()
        assert used(runtime) == 0


def test_images_count_and_are_given_back(tmp_path: Path) -> None:
    """What `undo` and forks freeze is memory that a guest has the host hold."""
    with runtime_of(tmp_path, 64 * MIB) as runtime:
        actor = runtime.spawn(WRITES, limits=Limits(on_failure="undo"))
        actor.send("x")
        assert used(runtime) == 4 * MIB
        actor.send("x")
        assert used(runtime) == 8 * MIB
        forks = actor.fork(3)
        gc.collect()
        assert used(runtime) == 4 * MIB * 4 + 4 * MIB
        for it in (actor, *forks):
            it.close()
        del actor, forks, it
        gc.collect()
        assert used(runtime) == 0


def test_what_cannot_be_frozen_is_refused_and_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "no folder"
    file.write_text("")
    with runtime_of(file / "x", 6 * MIB) as runtime:
        actor = runtime.spawn(WRITES, limits=Limits(on_failure="undo"))
        actor.send("x")
        with pytest.raises(Overloaded, match=r"Capacity\.memory_nbytes"):
            actor.send("x")
        with pytest.raises(Overloaded):
            actor.fork()
        assert actor.state == "idle"
        assert used(runtime) == 4 * MIB


def test_output_on_its_way_counts(tmp_path: Path) -> None:
    with runtime_of(tmp_path, 16 * MIB) as runtime:
        actor = runtime.spawn(TALKS)
        with pytest.raises(Overloaded):
            actor.send("x")
        assert 2 * MIB < actor.usage.output_nbytes < 8 * MIB
        assert used(runtime) == MIB


def test_little_output_is_free(tmp_path: Path) -> None:
    says = guest_of("(drop (call $emit (i32.const 0) (i32.const 65536))) (i32.const 0)", 1, EMIT)
    with runtime_of(tmp_path, WASM_PAGE) as runtime:
        assert len(runtime.spawn(says).send("x").data) == WASM_PAGE


def test_a_runtime_has_a_bound_that_nobody_gave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = TinyLlama(with_tokenizer=True).write(tmp_path / "tiny.gguf")
    monkeypatch.setattr("isthmus.runtime.opening.default_memory_nbytes", lambda: 64 * MIB)
    with Runtime(device="cpu", threads=1, capacity=Capacity(folder=tmp_path)) as runtime:
        assert runtime.memory_limit_nbytes == 64 * MIB
        model = runtime.load_model(path)
        assert runtime.memory_limit_nbytes == 64 * MIB - model.weights.nbytes
        [line] = [it for it in runtime.metrics().splitlines() if "memory_limit_bytes " in it[:30]]
        assert float(line.split()[1]) == runtime.memory_limit_nbytes
        guest = runtime.load_guest(guest_of("(i32.const 0)", pages=1025))
        with pytest.raises(Overloaded):
            runtime.spawn(guest)
        model.close()
        assert runtime.memory_limit_nbytes == 64 * MIB
    given = Capacity(memory_nbytes=8 * MIB, folder=tmp_path)
    with Runtime(device="cpu", threads=1, capacity=given) as runtime:
        runtime.load_model(path)
        assert runtime.memory_limit_nbytes == 8 * MIB


def idle_and_greedy(runtime: Runtime) -> tuple[Actor, bytes]:
    """An idle actor with 4 MiB that it wrote to, and a guest for which it would have to go."""
    actor = runtime.spawn(WRITES)
    actor.send("x")
    return actor, WRITES


def test_a_disk_that_is_nearly_full_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with runtime_of(tmp_path, 6 * MIB) as runtime:
        actor, other = idle_and_greedy(runtime)
        full = SimpleNamespace(total=1 << 40, used=1 << 40, free=1 << 20)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda _: full)
            with pytest.raises(Overloaded, match="are kept free"):
                runtime.spawn(other)
        assert actor.state == "idle"
        runtime.spawn(other)
        assert actor.state == "evicted"
        actor.send("x")


def test_a_disk_that_fills_while_it_is_written_loses_nobody(tmp_path: Path) -> None:
    with runtime_of(tmp_path, 6 * MIB) as runtime:
        actor, other = idle_and_greedy(runtime)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        guest = runtime.load_guest(other)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, hard))
        try:
            with pytest.raises(Overloaded, match="idle ones cannot be evicted"):
                runtime.spawn(guest)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert actor.state == "idle"
        actor.send("x")
        runtime.spawn(guest)
        assert actor.state == "evicted"
        assert len(list(tmp_path.glob("*/*"))) == 2  # the lock and one file: nothing half written


CHILD = f"""
import os, sys, threading
from pathlib import Path
sys.path[:0] = [{str(Path(__file__).parents[2])!r}]
from isthmus.errors import IsthmusError
from tests.attacks.test_memory import *

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    kinds = ("RssAnon:", "RssShmem:")
    return sum(int(it.split()[1]) * 1024 for it in lines if it.startswith(kinds))

LIMIT = 96 * MIB
peak, ended = [0], threading.Event()
def look():
    while not ended.wait(0.002):
        peak[0] = max(peak[0], resident())

with runtime_of(Path(sys.argv[1]), LIMIT) as runtime:
    limits = Limits(memory_nbytes=64 * MIB, on_failure="undo")
    guests = [runtime.load_guest(it) for it in (GREEDY, WRITES, TALKS)]
    before = resident()
    threading.Thread(target=look).start()
    def attack(guest):
        for _ in range(3):
            try:
                actor = runtime.spawn(guest, limits=limits)
                for _ in range(3):
                    actor.send("x")
                actor.fork(2)
            except IsthmusError:
                pass
    threads = [threading.Thread(target=attack, args=(it,)) for it in guests * 3]
    for it in threads: it.start()
    for it in threads: it.join()
    ended.set()
    print((peak[0] - before) / LIMIT)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc")
def test_what_the_process_holds_is_what_is_counted(tmp_path: Path) -> None:
    """Guests that grow, talk, are frozen and forked, all at once, against a bound of 96 MiB."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        stdout=subprocess.PIPE,
        timeout=300,
        check=True,
    )
    assert 0.3 < float(done.stdout) < 1.25
