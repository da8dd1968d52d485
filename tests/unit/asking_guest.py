"""A guest whose host function waits, and a driver for its calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from isthmus.wasm import SLICE_OVER, Call, Instance
from tests.patience import PATIENCE_S
from tests.unit.wasm_guest import wasm

ASK = '(import "isthmus" "session_close" (func $ask (param i32) (result i32)))'
GUEST = wasm(
    ASK,
    '(import "isthmus" "clock_ns" (func $now (result i64)))',
    '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))',
    '(func $sum (export "sum") (param $n i32) (result i32) (local $sum i32)'
    " (loop $l (local.set $sum (i32.add (local.get $sum) (call $ask (local.get $n))))"
    "  (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))"
    " (local.get $sum))",
    '(func (export "ask") (param i32) (result i32) (call $ask (local.get 0)))',
    f'(func (export "many") {"(drop (call $ask (i32.const 1)))" * 300})',
    '(func (export "now") (i64.store (i32.const 0) (call $now)))',
    '(func (export "leave") (call $exit (i32.const 3)))',
    '(func (export "spin") (loop $l (br $l)))',
    '(func (export "trap") (param i32) (drop (call $ask (local.get 0))) unreachable)',
    '(func $deep (export "deep") (param i32) (result i32)'
    " (if (i32.eqz (local.get 0)) (then (return (call $ask (i32.const 0)))))"
    " (i32.add (i32.const 1) (call $deep (i32.sub (local.get 0) (i32.const 1)))))",
)


class Asked:
    """What a handler waits for; whoever drives the coroutine gets it, and sends the answer."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __await__(self) -> Generator[Asked, int, int]:
        return (yield self)


async def ask(number: int) -> int:
    return await Asked(number)


Running = Coroutine[Any, Any, int]


def begun(instance: Instance, name: str, *args: int, **options: Any) -> tuple[Call, Running]:
    call = instance.begin(name, *args, **options)
    return call, call.run()


def asked_by(running: Running, answer: int | None = None) -> Asked:
    """What the guest asks next; a busy machine may have used up its slice before."""
    while (asked := running.send(answer)) is SLICE_OVER:
        answer = None
    assert isinstance(asked, Asked)
    return asked


def result_of(running: Running, send: int | None = None) -> int:
    """Drives a coroutine that only has its slices cut, or needs one answer, to its end."""
    try:
        while running.send(send) is SLICE_OVER:
            send = None
    except StopIteration as returned:
        return int(returned.value)
    raise AssertionError("it waits again")


def in_thread(work: Callable[[], Any]) -> Any:
    """What `work` returns in another thread."""
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(work()))
    thread.start()
    thread.join(PATIENCE_S)
    return got[0]
