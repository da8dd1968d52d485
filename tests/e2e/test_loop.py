"""What one loop for all agents has to show, on a device that computes nothing."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isthmus import Actor, Capacity, Limits, Runtime
from isthmus.actor.reply import Piece, Reply
from isthmus.actor.stream import Stream
from isthmus.benchmarks.null_model import write_null_model
from isthmus.device.null import NullDevice
from isthmus.errors import (
    Cancelled,
    ContextFull,
    DeadlineExceeded,
    GuestTrapped,
)
from isthmus.model import Model
from tests.tiny_gguf import TinyModel
from tests.unit.wasm_guest import wasm

PATIENCE_S = 120.0
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


def test_suspended_messages_have_no_thread(runtime: Runtime, model: Model) -> None:
    few, many = Talkers(runtime, model, 3), Talkers(runtime, model, 300)
    device, threads = null_device(runtime), {}
    for talkers in (few, many):
        device.step_s = 0.05
        streams = talkers.ask(4)
        wait_until(lambda: all(it.sessions[0].n_tokens > 1 for it in talkers.actors))  # noqa: B023
        threads[len(streams)] = threading.active_count()
        assert not any(stream.ended for stream in streams)
        device.step_s = 0.0
        talkers.check(streams, 4)
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
    assert threading.active_count() <= before + len(asking) + 2
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


# ---------------------------------------------------------------------------------- random ends


class Listener:
    """Takes what comes of a message."""

    def __init__(self) -> None:
        self.outcome: Piece | None = None
        self.ended = threading.Event()

    def __call__(self, piece: Piece) -> None:
        if not isinstance(piece, str):
            assert self.outcome is None
            self.outcome = piece
            self.ended.set()


ENDS = ("nothing", "nothing", "deadline", "stop", "cancel", "close", "drop", "close the stream")
WAITS = {
    "step": "decode 40",
    "prompt in a pack": "prefill 20",
    "long prompt": "prefill 900",
    "embedding": "a cat sleeps " * 20,
    "compute": "rows=64 k=64 n=64 repeat=200",
    "tool": "x",
    "trap": "x",
    "text aside": "an isthmus is a land bridge. " * 1000,
    "slow lane": "x",
}


@dataclass
class Case:
    """One message, what it waits for, and how it is ended."""

    waits_for: str
    end: str
    actor: Actor
    listener: Listener = field(default_factory=Listener)
    stream: Stream | None = None
    n_messages: int = 0

    def begin(self, rng: random.Random) -> None:
        message = WAITS[self.waits_for]
        if self.waits_for == "long prompt":
            message = f"prefill {rng.randint(300, 900)}"
        deadline_s = rng.uniform(0.0, 0.05) if self.end == "deadline" else None
        if self.waits_for == "slow lane" and self.end == "nothing":
            deadline_s = 0.05  # it would never end
        self.n_messages = self.actor.n_messages
        self.stream = self.actor.stream(message, deadline_s=deadline_s, deliver=self.listener)

    def do(self) -> None:
        """Ends it."""
        assert self.stream is not None
        if self.end == "stop" and self.waits_for != "slow lane":  # whose guest does not listen
            self.actor.stop()
        elif self.end in ("stop", "cancel"):
            self.actor.cancel()
        elif self.end == "close":
            self.actor.close()
        elif self.end == "close the stream":
            self.stream.close()
        elif self.end == "drop":
            self.stream = None

    def check(self) -> None:
        """What came of it, and what its actor is now, as `Limits.on_failure` says."""
        assert self.listener.ended.wait(PATIENCE_S), f"{self.waits_for}, {self.end}: it hangs"
        outcome, policy = self.listener.outcome, self.actor.limits.on_failure
        what = f"{self.waits_for}, {self.end}, {policy}: {outcome!r}"
        natural: dict[str, Any] = {
            "trap": GuestTrapped,
            "text aside": (Reply, ContextFull),
            "slow lane": DeadlineExceeded,
        }
        usual = natural.get(self.waits_for, Reply)
        ended = DeadlineExceeded if self.end == "deadline" else Cancelled
        assert isinstance(outcome, usual) or (
            self.end != "nothing" and isinstance(outcome, ended)
        ), what
        if self.end == "close":
            assert self.actor.state == "closed", what
        elif isinstance(outcome, Reply):
            assert self.actor.state == "idle", what
        elif policy == "undo":
            assert self.actor.state in ("idle", "evicted"), what
            if not isinstance(outcome, Cancelled | ContextFull):
                assert self.actor.n_messages == self.n_messages, what


class Siege:
    """Rounds of messages that wait for all that there is, and are ended at random moments."""

    def __init__(self, runtime: Runtime, folder: Path, seed: int) -> None:
        self._rng = random.Random(seed)
        self._runtime = runtime
        llama = (
            TinyModel(with_tokenizer=True, overrides={})
            if False
            else TinyModel(with_tokenizer=True)
        )
        self._llama = runtime.load_model(llama.write(folder / "llama.gguf"), exact=False)
        bert = TinyModel("bert", with_tokenizer=True, quantisation="F16")
        self._bert = runtime.load_model(bert.write(folder / "bert.gguf"))
        guests = {"tool": ASKING, "trap": TRAPPING, "slow lane": SPINNING}
        self._guests: dict[str, Any] = {
            **{name: runtime.load_guest(module) for name, module in guests.items()},
            "embedding": "embed",
            "compute": "gemm",
            "text aside": "chat",
        }
        self._idle: list[tuple[str, Actor]] = []

    def round(self, n: int) -> None:
        cases = [self._case(self._rng.choice(tuple(WAITS))) for _ in range(n)]
        for case in cases:
            if self._rng.random() < 0.2:
                case.actor.evict()
            case.begin(self._rng)
            if self._rng.random() < 0.3:
                time.sleep(self._rng.uniform(0.0, 0.003))
        for case in self._rng.sample(cases, n):
            time.sleep(self._rng.choice((0.0, self._rng.uniform(0.0, 0.005))))
            case.do()
        for case in cases:
            case.check()
            if case.actor.state != "closed":
                case.actor.close() if self._rng.random() < 0.3 else self._idle.append(
                    (case.waits_for, case.actor)
                )
        require_still(self._runtime)

    def _case(self, waits_for: str) -> Case:
        end = self._rng.choice(ENDS)
        for i, (kind, actor) in enumerate(self._idle):
            if kind == waits_for:
                del self._idle[i]
                return Case(waits_for, end, self._rewound(waits_for, actor))
        return Case(waits_for, end, self._rewound(waits_for, self._spawn(waits_for)))

    def _rewound(self, waits_for: str, actor: Actor) -> Actor:
        if self._guests.get(waits_for, "bench") == "bench":
            actor.send("truncate 0")
            actor.send("tokens 1")
        return actor

    def _spawn(self, waits_for: str) -> Actor:
        def ask(_: bytes) -> bytes:
            time.sleep(0.005)
            return b"answer"

        model = self._bert if waits_for == "embedding" else self._llama
        args = {"input": "text", "output": "f32"} if waits_for == "embedding" else {"n_ctx": 1024}
        policy = self._rng.choice(("undo", "keep", "close"))
        return self._runtime.spawn(
            self._guests.get(waits_for, "bench"),
            models={"default": model},
            tools={"ask": ask},
            args={} if waits_for in ("compute", "tool", "trap", "slow lane") else args,
            limits=Limits(on_failure=policy),
        )


def besiege(tmp_path: Path, seed: int, n_rounds: int) -> None:
    with open_runtime(tmp_path, running=6, memory_nbytes=1 << 30) as runtime:
        siege = Siege(runtime, tmp_path, seed)
        null_device(runtime).step_s = 0.001
        for _ in range(n_rounds):
            siege.round(24)
        for actor in runtime.actors:
            actor.close()
        wait_until(lambda: gc.collect() >= 0 and runtime._platform.budget.used_nbytes == 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_messages_that_end_at_random_moments(tmp_path: Path, seed: int) -> None:
    besiege(tmp_path, seed, 3)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10, 20))
def test_messages_that_end_at_random_moments_for_long(tmp_path: Path, seed: int) -> None:
    besiege(tmp_path, seed, 60)
