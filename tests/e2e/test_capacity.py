"""What all actors of a runtime may use together: threads, a queue, memory; and what it reports."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wasmtime
from prometheus_client.parser import text_string_to_metric_families

from isthmus import Actor, Capacity, Runtime
from isthmus.actor.message import Message
from isthmus.errors import Cancelled, DeadlineExceeded, GuestFailed, Overloaded, SettingsError
from isthmus.units import MIB, WASM_PAGE
from tests.exact.digest import digest
from tests.tiny_gguf import TinyLlama

QUICK = "(i32.const 0)"
SLOW = "(loop $l (br $l)) (i32.const 0)"


def guest_of(body: str, pages: int = 1) -> bytes:
    function = f'(func (export "on_message") (param i32) (result i32) {body})'
    return bytes(wasmtime.wat2wasm(f'(module (memory (export "memory") {pages}) {function})'))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "evicted"


def runtime_of(folder: Path, device: str = "null", **capacity: Any) -> Runtime:
    return Runtime(device=device, threads=2, capacity=Capacity(folder=folder, **capacity))


@pytest.fixture
def tight(folder: Path) -> Iterator[Runtime]:
    with runtime_of(folder, running=2, waiting=1) as runtime:
        yield runtime


def value(runtime: Runtime, name: str, **labels: str) -> float:
    for family in text_string_to_metric_families(runtime.metrics()):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return float(sample.value)
    raise AssertionError(f"no metric {name}")


def test_a_thousand_actors_take_no_thread(folder: Path) -> None:
    with runtime_of(folder) as runtime:
        guest = runtime.load_guest(guest_of(QUICK))
        before = threading.active_count()
        actors = [runtime.spawn(guest) for _ in range(1000)]
        assert threading.active_count() <= before + 2  # the watchdog and the device's thread
        streams = [actor.stream("x") for actor in actors]
        for stream in streams:
            list(stream)
        assert value(runtime, "isthmus_actors_idle") == 1000
        assert value(runtime, "isthmus_messages_total", outcome="answered") == 1000


def test_too_many_messages_are_refused_and_nothing_is_lost(tight: Runtime) -> None:
    slow = [tight.spawn(guest_of(SLOW)) for _ in range(2)]
    quick = [tight.spawn(guest_of(QUICK)) for _ in range(2)]
    running = [actor.stream("x") for actor in slow]
    waiting = quick[0].stream("x")
    with pytest.raises(Overloaded, match="2 messages are being handled and 1 wait"):
        quick[1].send("x")
    assert quick[1].state == "idle"
    assert value(tight, "isthmus_messages_waiting") == 1
    slow[0].cancel()
    list(waiting)
    quick[1].send("x")
    slow[1].cancel()
    for stream in running:
        with pytest.raises(Cancelled):
            list(stream)


def test_what_ends_a_message_that_waits(tight: Runtime) -> None:
    slow = [tight.spawn(guest_of(SLOW)) for _ in range(2)]
    quick = tight.spawn(guest_of(QUICK))
    running = [actor.stream("x") for actor in slow]
    with pytest.raises(DeadlineExceeded, match="no place for the message within"):
        quick.send("x", deadline_s=0.05)
    assert quick.state == "idle"
    stream = quick.stream("x")
    stream.close()
    with pytest.raises(Cancelled):
        list(stream)
    assert quick.state == "idle"
    quick.stream("x")
    quick.close()
    assert quick.state == "closed"
    for actor, stream in zip(slow, running, strict=True):
        actor.cancel()
        with pytest.raises(Cancelled):
            list(stream)


def test_a_tool_may_ask_another_actor(folder: Path) -> None:
    name = '(data (i32.const 8) "ask")'
    module = f"""(module
      (import "isthmus" "tool_call" (func $call (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1) {name}
      (func (export "on_message") (param i32) (result i32)
        (drop (call $call (i32.const 8) (i32.const 3) (i32.const 0) (i32.const 0)))
        (i32.const 0)))"""
    with runtime_of(folder, running=1, waiting=0) as runtime:
        other = runtime.spawn(guest_of(QUICK))
        asked = []

        def ask(_arguments: bytes) -> bytes:
            asked.append(other.send("x"))
            return b""

        actor = runtime.spawn(bytes(wasmtime.wat2wasm(module)), tools={"ask": ask})
        actor.send("x", deadline_s=20)
        assert len(asked) == 1


def test_idle_actors_make_room_and_come_back(folder: Path) -> None:
    count = "(i32.store (i32.const 8) (i32.add (i32.load (i32.const 8)) (i32.const 1)))"
    body = f"{count} (i32.const 0)"
    with runtime_of(folder, memory_nbytes=4 * WASM_PAGE) as runtime:
        actors = []
        for _ in range(10):
            actors.append(runtime.spawn(guest_of(body)))
            actors[-1].send("x")
        states = [actor.state for actor in actors]
        assert states == ["evicted"] * 6 + ["idle"] * 4
        assert len(list(folder.glob("*/*.memory"))) == 6
        for actor in actors:
            actor.send("x")
            with actor.region.view(8, 1) as byte:
                assert byte.memory[0] == 2
        assert value(runtime, "isthmus_memory_bytes") == 4 * WASM_PAGE
        assert value(runtime, "isthmus_returns_total") >= 6
        assert sum(actor.usage.evictions for actor in actors) == value(
            runtime, "isthmus_evictions_total"
        )
    assert not list(folder.glob("*"))


def test_what_is_too_much_is_refused(folder: Path) -> None:
    with runtime_of(folder, memory_nbytes=3 * WASM_PAGE) as runtime:
        busy = runtime.spawn(guest_of(SLOW, pages=2))
        running = busy.stream("x")
        with pytest.raises(Overloaded, match=r"none is idle that could be evicted"):
            runtime.spawn(guest_of(QUICK, pages=2))
        grow = "(i32.lt_s (memory.grow (i32.const 1)) (i32.const 0))"  # 1 where it failed
        small = runtime.spawn(guest_of(f"(i32.mul (i32.const -1) {grow})"))
        with pytest.raises(GuestFailed):
            small.send("x")
        busy.cancel()
        with pytest.raises(Cancelled):
            list(running)
        small.send("x")
        assert value(runtime, "isthmus_memory_bytes") == 2 * WASM_PAGE


def test_evicted_is_as_if_it_had_stayed(folder: Path, tmp_path: Path) -> None:
    path = TinyLlama(with_tokenizer=True, quantisation="Q8_0").write(tmp_path / "q8.gguf")
    with runtime_of(folder, "cpu") as runtime:
        model = runtime.load_model(path)

        def spawn() -> Actor:
            actor = runtime.spawn(
                "bench", models={"default": model}, args=["n_ctx=512"], seed=1, clock_ns=10**18
            )
            actor.send("prefill 30")
            return actor

        moved, stayed = spawn(), spawn()
        for _ in range(3):
            assert moved.evict() > MIB // 4
            assert moved.state == "evicted"
            assert moved.evict() == 0
            assert moved.usage.memory_nbytes == 0
            assert moved.send("sequence 9").text == stayed.send("sequence 9").text
            assert digest(moved) == digest(stayed)
        moved.evict()
        (child,) = moved.fork()
        assert child.send("hash 9").text == stayed.send("hash 9").text
        moved.evict()
        saved = moved.snapshot(tmp_path / "a.safetensors")
        with runtime.restore(saved, models={"default": model}) as again:
            assert digest(again) == digest(moved)
        moved.evict()
        moved.close()
        assert not list(folder.glob("*/*.memory"))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with runtime_of(tmp_path / "file" / "below", memory_nbytes=WASM_PAGE) as runtime:
        first = runtime.spawn(guest_of(QUICK))
        with pytest.raises(Overloaded):
            runtime.spawn(guest_of(QUICK))
        first.send("x")


def test_metrics_tell_what_happened(folder: Path, tmp_path: Path) -> None:
    path = TinyLlama(with_tokenizer=True, quantisation="Q8_0").write(tmp_path / "q8.gguf")
    with runtime_of(folder, "cpu") as runtime:
        model = runtime.load_model(path)
        with runtime.spawn("bench", models={"default": model}, args=["n_ctx=512"]) as actor:
            actor.send("prefill 30")
            actor.send("sequence 10")
        time.sleep(0.01)
        assert value(runtime, "isthmus_decode_seconds_count", model=model.name) == 10
        assert value(runtime, "isthmus_batch_size_sum", model=model.name) == 10
        assert value(runtime, "isthmus_prefill_seconds_count", model=model.name) == 1
        assert value(runtime, "isthmus_queue_seconds_count", model=model.name, of="decode") == 10
        assert value(runtime, "isthmus_message_seconds_count") == 2
        assert value(runtime, "isthmus_host_calls_total") > 10
        assert value(runtime, "isthmus_tokens_decoded_total") == 10
        assert value(runtime, "isthmus_bytes_copied_total") == 0


@pytest.mark.parametrize("wrong", [{"running": 0}, {"waiting": -1}, {"memory_nbytes": 1}])
def test_impossible_capacity(wrong: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        Capacity(**wrong)


def test_a_cancellation_is_never_lost(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it comes after the message got its thread, and before the guest is called."""
    with runtime_of(folder) as runtime:
        actor = runtime.spawn(guest_of(SLOW))
        handle = actor.body.handle

        async def cancel_and_handle(message: Message) -> int:
            actor.cancel()
            return await handle(message)

        monkeypatch.setattr(actor.body, "handle", cancel_and_handle)
        with pytest.raises(Cancelled):
            actor.send("x", deadline_s=10)
