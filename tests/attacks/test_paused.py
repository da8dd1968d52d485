"""Snapshots in the middle of an answer that say what cannot be, stacks with other bytes, other
builds of the guest, limits that no longer allow the rest, and clocks."""

from __future__ import annotations

import ctypes
import hashlib
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from isthmus import Actor, Limits, Model, Runtime
from isthmus.errors import (
    DeadlineExceeded,
    GuestError,
    IsthmusError,
    LimitExceeded,
    SnapshotInvalid,
    SnapshotMismatch,
    SnapshotUntrusted,
)
from isthmus.snapshot import Snapshot, open_snapshot
from isthmus.wasm.pausing import ROOM_NBYTES
from tests.attacks.test_snapshots import Forgery
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


def how_it_ends(actor: Actor, limit: str) -> bool:
    """Whether an answer ends at that limit, as an error or with what was said before."""
    stream = actor.resume()
    try:
        list(stream)
    except LimitExceeded as error:
        return limit in str(error)
    return limit in stream.reply.limits_reached


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


# ---------------------------------------------------------------------------------- files


@pytest.mark.parametrize("key", [None, b"a key of this machine's own"])
def test_a_file_whose_stack_was_tampered_with_is_refused(
    tiny: Path, tmp_path: Path, key: bytes | None
) -> None:
    with Runtime(device="cpu", threads=1, snapshot_key=key) as runtime:
        model = runtime.load_model(tiny)
        with runtime.spawn("chat", models={"default": model}, args=CHAT, seed=1) as actor:
            path = saved_at(runtime, actor, 9, tmp_path / "mid.safetensors")
            room = actor._keeper.paused.pending.room  # type: ignore[union-attr]
            pointers = ctypes.string_at(actor.region.base + room, 8)
        raw = bytearray(path.read_bytes())
        at = raw.index(pointers)
        for place in (at, at + 8, at + 60):
            raw[place] ^= 1
            (other := tmp_path / f"{place}.safetensors").write_bytes(raw)
            raw[place] ^= 1
            with pytest.raises(SnapshotInvalid):
                runtime.restore(other, models={"default": model})
        with runtime.restore(path, models={"default": model}) as whole:
            assert whole.is_paused


def test_a_file_in_the_middle_with_another_signature_is_refused(tiny: Path, tmp_path: Path) -> None:
    with Runtime(device="cpu", threads=1, snapshot_key=b"a stranger's key") as runtime:
        model = runtime.load_model(tiny)
        with runtime.spawn("chat", models={"default": model}, args=CHAT, seed=1) as actor:
            path = saved_at(runtime, actor, 9, tmp_path / "mid.safetensors")
    with Runtime(device="cpu", threads=1, snapshot_key=b"a key of our own") as runtime:
        model = runtime.load_model(tiny)
        with pytest.raises(SnapshotUntrusted, match="signed with another key"):
            runtime.restore(path, models={"default": model})


# ---------------------------------------------------------------------------------- builds


def built_otherwise(wasm: bytes) -> bytes:
    """Another build of the same source: a custom section more."""
    return wasm + b"\0\x06\x05other"


def test_another_build_of_the_guest_is_refused(
    shared: Runtime, model: Model, actor: Actor, tmp_path: Path
) -> None:
    path = saved_at(shared, actor, 9, tmp_path / "mid.safetensors")
    other = built_otherwise(Path("src/isthmus/guests/chat/chat.wasm").read_bytes())
    with pytest.raises(SnapshotMismatch, match="of the guest chat"):
        shared.restore(path, models={"default": model}, guest=other)


@pytest.mark.parametrize("name", ["complete/complete", "bench/bench"])
def test_a_file_that_carries_another_guest_harms_nobody(
    shared: Runtime, model: Model, actor: Actor, expected: str, tmp_path: Path, name: str
) -> None:
    """Its hashes are right: it is a stranger's own file, whose stack is of another module."""
    path = saved_at(shared, actor, 9, tmp_path / "mid.safetensors")
    forgery, wasm = Forgery(path), Path(f"src/isthmus/guests/{name}.wasm").read_bytes()
    forgery.part("guest", wasm)
    forgery.put("guest.sha256", hashlib.sha256(wasm).hexdigest())
    forged = forgery.write(tmp_path / "forged.safetensors")
    with (
        pytest.raises(IsthmusError),
        shared.restore(forged, models={"default": model}) as restored,
    ):
        list(restored.resume())
    assert end_of(actor, expected) == "answered"


