"""What one loop for all agents has to show, on a device that computes nothing."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isthmus import Capacity, Limits, Runtime
from isthmus.actor.stream import Stream
from isthmus.benchmarks.null_model import write_null_model
from isthmus.device.null import NullDevice
from isthmus.errors import (
    Cancelled,
    DeadlineExceeded,
)
from isthmus.model import Model
from tests.patience import PATIENCE_S
from tests.unit.wasm_guest import wasm

N_VOCAB = 512
IMPORTS = (
    '(import "isthmus" "tool_call" (func $tool (param i32 i32 i32 i32) (result i32)))',
    '(import "isthmus" "message_read" (func $read (param i32 i32) (result i32)))',
    '(import "isthmus" "reply" (func $reply (param i32 i32) (result i32)))',
)


def guest(body: str) -> bytes:
    function = f'(func (export "on_message") (param $n i32) (result i32) {body})'
    return wasm(*IMPORTS, '(data (i32.const 8) "ask")', on_message=function)


ASK = "(drop (call $tool (i32.const 8) (i32.const 3) (i32.const 0) (i32.const 0)))"
ECHO = guest(
    "(drop (call $read (i32.const 64) (local.get $n))) (call $reply (i32.const 64) (local.get $n))"
)
ASKING = guest(f"{ASK} (i32.const 0)")
TRAPPING = guest(f"{ASK} (unreachable)")
SPINNING = guest("(loop $l (br $l)) (i32.const 0)")


def null_device(runtime: Runtime) -> NullDevice:
    assert isinstance(runtime.device, NullDevice)
    return runtime.device


def open_runtime(tmp_path: Path, **capacity: Any) -> Runtime:
    capacity = {"folder": tmp_path / "evicted", **capacity}
    return Runtime(device="null", threads=1, capacity=Capacity(**capacity))


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


def require_still(runtime: Runtime) -> None:
    places = runtime._platform.loop.places
    wait_until(lambda: (places.n_running, places.n_waiting) == (0, 0))


class Talkers:
    """Agents whose next token is known: the device leaves the logits that are written here."""

    def __init__(self, runtime: Runtime, model: Model, n: int) -> None:
        limits = Limits(memory_nbytes=1 << 30)
        self._seed = runtime.spawn(
            "bench", models={"default": model}, args={"n_ctx": 256}, limits=limits, seed=0
        )
        self._seed.send("tokens 1")
        self.actors = self._seed.fork(n)
        self.best = [1 + 7 * i % (N_VOCAB - 1) for i in range(n)]
        for actor, token in zip(self.actors, self.best, strict=True):
            ptr = actor.sessions[0].logits_ptr
            with actor.region.view(ptr, 4 * N_VOCAB) as view:
                np.frombuffer(view.memory, np.float32)[:] = 0.0
                np.frombuffer(view.memory, np.float32)[token] = 1.0

    def ask(self, n_tokens: int) -> list[Stream]:
        return [actor.stream(f"decode {n_tokens}") for actor in self.actors]

    def check(self, streams: list[Stream], n_tokens: int) -> None:
        """Waits for all; each has decoded its own token."""
        for actor, token, stream in zip(self.actors, self.best, streams, strict=True):
            list(stream)
            assert actor.sessions[0].tokens.tolist() == [1] + [token] * n_tokens


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    with open_runtime(tmp_path, running=400) as runtime:
        yield runtime


@pytest.fixture
def model(runtime: Runtime, tmp_path: Path) -> Model:
    return runtime.load_model(write_null_model(tmp_path / "null.gguf", N_VOCAB), exact=False)


# ---------------------------------------------------------------------------------- many


def test_a_runaway_among_those_that_decode(runtime: Runtime, model: Model) -> None:
    talkers = Talkers(runtime, model, 64)
    null_device(runtime).step_s = 0.001
    with runtime.spawn(SPINNING) as spinning:
        runaway = spinning.stream("x")
        talkers.check(talkers.ask(20), 20)
        assert not runaway.ended
        spinning.cancel()
        with pytest.raises(Cancelled):
            list(runaway)
    with runtime.spawn(SPINNING) as spinning:
        streams = talkers.actors[0].stream("truncate 0"), spinning.stream("x", deadline_s=0.1)
        list(streams[0])
        with pytest.raises(DeadlineExceeded):
            list(streams[1])
    require_still(runtime)


def test_tools_that_ask_another_actor_though_only_one_message_runs(tmp_path: Path) -> None:
    with open_runtime(tmp_path, running=1) as runtime:
        other = runtime.spawn(ECHO)
        lock = threading.Lock()

        def ask(_: bytes) -> bytes:
            time.sleep(0.05)
            with lock:  # an actor takes one message at a time
                return other.send("hello").data

        actors = [runtime.spawn(ASKING, tools={"ask": ask}) for _ in range(8)]
        for stream in [actor.stream("x") for actor in actors]:
            list(stream)
        assert other.n_messages == 8
        require_still(runtime)


def test_tools_that_ask_each_other_in_chains(tmp_path: Path) -> None:
    with open_runtime(tmp_path, running=1) as runtime:
        chains = []
        for _ in range(4):
            actor = runtime.spawn(ECHO)
            for _ in range(5):
                actor = runtime.spawn(
                    ASKING, tools={"ask": lambda _, actor=actor: actor.send("x").data}
                )
            chains.append(actor)
        for stream in [actor.stream("x") for actor in chains]:
            list(stream)
        assert all(actor.n_messages == 1 for actor in runtime.actors)
        require_still(runtime)


@pytest.mark.slow
def test_ten_thousand_actors_and_a_thousand_messages(tmp_path: Path) -> None:
    with open_runtime(tmp_path, running=64, waiting=1000) as runtime:
        compiled = runtime.load_guest(ECHO)
        before = threading.active_count()
        actors = [runtime.spawn(compiled) for _ in range(10_000)]
        streams = [actor.stream(f"message {i}") for i, actor in enumerate(actors[::10])]
        assert threading.active_count() <= before + 16
        for i, stream in enumerate(streams):
            list(stream)
            assert stream.reply.text == f"message {i}"
        require_still(runtime)


def test_spawning_looks_at_all_actors_seldom(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What closed ones have used is counted all the same."""
    sweep, n_sweeps = runtime._roster._sweep, 0

    def counted() -> None:
        nonlocal n_sweeps
        n_sweeps += 1
        sweep()

    monkeypatch.setattr(runtime._roster, "_sweep", counted)
    compiled = runtime.load_guest(ECHO)
    for i in range(400):
        actor = runtime.spawn(compiled)
        actor.send("x")
        if i % 2:
            actor.close()
    assert n_sweeps < 10
    assert len(runtime.actors) == 200
    assert len(runtime._roster._actors) <= 2 * 200 + 16
    assert runtime.counters().host_calls == 2 * 400


