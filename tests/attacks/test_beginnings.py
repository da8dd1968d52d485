"""Guests that do not begin: whoever spawns them, closes the runtime or stops the server goes on."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import wasmtime

from isthmus import Capacity, Limits, Runtime
from isthmus.errors import ActorClosed, Cancelled, DeadlineExceeded
from tests.server.conftest import Serving
from tests.tiny_gguf import TinyLlama

HANG_S = 60
"""Seconds after which a test is taken to hang; nothing here is meant to take that long."""
IMPORTS = """
  (import "isthmus" "tool_call" (func $tool (param i32 i32 i32 i32) (result i32)))
  (import "isthmus" "model_open" (func $open (param i32 i32) (result i32)))
  (import "isthmus" "session_nbytes" (func $nbytes (param i32 i32) (result i64)))
  (import "isthmus" "session_open" (func $session (param i32 i32 i32 i32) (result i32)))
  (import "isthmus" "prefill" (func $prefill (param i32 i32 i32) (result i32)))
  (import "isthmus" "truncate" (func $truncate (param i32 i32) (result i32)))
  (import "isthmus" "log" (func $log (param i32 i32 i32) (result i32)))
  (import "isthmus" "random" (func $random (param i32 i32) (result i32)))
"""


def guest_of(initialize: str, extra: str = "") -> bytes:
    """A guest whose `_initialize` does this; it answers every message."""
    return bytes(
        wasmtime.wat2wasm(f"""(module {IMPORTS} (memory (export "memory") 64)
          (data (i32.const 0) "defaultask") {extra}
          (func (export "_initialize") {initialize})
          (func (export "on_message") (param i32) (result i32) (i32.const 0)))""")
    )


QUICK = guest_of("")
ENDLESS = guest_of("(loop $l (br $l))")
PREFILL = "(drop (call $prefill (local.get $s) (i32.const 4096) (i32.const 120)))"
PREFILLS_ONCE = f"""(local $s i32)
  (local.set $s (call $session (call $open (i32.const 0) (i32.const 7)) (i32.const 256)
    (i32.const 65536) (i32.const 4096000)))
  {PREFILL}"""
PREFILLS = f"""{PREFILLS_ONCE}
  (loop $l {PREFILL} (drop (call $truncate (local.get $s) (i32.const 0))) (br $l))"""
HOSTILE = {
    "loops": "(loop $l (br $l))",
    "grows": "(loop $l (drop (memory.grow (i32.const 1))) (br $l))",
    "fills": "(loop $l (memory.fill (i32.const 0) (i32.const 1) (i32.const 4000000)) (br $l))",
    "calls tools": "(loop $l (drop (call $tool (i32.const 7) (i32.const 3) (i32.const 0)"
    " (i32.const 0))) (br $l))",
    "draws": "(loop $l (drop (call $random (i32.const 0) (i32.const 1048576))) (br $l))",
    "logs": "(loop $l (drop (call $log (i32.const 0) (i32.const 0) (i32.const 1))) (br $l))",
    "prefills": PREFILLS,
}


@pytest.fixture
def tiny_path(tmp_path: Path) -> Path:
    return TinyLlama(with_tokenizer=True).write(tmp_path / "tiny.gguf")


@pytest.mark.parametrize("how", HOSTILE)
def test_a_guest_that_never_begins_is_cut_off(how: str, tiny_path: Path) -> None:
    with Runtime(device="cpu", threads=1, capacity=Capacity(initialize_s=0.3)) as runtime:
        model = runtime.load_model(tiny_path)
        start = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            runtime.spawn(
                guest_of(HOSTILE[how]), models={"default": model}, tools={"ask": lambda _: b""}
            )
        assert time.monotonic() - start < HANG_S
        assert runtime.spawn(QUICK).send("x")
        assert runtime._platform.budget.used_nbytes == 64 << 16


def test_a_start_function_has_the_same_deadline() -> None:
    wasm = wasmtime.wat2wasm("""(module (memory (export "memory") 1)
      (func $s (loop $l (br $l))) (start $s)
      (func (export "on_message") (param i32) (result i32) (i32.const 0)))""")
    capacity = Capacity(initialize_s=0.2)
    with Runtime(device="null", threads=1, capacity=capacity) as runtime:
        guest = runtime.load_guest(bytes(wasm))
        with pytest.raises(DeadlineExceeded):
            runtime.spawn(guest)


def test_the_stricter_of_both_deadlines_holds() -> None:
    with Runtime(device="null", threads=1) as runtime:
        guest = runtime.load_guest(ENDLESS)
        with pytest.raises(DeadlineExceeded):
            runtime.spawn(guest, limits=Limits(deadline_s=0.2))


def test_closing_ends_whatever_begins() -> None:
    """Capacity gives them an hour, and `close` does not wait that long."""
    runtime = Runtime(device="null", threads=1, capacity=Capacity(initialize_s=3600))
    guest = runtime.load_guest(ENDLESS)
    with ThreadPoolExecutor(8) as pool:
        spawned = [pool.submit(runtime.spawn, guest) for _ in range(8)]
        while len(runtime._platform.beginnings._under_way) < 8:
            time.sleep(0.001)
        closing = threading.Thread(target=runtime.close)
        closing.start()
        closing.join(HANG_S)
        assert not closing.is_alive()
        for future in spawned:
            assert isinstance(future.exception(HANG_S), Cancelled | ActorClosed)
    with pytest.raises(ActorClosed):
        runtime.spawn(guest)


def test_what_a_beginning_used_is_counted(tiny_path: Path) -> None:
    with Runtime(device="cpu", threads=1) as runtime:
        model = runtime.load_model(tiny_path)
        actor = runtime.spawn(
            guest_of(PREFILLS_ONCE + PREFILL),
            models={"default": model},
            limits=Limits(tokens_in=200, fuel=10**9),
        )
        assert actor.usage.tokens_in == 120
        assert actor.usage.limits_reached == {"tokens_in": 1}
        assert actor.usage.fuel > 0


ON_REPLAY = '(func (export "on_replay") (result i32) (loop $l (br $l)) (i32.const 0))'


@pytest.mark.parametrize("what", ["on_replay", "tokens"])
def test_a_replay_has_a_deadline(what: str, tiny_path: Path, tmp_path: Path) -> None:
    """A guest that loops in `on_replay`, and a snapshot whose tokens take long to prefill."""
    other_path = TinyLlama(with_tokenizer=True, seed=7).write(tmp_path / "other.gguf")
    guest = guest_of(PREFILLS_ONCE, extra=ON_REPLAY)
    capacity = Capacity(replay_s=0.0 if what == "tokens" else 0.3)
    with Runtime(device="cpu", threads=1, capacity=capacity) as runtime:
        model, other = runtime.load_model(tiny_path), runtime.load_model(other_path)
        actor = runtime.spawn(guest, models={"default": model})
        saved = actor.snapshot(tmp_path / "it.snapshot")
        if what == "on_replay":
            other.__dict__["tokenizer_sha256"] = "0" * 64
        with pytest.raises(DeadlineExceeded):
            runtime.restore(saved, models={"default": other}, require="replayed")
        assert runtime.restore(saved, models={"default": model}).sessions[0].n_tokens == 120


def test_ctrl_c_ends_a_replay(tmp_path: Path) -> None:
    """As `test_ctrl_c_stops_while_it_begins` of test_agents does for `_initialize`."""
    script = f"""
