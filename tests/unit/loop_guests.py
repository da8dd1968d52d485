"""Tiny guests for tests of the loop, a tool and a listener for them, and what holds afterwards."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from isthmus import Actor, Runtime
from isthmus.actor.loop import Loop
from isthmus.actor.reply import Piece
from tests.patience import PATIENCE_S
from tests.unit.wasm_guest import wasm

EMIT = '(import "isthmus" "emit" (func $emit (param i32 i32) (result i32)))'
TOOL = '(import "isthmus" "tool_call" (func $tool (param i32 i32 i32 i32) (result i32)))'
ASK = "(call $tool (i32.const 8) (i32.const 3) (i32.const 0) (i32.const 0))"
DATA = '(data (i32.const 8) "ask")'


def on_message(body: str, *parts: str) -> bytes:
    function = f'(func (export "on_message") (param $n i32) (result i32) {body})'
    return wasm(*parts, on_message=function)


QUICK = on_message("(i32.const 0)")
ECHO_LENGTH = on_message("(i32.sub (i32.const 0) (local.get $n))")
TRAP = on_message("(unreachable)")
SPIN = on_message("(loop $l (br $l)) (i32.const 0)")
ASKING = on_message(f"(drop {ASK}) (i32.const 0)", TOOL, DATA)
TALKS = on_message(
    "(drop (call $emit (i32.const 8) (i32.const 3)))"
    f"(drop {ASK}) (call $emit (i32.const 8) (i32.const 3))",
    TOOL,
    EMIT,
    DATA,
)
"""Says `ask`, calls its tool, says `ask` again; ends with what the last call says."""
_TALK = (
    "(loop $l (local.set $n (call $emit (i32.const 8) (i32.const 3)))"
    " (br_if $l (i32.ge_s (local.get $n) (i32.const 0)))) (local.get $n)"
)
TALKS_ON = on_message(_TALK, EMIT, DATA)
"""Says `ask` until it is stopped."""
ASKS_AND_TALKS_ON = on_message(f"(drop {ASK}) {_TALK}", TOOL, EMIT, DATA)
INIT = '(func (export "_initialize") {body})'


def loop_of(runtime: Runtime) -> Loop:
    return runtime._platform.loop


def on_loop(runtime: Runtime, work: Callable[[], Any]) -> Any:
    return runtime.device.compute_thread.run(work)


def require_still(runtime: Runtime) -> None:
    loop = loop_of(runtime)
    wait_until(lambda: (loop.places.n_running, loop.places.n_waiting) == (0, 0))
    assert on_loop(runtime, lambda: not loop._has_work())
    assert not loop.places._line


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


class Tool:
    """A tool that waits until it is let go."""

    def __init__(self) -> None:
        self.inside = threading.Semaphore(0)
        self.free = threading.Event()

    def __call__(self, _: bytes) -> bytes:
        self.inside.release()
        self.free.wait(PATIENCE_S)
        return b"answer"

    def wait(self, n: int = 1) -> None:
        for _ in range(n):
            assert self.inside.acquire(timeout=PATIENCE_S)


class Listener:
    """A `deliver` callback that keeps what it hears, and does something first."""

    def __init__(self, first: Callable[[Piece], object] = lambda piece: None) -> None:
        self.heard: list[Piece] = []
        self.ended = threading.Event()
        self._first = first

    def listen(self, actor: Actor) -> None:
        """Sends a message."""
        actor.stream("x", deliver=self)

    def __call__(self, piece: Piece) -> None:
        self.heard.append(piece)
        if not isinstance(piece, str):
            self.ended.set()
        self._first(piece)

    @property
    def outcome(self) -> Piece:
        assert self.ended.wait(PATIENCE_S)
        return self.heard[-1]