# ---------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("at", "limits", "reached"),
    [
        (0, Limits(tokens_in=3), "tokens_in"),
        (0, Limits(tokens=3), "tokens"),
        (1, Limits(tokens=3), "tokens"),
        (9, Limits(tokens_out=8), "tokens_out"),
        (9, Limits(output_nbytes=8), "output_nbytes"),
    ],
)
def test_a_pending_call_that_limits_no_longer_allow_is_not_made(
    shared: Runtime,
    model: Model,
    actor: Actor,
    tmp_path: Path,
    at: int,
    limits: Limits,
    reached: str,
) -> None:
    path = saved_at(shared, actor, at, tmp_path / "mid.safetensors")
    message = open_snapshot(path).manifest.actor.message
    assert message is not None
    with shared.restore(path, models={"default": model}, limits=limits) as restored:
        assert how_it_ends(restored, reached)
        assert (restored.usage.tokens_in, restored.usage.tokens_out) == (0, 0)


@pytest.mark.parametrize("limits", [Limits(memory_nbytes=65_536), Limits(sessions=0)])
def test_what_limits_do_not_allow_is_not_restored(
    shared: Runtime, model: Model, actor: Actor, tmp_path: Path, limits: Limits
) -> None:
    path = saved_at(shared, actor, 9, tmp_path / "mid.safetensors")
    with pytest.raises(SnapshotMismatch, match="are allowed"):
        shared.restore(path, models={"default": model}, limits=limits)


# ---------------------------------------------------------------------------------- clocks


@pytest.mark.parametrize("field", ["seconds", "seconds_left"])
def test_negative_time_is_refused(
    shared: Runtime, model: Model, actor: Actor, tmp_path: Path, field: str
) -> None:
    forgery = Forgery(saved_at(shared, actor, 9, tmp_path / "mid.safetensors"))
    forgery.put(f"actor.message.{field}", -1.0)
    forged = forgery.write(tmp_path / "forged.safetensors")
    with pytest.raises(SnapshotInvalid, match=field):
        shared.restore(forged, models={"default": model})


@pytest.mark.parametrize("left", [1e300, 1e9, None])
def test_more_time_than_the_limits_allow_is_cut_to_that(
    shared: Runtime, model: Model, actor: Actor, tmp_path: Path, left: float | None
) -> None:
    forgery = Forgery(saved_at(shared, actor, 9, tmp_path / "mid.safetensors"))
    forgery.put("actor.message.seconds_left", left)
    forged = forgery.write(tmp_path / "forged.safetensors")
    limits = Limits(deadline_s=1e-9)
    with (
        shared.restore(forged, models={"default": model}, limits=limits) as restored,
        pytest.raises(DeadlineExceeded),
    ):
        list(restored.resume())


def test_a_clock_that_runs_backwards_takes_and_gives_no_time(
    shared: Runtime, model: Model, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine counts from another start, and its date may be years before."""
    limits = Limits(deadline_s=1000)
    given = {"models": {"default": model}, "args": CHAT, "seed": 1, "limits": limits}
    with shared.spawn("chat", **given) as actor:  # type: ignore[arg-type]
        path = saved_at(shared, actor, 9, tmp_path / "mid.safetensors")
    saved = open_snapshot(path).manifest.actor.message
    assert saved is not None
    date = time.time
    monkeypatch.setattr(time, "time", lambda: date() - 10**9)
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * (date() - 10**9)))
    with shared.restore(path, models={"default": model}) as restored:
        paused = restored._keeper.paused
        assert paused is not None
        assert (paused.seconds, paused.seconds_left) == (saved.seconds, saved.seconds_left)
        stream = restored.resume()
        list(stream)
        assert stream.reply.text == expected
        assert stream.reply.seconds >= paused.seconds
