"""Guests with a 64-bit memory: sessions above 4 GiB are those of 32-bit guests, to the byte.

The memory below a session is never touched, so that it takes none of the machine's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from isthmus import Limits
from isthmus.actor import Actor
from isthmus.errors import (
    GuestError,
    LimitExceeded,
    SettingsError,
    SnapshotInvalid,
    SnapshotMismatch,
)
from isthmus.model import Model
from isthmus.runtime import Runtime
from isthmus.runtime.memory64 import fitting_guest
from isthmus.server.generation.words import Words
from isthmus.snapshot import Store, open_snapshot
from isthmus.snapshot.manifest import decode_manifest
from isthmus.units import GIB
from tests.tiny_gguf import TinyLlama

LIMITS = Limits(memory_nbytes=8 * GIB)
AHEAD = 5 * GIB


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TinyLlama(with_tokenizer=True).write(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with Runtime(device="cpu", threads=1) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def model(runtime: Runtime, tiny: Path) -> Model:
    return runtime.load_model(tiny)


def spawn(runtime: Runtime, model: Model, guest: str, *args: str) -> Actor:
    limits = LIMITS if guest.endswith("64") else None
    options = ("n_ctx=256", *args)
    return runtime.spawn(guest, models={"default": model}, args=options, seed=1, limits=limits)


def talk(actor: Actor) -> list[str]:
    return [actor.send(message).text for message in ("prefill 40 7", "hash 8", "tokens 5 6 7")]


def test_above_4_gib_every_logit_is_the_same(runtime: Runtime, model: Model) -> None:
    narrow, wide = spawn(runtime, model, "bench"), spawn(runtime, model, "bench64")
    above = spawn(runtime, model, "bench64", f"ahead={AHEAD}")
    answers = talk(narrow)
    assert talk(wide) == answers
    assert talk(above) == answers
    session = above.sessions[0]
    assert session.ptr > AHEAD
    with above.region.view(session.logits_ptr, 64) as view:
        there = bytes(view.memory)
    with narrow.region.view(narrow.sessions[0].logits_ptr, 64) as view:
        assert bytes(view.memory) == there
    assert session.logits.ctypes.data == above.region.base + session.logits_ptr
    assert above.counters.bytes_copied == 0


def test_fork_snapshot_and_restore_above_4_gib(
    runtime: Runtime, model: Model, tmp_path: Path
) -> None:
    actor = spawn(runtime, model, "bench64", f"ahead={AHEAD}")
    talk(actor)
    child = actor.fork()[0]
    path, store = tmp_path / "a.safetensors", Store(tmp_path / "store")
    saved = [actor.snapshot(path), actor.snapshot(store, name="a")]
    models = {"default": model}
    others = [runtime.restore(it, models=models, limits=LIMITS) for it in saved]
    expected = actor.send("hash 6").text
    assert {it.send("hash 6").text for it in (child, *others)} == {expected}
    assert path.stat().st_blocks * 512 < 4 << 20, "the file is sparse"
    manifest = open_snapshot(path).manifest
    assert manifest.memory.is_64
    assert manifest.format_version == 3
    assert manifest.sessions[0].ptr > AHEAD
    again = [it.snapshot(tmp_path / f"{n}.safetensors") for n, it in enumerate((actor, child))]
    assert len({tuple(open_snapshot(it.path).chunks.items()) for it in again}) == 1
    with pytest.raises(SnapshotMismatch, match=r"5.0 GiB of memory; 4.0 GiB are allowed.*--memory"):
        runtime.restore(path, models=models)


def test_32_bit_snapshots_stay_readable_by_older_releases(
    runtime: Runtime, model: Model, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    spawn(runtime, model, "bench").snapshot(path)
    manifest = open_snapshot(path).manifest
    assert manifest.format_version == 2
    assert "is_64" not in manifest.encode()


def test_a_manifest_cannot_lie_about_its_memory(
    runtime: Runtime, model: Model, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    spawn(runtime, model, "bench64").snapshot(path)
    text = open_snapshot(path).manifest.encode()
    for lie in (
        text.replace('"format_version":3', '"format_version":2'),
        text.replace('"is_64":true', '"is_64":false'),
    ):
        assert lie != text
        with pytest.raises(SnapshotInvalid, match="64-bit memory"):
            decode_manifest(lie)


def test_undo_evict_and_fuel(runtime: Runtime, model: Model) -> None:
    actor = runtime.spawn(
        "bench64",
        models={"default": model},
        args=("n_ctx=256", f"ahead={AHEAD}"),
        limits=Limits(memory_nbytes=8 * GIB, on_failure="undo", fuel=50_000_000),
    )
    other = spawn(runtime, model, "bench")
    assert talk(actor) == talk(other)
    with pytest.raises(GuestError, match="unreachable"):
        actor.send("trap 3")
    assert actor.evict() > 0
    assert actor.send("hash 4").text == other.send("hash 4").text


@pytest.fixture(scope="module")
def long_model(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Of which a long session does not fit into 4 GiB; nobody fills one here."""
    maker = TinyLlama(with_tokenizer=True, n_ctx=1 << 20, n_head_kv=4, head_dim=128)
    return runtime.load_model(
        maker.write(tmp_path_factory.mktemp("long") / "long.gguf"), kv_type="f32"
    )