import os, signal, sys, threading
from pathlib import Path
from isthmus import Capacity, Runtime
sys.path[:0] = [{str(Path.cwd())!r}]
from tests.attacks.test_beginnings import guest_of, ON_REPLAY, TinyLlama
folder = Path({str(tmp_path)!r})
with Runtime(device="cpu", threads=1, capacity=Capacity(replay_s=3600)) as runtime:
    model = runtime.load_model(TinyLlama(with_tokenizer=True).write(folder / "a.gguf"))
    other = runtime.load_model(TinyLlama(with_tokenizer=True, seed=7).write(folder / "b.gguf"))
    other.__dict__["tokenizer_sha256"] = "0" * 64
    actor = runtime.spawn(guest_of("", ON_REPLAY), models={{"default": model}})
    saved = actor.snapshot(folder / "s")
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    try:
        runtime.restore(saved, models={{"default": other}}, require="replayed")
    except KeyboardInterrupt:
        os._exit(7)
"""
    done = subprocess.run([sys.executable, "-c", script], timeout=HANG_S, check=False)
    assert done.returncode == 7


# ---------------------------------------------------------------------------------- the server


@pytest.fixture
def serving(tiny_path: Path, tmp_path: Path) -> Serving:
    return Serving(tmp_path / "data", "--model", f"tiny={tiny_path}", "--device", "null")


def in_background(n: int, ask: Callable[[], object]) -> list[threading.Thread]:
    threads = [threading.Thread(target=ask, daemon=True) for _ in range(n)]
    for thread in threads:
        thread.start()
    return threads


def test_guests_that_never_begin_do_not_keep_the_server(serving: Serving) -> None:
    """More of them than it has threads: it serves others, and SIGTERM ends it before they end."""
    try:
        done = serving.client.post("/v1/guests", content=ENDLESS)
        assert done.status_code == 201, done.text
        guest = done.json()["id"]
        good = serving.post("/v1/agents", {"guest": "chat", "name": "good"})
        said: list[int] = []

        def spawn() -> None:
            try:
                said.append(serving.client.post("/v1/agents", json={"guest": guest}).status_code)
            except Exception:  # the server went away: that is the end of this test
                said.append(0)

        in_background(40, spawn)
        time.sleep(1)  # they have begun
        start = time.monotonic()
        fork = serving.post(f"/v1/agents/{good['id']}/fork", {})
        assert not said  # answered while every one of them was still at it
        assert fork["id"] != good["id"]
        assert serving.stop() == 0
        assert time.monotonic() - start < HANG_S / 2
        serving.start()
        assert {it["id"] for it in serving.get("/v1/agents")["data"]} == {good["id"], fork["id"]}
    finally:
        serving.stop()
