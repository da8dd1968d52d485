"""What could have the loop, which drives every agent, stop, wait or lose count."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import wasmtime

from isthmus import Actor, Limits, Runtime, abi
from isthmus.actor.ask import Aside
from isthmus.actor.host_api.context import IN_LINE_NBYTES
from isthmus.actor.loop import Loop
from isthmus.device.compute_thread import ComputeThread
from isthmus.errors import Cancelled, DeviceFailed, GuestTrapped
from isthmus.units import MIB
from tests.attacks.proxy import Proxy, proxy_wat
from tests.attacks.test_agents import LOOP, QUICK, TRAP
from tests.patience import PATIENCE_S
from tests.tiny_gguf import TinyLlama


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


def n_messages(runtime: Runtime) -> tuple[int, int]:
    places = runtime._platform.loop.places
    return places.n_running, places.n_waiting


# ---------------------------------------------------------------------------------- Ctrl-C


class Interrupt:
    """Raises KeyboardInterrupt before a line of some functions: the n-th that is run."""

    def __init__(self, n: int, *functions: Any) -> None:
        self.left = n
        self._codes = {it.__code__ for it in functions}

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code not in self._codes:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self

    def during(self, work: Callable[[], object]) -> bool:
        """Whether it was raised while `work` ran."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            work()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False


def test_ctrl_c_at_any_line_of_a_send_loses_nothing(null_runtime: Runtime) -> None:
    def is_interrupted(n: int) -> bool:
        actor = null_runtime.spawn(QUICK)
        interrupt = Interrupt(n, Loop.send, Loop._post, ComputeThread.post)
        raised = interrupt.during(lambda: actor.send("x"))
        wait_until(lambda: actor.state != "running")
        assert actor.state == "closed" or actor.send("y").text == ""
        assert n_messages(null_runtime) == (0, 0)
        return raised

    n = 1
    while is_interrupted(n):
        n += 1
    assert n > 5


def test_ctrl_c_at_any_line_of_a_beginning_loses_nothing(null_runtime: Runtime) -> None:
    text = """(module (memory (export "memory") 1) (func (export "_initialize"))
      (func (export "on_message") (param i32) (result i32) (i32.const 0)))"""
    wasm, n = bytes(wasmtime.wat2wasm(text)), 1
    while Interrupt(n, Loop._post, ComputeThread.post).during(lambda: null_runtime.spawn(wasm)):
        assert null_runtime.spawn(wasm).send("y").text == ""
        n += 1
    assert n > 5


# ---------------------------------------------------------------------------------- races