def test_suspended_messages_have_no_thread(runtime: Runtime, model: Model) -> None:
    few, many = Talkers(runtime, model, 3), Talkers(runtime, model, 300)
    device, threads = null_device(runtime), {}
    for talkers in (few, many):
        device.step_s = 0.05
        streams = talkers.ask(40)
        wait_until(lambda: all(it.sessions[0].n_tokens > 1 for it in talkers.actors))  # noqa: B023
        threads[len(streams)] = threading.active_count()
        assert not any(stream.ended for stream in streams)
        device.step_s = 0.0
        talkers.check(streams, 40)
    assert threads[300] <= threads[3] + 2


def test_only_tools_have_threads(runtime: Runtime, model: Model) -> None:
    free, inside = threading.Event(), threading.Semaphore(0)

    def ask(_: bytes) -> bytes:
        inside.release()
        free.wait(PATIENCE_S)
        return b""

    talkers, compiled = Talkers(runtime, model, 100), runtime.load_guest(ASKING)
    asking = [runtime.spawn(compiled, tools={"ask": ask}) for _ in range(20)]
    before = threading.active_count()
    streams = [actor.stream("x") for actor in asking]
    for _ in asking:
        assert inside.acquire(timeout=PATIENCE_S)
    null_device(runtime).step_s = 0.01
    decoding = talkers.ask(4)
    # one that waits for the function, and one that the function may keep for ever
    assert threading.active_count() <= before + 2 * len(asking) + 2
    talkers.check(decoding, 4)
    free.set()
    for stream in streams:
        list(stream)


# ---------------------------------------------------------------------------------- processes

PRELUDE = """
import json, os, signal, sys, threading
from isthmus import Runtime
def guest(n):
    return bytes.fromhex(sys.argv[n])
def interrupt():
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
"""
INTERRUPTED = {
    "send": "interrupt(); runtime.spawn(guest(1)).send('x')",
    "stream": "interrupt(); list(runtime.spawn(guest(1)).stream('x'))",
    "spawn": "interrupt(); runtime.spawn(guest(2))",
}
BEGINS_AND_SPINS = wasm('(func (export "_initialize") (loop $l (br $l)))')


def run_script(script: str, *guests: bytes) -> int:
    command = [sys.executable, "-c", PRELUDE + script, *(it.hex() for it in guests)]
    return subprocess.run(command, timeout=PATIENCE_S, check=False).returncode


@pytest.mark.slow
@pytest.mark.parametrize("where", INTERRUPTED)
def test_ctrl_c(where: str) -> None:
    """It ends the guest, is raised where somebody waits, and the runtime closes as ever."""
    script = f"""
with Runtime(device="null", threads=1) as runtime:
    quick = runtime.spawn(guest(3))
    try:
        {INTERRUPTED[where]}
    except KeyboardInterrupt:
        quick.send("x")
        sys.exit(7)
"""
    assert run_script(script, SPINNING, BEGINS_AND_SPINS, ECHO) == 7


@pytest.mark.slow
def test_deep_recursion_is_an_error() -> None:
    """In a tool, in a callback, and in a host function, which all run on stacks of their own."""
    script = """
def deep(*_):
    json.loads("[" * 100_000)
with Runtime(device="null", threads=1) as runtime:
    asking, quick = runtime.spawn(guest(1), tools={"ask": deep}), runtime.spawn(guest(2))
    asking.send("x")
    ended = threading.Event()
    def deliver(piece):
        ended.set()
        deep()
    stream = quick.stream("x", deliver=deliver)
    assert ended.wait(60)
    reading = runtime.spawn(guest(2))
    api = reading.body._api
    reading.instance.handlers = [deep for _ in reading.instance.handlers]
    try:
        reading.send("x")
    except RecursionError:
        pass
    quick.send("x", deadline_s=60)
    sys.exit(7)
"""
    assert run_script(script, ASKING, ECHO) == 7
