"""What one actor may use: each limit ends the message with its name, and only that message."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from isthmus import Actor, Limits, Model, Runtime
from isthmus.errors import ActorClosed, DeadlineExceeded, GuestTrapped, LimitExceeded, SettingsError
from isthmus.units import MIB
from tests.exact.digest import digest
from tests.tiny_gguf import TinyLlama


@pytest.fixture(scope="module")
def shared() -> Iterator[Runtime]:
    with Runtime(device="cpu", threads=2) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def model(shared: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("q8") / "q8.gguf"
    return shared.load_model(TinyLlama(with_tokenizer=True, quantisation="Q8_0").write(path))


def bench(runtime: Runtime, model: Model, **limits: Any) -> Actor:
    return runtime.spawn(
        "bench",
        models={"default": model},
        args=["n_ctx=512"],
        seed=1,
        clock_ns=10**18,
        limits=Limits(**limits),
    )


def guest_of(body: str, memory: str = "1") -> bytes:
    function = f'(func (export "on_message") (param i32) (result i32) {body})'
    return bytes(wasmtime.wat2wasm(f'(module (memory (export "memory") {memory}) {function})'))


LOOP = guest_of("(loop $l (br $l)) (i32.const 0)")
TRAP_ON_LONG = guest_of(
    """(i32.store (i32.const 64) (i32.add (i32.load (i32.const 64)) (i32.const 1)))
       (if (i32.gt_u (local.get 0) (i32.const 3)) (then (unreachable)))
       (i32.const 0)"""
)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"tokens": 30}, "prefill 31"),
        ({"tokens_in": 20}, "prefill 21"),
        ({"tokens_out": 5}, "sequence 6"),
        ({"kv_nbytes": 4096}, "prefill 1"),
        ({"sessions": 0}, "prefill 1"),
        ({"output_nbytes": 20}, "sequence 30"),
        ({"memory_nbytes": MIB // 4}, "prefill 1"),
    ],
)
def test_each_is_named_and_counted(
    shared: Runtime, model: Model, limits: dict[str, Any], message: str
) -> None:
    (name,) = limits
    with bench(shared, model, **limits) as actor:
        if message.startswith("sequence"):
            actor.send("prefill 10")
        with pytest.raises(LimitExceeded, match=name) as caught:
            actor.send(message)
        assert caught.value.limit == name
        assert actor.usage.limits_reached[name] >= 1
        assert actor.state == "idle"
        assert f'isthmus_limits_reached_total{{limit="{name}"}}' in shared.metrics()


def test_usage_adds_up(shared: Runtime, model: Model) -> None:
    with bench(shared, model, fuel=10**9) as actor:
        actor.send("prefill 10")
        actor.send("sequence 5")
        usage = actor.usage
        assert (usage.messages, usage.tokens_in, usage.tokens_out) == (2, 10, 5)
        assert usage.sessions == 1
        assert usage.kv_nbytes == actor.sessions[0].layout.kv_nbytes
        assert usage.memory_nbytes == actor.region.nbytes
        assert usage.output_nbytes > 5
        assert usage.fuel > 1000
        assert usage.seconds > 0


def test_fuel_is_the_same_each_time(shared: Runtime, model: Model) -> None:
    used = set()
    for _ in range(2):
        with bench(shared, model, fuel=10**9) as actor:
            actor.send("prefill 10")
            actor.send("sequence 5")
            used.add(actor.usage.fuel)
    assert len(used) == 1


def test_fuel_ends_a_loop(null_runtime: Runtime) -> None:
    actor = null_runtime.spawn(LOOP, limits=Limits(fuel=100_000))
    with pytest.raises(LimitExceeded, match="out of fuel") as caught:
        actor.send("x")
    assert caught.value.limit == "fuel"
    assert actor.usage.fuel >= 100_000
    assert actor.state == "closed"
    with pytest.raises(ActorClosed, match="out of fuel"):
        actor.send("x")


def test_undo_after_a_trap(null_runtime: Runtime) -> None:
    actor = null_runtime.spawn(TRAP_ON_LONG, limits=Limits(on_failure="undo"), seed=1, clock_ns=1)
    actor.send("ok")
    before = digest(actor)
    for _ in range(3):
        with pytest.raises(GuestTrapped):
            actor.send("too long")
        assert actor.state == "idle"
        assert digest(actor) == before
    actor.send("ok")
    with actor.region.view(64, 1) as byte:
        assert byte.memory[0] == 2
    assert actor.usage.undone == 3


@pytest.mark.parametrize("how", ["deadline", "fuel", "tokens"])
def test_undo_brings_back_the_conversation(shared: Runtime, model: Model, how: str) -> None:
    limits: dict[str, Any] = {"on_failure": "undo"}
    limits |= {"fuel": {"fuel": 80_000}, "tokens": {"tokens": 100}, "deadline": {}}[how]
    deadline_s = 0.02 if how == "deadline" else None
    with bench(shared, model, **limits) as actor, bench(shared, model) as other:
        for one in (actor, other):
            one.send("prefill 30")
            one.send("sequence 3")
        before = digest(actor)
        with pytest.raises(LimitExceeded) as caught:
            actor.send("sequence 400", deadline_s=deadline_s)
        assert caught.value.limit.startswith(how)
        assert digest(actor) == before
        assert actor.send("sequence 20").text == other.send("sequence 20").text
        assert digest(actor) == digest(other)


def test_close_on_failure(shared: Runtime, model: Model) -> None:
    actor = bench(shared, model, tokens=5, on_failure="close")
    with pytest.raises(LimitExceeded):
        actor.send("prefill 6")
    assert actor.state == "closed"


def test_what_a_guest_swallows_is_reported(null_runtime: Runtime) -> None:
    body = "(drop (memory.grow (i32.const 9))) (i32.const 0)"
    limits = Limits(memory_nbytes=2 * 65536)
    with null_runtime.spawn(guest_of(body), limits=limits) as actor:
        assert actor.send("x").limits_reached == ("memory_nbytes",)


def test_a_deadline_counts_from_when_the_message_is_sent(null_runtime: Runtime) -> None:
    with null_runtime.spawn(LOOP, limits=Limits(deadline_s=0.1)) as actor:
        with pytest.raises(DeadlineExceeded) as caught:
            actor.send("x")
        assert caught.value.limit == "deadline_s"


@pytest.mark.parametrize(
    "wrong", [{"weight": 0}, {"weight": 1e9}, {"fuel": -1}, {"fuel": 2**63}, {"on_failure": "x"}]
)
def test_impossible_limits(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        Limits(**wrong)


def test_limits_survive_a_snapshot(shared: Runtime, model: Model, tmp_path: Path) -> None:
    limits = {"tokens_in": 50, "fuel": 10**9, "weight": 0.5, "on_failure": "undo"}
    with bench(shared, model, **limits) as actor:
        saved = actor.snapshot(tmp_path / "a.safetensors")
    with shared.restore(saved, models={"default": model}) as again:
        assert again.limits == Limits(**limits)  # type: ignore[arg-type]


def test_a_full_context_ends_the_answer_and_is_named(shared: Runtime, model: Model) -> None:
    args = {"n_ctx": 256, "max_tokens": 1000, "temperature": 0, "repeat_penalty": 1}
    with shared.spawn("chat", models={"default": model}, args=args) as actor:
        reply = actor.send("hello")
        assert actor.context_is_full
        assert reply.limits_reached == ("n_ctx",)
        assert reply.text