def test_a_message_that_is_stopped_before_the_loop_has_it(
    null_runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor, enter = null_runtime.spawn(LOOP), null_runtime._platform.loop.places.enter

    def stopped_first(message: Any) -> None:
        enter(message)
        actor.stop()
        null_runtime._platform.device.compute_thread.run(lambda: None)  # the loop has looked

    monkeypatch.setattr(null_runtime._platform.loop.places, "enter", stopped_first)
    with pytest.raises(Cancelled):
        actor.send("x")
    assert n_messages(null_runtime) == (0, 0)


def test_a_thread_that_cannot_start_is_tried_again(
    null_runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor, thread = null_runtime.spawn(QUICK), null_runtime._platform.device.compute_thread

    def failing(_: object) -> None:
        raise DeviceFailed("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(thread, "post", failing)
        with pytest.raises(DeviceFailed):
            actor.send("x")
    assert n_messages(null_runtime) == (0, 0)
    assert actor.send("y").text == ""
    assert n_messages(null_runtime) == (0, 0)


def test_a_runtime_cuts_off_all_that_compute_for_ever_before_it_waits_for_one(
    null_runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise each would have its slices while it waits for those before it."""
    streams = [null_runtime.spawn(LOOP).stream("x") for _ in range(8)]
    wait_until(lambda: n_messages(null_runtime)[0] == len(streams))
    cut_off, close = [], Actor.close

    def closing(actor: Actor) -> None:
        cut_off.append([stream._message.is_cut_off for stream in streams])
        close(actor)

    monkeypatch.setattr(Actor, "close", closing)
    null_runtime.close()
    assert all(cut_off[0])
    assert all(stream.ended for stream in streams)


# ---------------------------------------------------------------------------------- what is kept


@pytest.mark.parametrize("keeps_error", [False, True])
def test_a_message_that_failed_leaves_no_memory(
    null_runtime: Runtime, *, keeps_error: bool
) -> None:
    budget, kept = null_runtime._platform.budget, []
    for _ in range(3):
        with null_runtime.spawn(TRAP, limits=Limits(on_failure="undo")) as actor:
            try:
                actor.send("x")
            except GuestTrapped as error:
                kept += [error] * keeps_error
    del actor
    gc.collect()
    wait_until(lambda: budget.used_nbytes == 0)


# ---------------------------------------------------------------------------------- long calls

LONG, AT = 2 * MIB, 8 * MIB
N_VOCAB = 20_000
"""More logits than are sorted in line."""


@pytest.fixture
def proxy(null_runtime: Runtime, tmp_path: Path) -> Proxy:
    """With a session, of handle 2, at 1 MiB."""
    path = TinyLlama(n_layer=1, n_vocab=N_VOCAB, with_tokenizer=True).write(tmp_path / "it.gguf")
    wasm = bytes(wasmtime.wat2wasm(proxy_wat().replace('"memory") 64', '"memory") 512')))
    limits = Limits(output_nbytes=None)
    proxy = Proxy(null_runtime, wasm, null_runtime.load_model(path), limits=limits)
    proxy.open_session(proxy.open_model(), MIB)
    assert proxy.call("prefill", 2, AT, 100) == 0
    proxy.write(64, b"a")
    assert proxy.call("tokenize", 1, 64, 1, 0, AT, 8) == 1
    proxy.write(128, b"echo")
    proxy.write(256, abi.SAMPLER.pack(1.0, 0, 0.9, 0.0, 1.0, 64, 7))
    proxy.write(512, abi.SAMPLER.pack(1.0, 40, 0.9, 0.0, 1.0, 64, 7))
    return proxy


CALLS = {
    "emit": ((AT, 100), (AT, LONG)),
    "reply": ((AT, 100), (AT, LONG)),
    "log": ((1, AT, 100), (1, AT, LONG)),
    "random": ((AT, 100), (AT, MIB)),
    "detokenize": ((1, AT, 100, 0, 64, 0), (1, AT, 100_000, 0, 64, 0)),
    "sample": ((2, 512), (2, 256)),
    "message_read": ((AT, 0), (AT, LONG)),
}
"""Arguments of a short call, and of a long one."""


@pytest.mark.parametrize("name", CALLS)
def test_a_long_host_call_is_not_done_by_the_loop(proxy: Proxy, name: str) -> None:
    body, (short, long) = proxy.actor.body, CALLS[name]
    function = body._api.functions()[name]
    assert isinstance(function(*short), int)
    body.context.message.data = bytes(IN_LINE_NBYTES + 1)
    ask = function(*long)
    assert isinstance(ask, Aside)
    assert proxy.call(name, *long) == ask.work() or name in ("sample", "message_read")


def test_much_text_is_delivered_in_turns(proxy: Proxy) -> None:
    """Between two of them everybody else goes on."""
    message, told = proxy.actor.body.context.message, []
    message.tell = told.append
    for _ in range(40):
        message.emit(b"x" * (MIB // 4))
    message.end(Cancelled("it ends"))
    n_turns = 1
    while message.deliver():
        n_turns += 1
    assert n_turns > 5
    assert "".join(told[:-1]) == "x" * 10 * MIB
    assert isinstance(told[-1], Cancelled)
