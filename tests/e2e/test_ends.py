"""Messages that are ended at random moments, whatever they wait for: each ends as documented, and
nobody else notices."""

from __future__ import annotations

import gc
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from isthmus import Actor, Limits, Runtime
from isthmus.actor.reply import Piece, Reply
from isthmus.actor.stream import Stream
from isthmus.errors import Cancelled, ContextFull, DeadlineExceeded, GuestTrapped
from tests.e2e.test_loop import (
    ASKING,
    PATIENCE_S,
    SPINNING,
    TRAPPING,
    null_device,
    open_runtime,
    require_still,
    wait_until,
)
from tests.tiny_gguf import TinyModel


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


ENDS = ("nothing", "nothing", "deadline", "stop", "cancel", "close", "abandon", "close the stream")
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
        elif self.end == "abandon":
            self.stream.abandon()

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
        llama = TinyModel(with_tokenizer=True)
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
