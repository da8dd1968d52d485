"""Snapshots in the middle of an answer that say what cannot be, and stacks with other bytes."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from isthmus import Actor, Limits, Model, Runtime
from isthmus.errors import (
    GuestError,
    IsthmusError,
    SnapshotInvalid,
    SnapshotMismatch,
)
from isthmus.snapshot import Snapshot, open_snapshot
from isthmus.wasm.pausing import ROOM_NBYTES
from tests.exact.pausing import paused_at, saved_at
from tests.tiny_gguf import TinyLlama

MESSAGE = "Tell me a story."
CHAT = ["n_ctx=512", "max_tokens=24", "seed=3", "regex=[a-z ]{200,}"]


@pytest.fixture(scope="module")
def shared() -> Iterator[Runtime]:
    with Runtime(device="cpu", threads=2) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def model(shared: Runtime, tiny: Path) -> Model:
    return shared.load_model(tiny)


@pytest.fixture
def actor(shared: Runtime, model: Model) -> Iterator[Actor]:
    with shared.spawn("chat", models={"default": model}, args=CHAT, seed=1) as actor:
        yield actor


@pytest.fixture(scope="module")
def expected(shared: Runtime, model: Model) -> str:
    with shared.spawn("chat", models={"default": model}, args=CHAT, seed=1) as actor:
        return actor.send(MESSAGE).text


def test_another_model_cannot_end_the_answer(shared: Runtime, actor: Actor, tmp_path: Path) -> None:
    path = saved_at(shared, actor, 9, tmp_path / "mid.safetensors")
    other = shared.load_model(TinyLlama(with_tokenizer=True, seed=9).write(tmp_path / "o.gguf"))
    with pytest.raises(SnapshotMismatch, match="in the middle of an answer"):
        shared.restore(path, models={"default": other}, require="replayed")


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"pending": "emit"}, "cannot have paused before 'emit'"),
        ({"pending": "nothing"}, "cannot have paused before 'nothing'"),
        ({"arguments": ()}, "cannot have paused before 'emit_token'"),
        ({"room": 2**32 - ROOM_NBYTES}, "does not lie in its memory"),
        ({"room": 24}, "does not lie in its memory"),
    ],
)
def test_a_pending_call_that_cannot_be_is_refused(
    shared: Runtime,
    model: Model,
    actor: Actor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, object],
    complaint: str,
) -> None:
    path = saved_at(shared, actor, 9, tmp_path / "mid.safetensors")
    change_manifest(monkeypatch, changed)
    with pytest.raises(SnapshotInvalid, match=complaint):
        shared.restore(path, models={"default": model})


def test_a_pending_call_with_other_arguments_is_checked_as_ever(
    shared: Runtime,
    model: Model,
    actor: Actor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = saved_at(shared, actor, 9, tmp_path / "mid.safetensors")
    change_manifest(monkeypatch, {"arguments": (2, 2**31, 0, 0)})
    restored = shared.restore(path, models={"default": model})
    with restored, pytest.raises(GuestError, match="token"):
        list(restored.resume())


def change_manifest(monkeypatch: pytest.MonkeyPatch, changed: dict[str, object]) -> None:
    """Has every snapshot say something else of its message, as one with a stranger's key could."""
    original = open_snapshot

    def opened(*args: object) -> Snapshot:
        snapshot = original(*args)  # type: ignore[arg-type]
        it = snapshot.manifest
        message = msgspec.structs.replace(it.actor.message, **changed)
        actor = msgspec.structs.replace(it.actor, message=message)
        snapshot.manifest = msgspec.structs.replace(it, actor=actor)
        return snapshot

    monkeypatch.setattr("isthmus.runtime.runtime.open_snapshot", opened)


def test_a_stack_that_was_tampered_with_harms_its_guest_alone(
    shared: Runtime, model: Model, expected: str
) -> None:
    rng = random.Random(7)
    limits = Limits(deadline_s=20, memory_nbytes=2**26)
    given = {"models": {"default": model}, "args": CHAT, "seed": 1, "limits": limits}
    ends: list[str] = []
    with shared.spawn("chat", **given) as actor:  # type: ignore[arg-type]
        paused_at(shared, actor, 9)
        room = actor._keeper.paused.pending.room  # type: ignore[union-attr]
        for tamper in tamperings(rng):
            with actor.fork()[0] as victim:
                stack = (ctypes.c_uint8 * ROOM_NBYTES).from_address(victim.region.base + room)
                tamper(stack)
                del stack
                ends.append(end_of(victim, expected))
        assert end_of(actor, expected) == "answered"
    assert {"GuestTrapped", "GuestInvalid"} <= set(ends)


def end_of(actor: Actor, expected: str) -> str:
    """How an answer ends: what it says, or its error."""
    try:
        stream = actor.resume()
        list(stream)
    except IsthmusError as error:
        return type(error).__name__
    return "answered" if stream.reply.text == expected else "answered otherwise"


def tamperings(rng: random.Random) -> Iterator[Callable[[ctypes.Array[ctypes.c_uint8]], None]]:
    """Changes of a saved stack: its pointers, single bytes of it, all of it."""

    def pointers(end: int, limit: int) -> Callable[[ctypes.Array[ctypes.c_uint8]], None]:
        def change(stack: ctypes.Array[ctypes.c_uint8]) -> None:
            stack[0:4] = list(end.to_bytes(4, "little"))
            stack[4:8] = list(limit.to_bytes(4, "little"))

        return change

    def byte(at: int, value: int) -> Callable[[ctypes.Array[ctypes.c_uint8]], None]:
        def change(stack: ctypes.Array[ctypes.c_uint8]) -> None:
            stack[at] = value

        return change

    def noise(stack: ctypes.Array[ctypes.c_uint8]) -> None:
        stack[8:512] = [rng.randrange(256) for _ in range(504)]

    def zeros(stack: ctypes.Array[ctypes.c_uint8]) -> None:
        stack[8:512] = [0] * 504

    yield from (pointers(2**32 - 16, 2**32 - 1), pointers(0, 0), pointers(16, 8), zeros)
    yield from (noise for _ in range(8))
    yield from (byte(rng.randrange(8, 256), rng.randrange(256)) for _ in range(24))