def length_beyond_4_gib(model: Model) -> int:
    return (5 * GIB) // model.layout(256).token_nbytes


def test_the_build_is_chosen_by_the_context(long_model: Model) -> None:
    far = length_beyond_4_gib(long_model)
    usual = Limits()
    assert fitting_guest("chat", long_model, 2048, usual) == ("chat", usual)
    guest, limits = fitting_guest("chat", long_model, far, usual)
    assert guest == "chat64"
    assert limits.memory_nbytes > 5 * GIB
    assert fitting_guest("chat", long_model, 2048, usual, memory64=True) == ("chat64", usual)
    assert fitting_guest("chat", long_model, far, usual, memory64=False) == ("chat", usual)
    assert fitting_guest("embed", long_model, far, usual) == ("embed", usual)
    own = Limits(memory_nbytes=GIB)
    assert fitting_guest("chat", long_model, far, own) == ("chat64", own)
    with pytest.raises(SettingsError, match="embed has no 64-bit build"):
        fitting_guest("embed", long_model, far, usual, memory64=True)


def test_a_session_beyond_4_gib(runtime: Runtime, long_model: Model) -> None:
    """Its values begin more than 2 GiB behind its keys, and none of it but some rows is touched."""
    far = length_beyond_4_gib(long_model)
    guest, limits = fitting_guest("bench", long_model, far, Limits())
    models = {"default": long_model}
    wide = runtime.spawn(guest, models=models, args={"n_ctx": far}, limits=limits)
    near = runtime.spawn("bench", models=models, args={"n_ctx": 256})
    assert talk(wide) == talk(near)
    assert wide.sessions[0].layout.nbytes > 5 * GIB
    with pytest.raises(
        LimitExceeded, match="32-bit, 4 GiB at most: spawn a guest built for wasm64"
    ):
        runtime.spawn("bench", models=models, args={"n_ctx": far}).send("next 1")


def test_chat_and_complete_answer_the_same(runtime: Runtime, model: Model) -> None:
    options = {"n_ctx": 256, "max_tokens": 8, "temperature": 0}
    answers = {
        guest: runtime.spawn(guest, models={"default": model}, args=options, seed=1)
        .send("the cat is")
        .text
        for guest in ("chat", "chat64")
    }
    assert answers["chat"] == answers["chat64"]
    ids = b"".join(it.to_bytes(4, "little") for it in range(5, 25))
    words = Words(max_tokens=6, temperature=0.8, seed=3, logprobs=2, bias="7:1.5")
    request = words.line() + ids
    lines = {
        guest: runtime.spawn(guest, models={"default": model}, args={"n_ctx": 256}, seed=1)
        .send(request)
        .text
        for guest in ("complete", "complete64")
    }
    assert lines["complete"] == lines["complete64"]
    assert lines["complete"].count("\n") == 1 + 6 + 1
