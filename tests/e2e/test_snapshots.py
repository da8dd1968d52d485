"""Whole agents saved, restored, forked, moved and compared: in Python and on the command line."""

from __future__ import annotations

import ctypes
import gc
import json
import os
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors import safe_open

from isthmus import Actor, Limits, Model, Runtime
from isthmus.cli.restoring import _load
from isthmus.device.cpu import CpuDevice
from isthmus.errors import (
    ActorBusy,
    ActorClosed,
    SettingsError,
    SnapshotError,
    SnapshotMismatch,
    SnapshotNotFound,
    SnapshotUntrusted,
)
from isthmus.machine import exact_resident_nbytes
from isthmus.memory import Region
from isthmus.memory.pagemap import touched_chunks
from isthmus.model.probes.widths import Width
from isthmus.snapshot import CHUNK_NBYTES, Store, open_snapshot
from isthmus.snapshot.report import diff, inspect, lineage
from isthmus.units import OS_PAGE
from tests.e2e.test_cli import complains, isthmus
from tests.exact.digest import digest
from tests.tiny_gguf import TinyLlama

BENCH = ["n_ctx=256"]
CHAT = ["n_ctx=1024", "max_tokens=12", "temperature=0"]


@pytest.fixture(scope="module")
def shared() -> Iterator[Runtime]:
    with Runtime(device="cpu", threads=2) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def model(shared: Runtime, tiny: Path) -> Model:
    return shared.load_model(tiny)


@pytest.fixture
def actor(shared: Runtime, model: Model) -> Iterator[Actor]:
    with shared.spawn("bench", models={"default": model}, args=BENCH, seed=1) as actor:
        actor.send("prefill 20 1")
        yield actor


def restored(runtime: Runtime, path: Path, model: Model, **how: object) -> Actor:
    return runtime.restore(path, models={"default": model}, **how)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------- the file


def test_any_safetensors_reader_reads_it(shared: Runtime, actor: Actor, tmp_path: Path) -> None:
    actor.send("sequence 3")
    saved = actor.snapshot(tmp_path / "a.safetensors")
    session = actor.sessions[0]
    with safe_open(saved.path, "np") as file:  # type: ignore[no-untyped-call]
        names = set(file.keys())
        assert np.array_equal(file.get_tensor("session.2.logits"), session.logits)
        assert file.get_tensor("session.2.tokens").tolist() == session.tokens.tolist()
        keys = file.get_tensor("session.2.k.1")
        assert (keys.dtype, keys.shape) == (np.float16, (256, 64))
        assert np.any(keys[:23])
        assert not np.any(keys[23:])
        assert file.get_tensor("guest").tobytes() == actor.guest.wasm
        assert json.loads(file.metadata()["manifest"])["format_version"] == 2
    assert {"session.2.v.0", "chunk.numbers", "chunk.sha256", "session.2.text"} < names


def test_the_image_begins_at_a_page(actor: Actor, tmp_path: Path) -> None:
    saved = actor.snapshot(tmp_path / "a.safetensors")
    header_nbytes = int.from_bytes(saved.path.read_bytes()[:8], "little")
    assert (8 + header_nbytes) % CHUNK_NBYTES == 0


def test_inspect_diff_and_log(shared: Runtime, actor: Actor, tmp_path: Path) -> None:
    first = actor.snapshot(tmp_path / "first.safetensors")
    actor.send("sequence 2")
    second = actor.snapshot(tmp_path / "second.safetensors")
    before, after = open_snapshot(first.path), open_snapshot(second.path)
    seen = inspect(after)
    assert (seen.sessions[0].n_tokens, seen.n_messages, seen.parent) == (22, 2, first.id)
    assert seen.disk_nbytes < seen.file_nbytes
    found = diff(before, after)
    assert not found.same
    assert (found.sessions[0].n_common_tokens, found.sessions[0].n_tokens_after) == (20, 22)
    assert {"session.2.logits", "session.2.k of all layers"} <= found.places.keys()
    assert any(change.startswith("actor.n_messages: 1 -> 2") for change in found.records)
    assert diff(before, open_snapshot(first.path)).same
    assert [it if isinstance(it, str) else it.id for it in lineage(after)] == [second.id, first.id]
    first.path.unlink()
    assert list(lineage(after))[1] == first.id


# ---------------------------------------------------------------------------------- restoring


def test_nothing_is_copied_and_nothing_computed(
    shared: Runtime, model: Model, actor: Actor, tmp_path: Path
) -> None:
    saved = actor.snapshot(tmp_path / "a.safetensors")
    prefilled = model.executor.counters.tokens_prefilled
    with restored(shared, saved.path, model) as again:
        assert digest(again) == digest(actor)
        assert again.restored is not None
        assert (again.restored.level, again.restored.reasons) == ("exact", ())
        assert again.counters.bytes_restored == 0
    assert model.executor.counters.tokens_prefilled == prefilled


def test_the_file_may_be_replaced_while_it_is_mapped(
    shared: Runtime, model: Model, actor: Actor, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    actor.snapshot(path)
    with restored(shared, path, model, verify="lazy") as again:
        actor.send("truncate 0")
        actor.send("prefill 50 9")
        actor.snapshot(path)
        assert len(again.sessions[0].tokens) == 20
        again.snapshot(path)  # over the file that it was restored from, in another version
        with restored(shared, path, model) as third:
            assert digest(third) == digest(again)


class CopyingDevice(CpuDevice):
    """Supplies memory whose pages cannot be replaced by those of a file, as CUDA's."""

    def reserve(self, reserved_nbytes: int, guard_nbytes: int) -> Region:
        region = super().reserve(reserved_nbytes, guard_nbytes)
        region.remappable = False
        return region

    @property
    def remaps(self) -> bool:
        return False


def test_a_device_that_cannot_map_files_gets_one_copy(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isthmus.device.cpu.CpuDevice", CopyingDevice)
    with Runtime(device="cpu", threads=2) as runtime:
        model = runtime.load_model(tiny)
        actor = runtime.spawn("bench", models={"default": model}, args=BENCH, seed=1)
        actor.send("prefill 20 1")
        saved = actor.snapshot(tmp_path / "a.safetensors")
        again = restored(runtime, saved.path, model)
        assert again.counters.bytes_restored == actor.region.nbytes
        child = actor.fork()[0]
        assert child.counters.bytes_restored == actor.region.nbytes
        assert digest(again) == digest(actor) == digest(child)
        answers = {it.send("sequence 4").text for it in (actor, again, child)}
        assert len(answers) == 1
        store = tmp_path / "store"
        store.mkdir()
        first = actor.snapshot(store)
        actor.send("sequence 1")
        second = actor.snapshot(store, base=first)
        assert 0 < second.n_chunks_written < first.n_chunks_written
        assert digest(restored(runtime, second.path, model)) == digest(actor)


def test_levels(shared: Runtime, model: Model, actor: Actor, tiny: Path, tmp_path: Path) -> None:
    path = actor.snapshot(tmp_path / "a.safetensors").path
    with Runtime(device="cpu", threads=1) as other:
        elsewhere = other.load_model(tiny)
        with restored(other, path, elsewhere) as again:
            assert again.restored is not None
            assert again.restored.level == "state-exact"
            assert again.restored.reasons == ("threads: 2 then, 1 now",)
            assert digest(again) == digest(actor)
        with pytest.raises(SnapshotMismatch, match=r"state-exact, and exact is required.*threads"):
            restored(other, path, elsewhere, require="exact")
        assert other.actors == []
    smaller = shared.load_model(tiny, prefill_chunk=64)
    with restored(shared, path, smaller) as again:
        assert again.restored is not None
        assert again.restored.level == "state-exact"


def test_a_snapshot_names_the_class_of_its_steps(shared: Runtime, tmp_path: Path) -> None:
    """F16 products have other bits for one column than for several, on a processor too."""
    file = TinyLlama(with_tokenizer=True, quantisation="F16", n_embd=256, n_ff=512)
    path = file.write(tmp_path / "f16.gguf")
    many, alone = (shared.load_model(path, width=width) for width in ("many", "alone"))
    with shared.spawn("bench", models={"default": many}, args=["n_ctx=256"], seed=1) as actor:
        actor.send("prefill 20 1")
        saved = actor.snapshot(tmp_path / "a.safetensors")
        record = open_snapshot(saved.path).manifest.models[0]
        assert (record.width, open_snapshot(saved.path).manifest.format_version) == ("2-32", 4)
        with restored(shared, saved.path, many) as again:
            assert again.restored is not None
            assert (again.restored.level, again.restored.reasons) == ("exact", ())
            assert digest(again) == digest(actor)
            assert again.send("hash 20").text == actor.send("hash 20").text
    with restored(shared, saved.path, alone) as other:
        assert other.restored is not None
        assert other.restored.level == "state-exact"
        assert "its steps were of width 2-32, are of alone" in other.restored.reasons[0]
        back = other.snapshot(tmp_path / "b.safetensors")
        assert open_snapshot(back.path).manifest.format_version == 2
    with pytest.raises(SnapshotMismatch, match="width 2-32"):
        restored(shared, saved.path, alone, require="exact")
    with Runtime(device="cpu", threads=1) as runtime:
        given = Namespace(kv_type=None, graph="auto")
        assert _load(runtime, str(path), record, given).width == Width(2, 32)
        elsewhere = msgspec.structs.replace(record, width="9-128")  # as a card wrote it
        assert _load(runtime, str(path), elsewhere, given).width == Width(2, 32)


def test_another_model_prefills_the_tokens_again(
    shared: Runtime, model: Model, actor: Actor, tiny: Path, tmp_path: Path
) -> None:
    path = actor.snapshot(tmp_path / "a.safetensors").path
    trained = TinyLlama(with_tokenizer=True, seed=7).write(tmp_path / "trained.gguf")
    for other, how in (
        (shared.load_model(trained), "weights"),
        (shared.load_model(tiny, kv_type="f32"), "KV cache of f16 then, f32 now"),
    ):
        with pytest.raises(SnapshotMismatch, match=how):
            restored(shared, path, other)
        with restored(shared, path, other, require="replayed") as again:
            assert again.restored is not None
            assert again.restored.level == "replayed"
            assert other.executor.counters.tokens_prefilled == 20
            assert again.sessions[0].tokens == actor.sessions[0].tokens
            fresh = shared.spawn("bench", models={"default": other}, args=BENCH)
            fresh.send("prefill 20 1")
            assert np.array_equal(again.sessions[0].logits, fresh.sessions[0].logits)
            saved = again.snapshot(tmp_path / "again.safetensors")
            said = again.send("sequence 4").text
            assert said == fresh.send("sequence 4").text
        with restored(shared, saved.path, other) as third:
            assert third.send("sequence 4").text == said


def test_another_tokenizer_is_the_guests_business(
    shared: Runtime, model: Model, actor: Actor, tmp_path: Path
) -> None:
    wider = TinyLlama(with_tokenizer=True, n_vocab=400, n_layer=3, seed=2)
    other = shared.load_model(wider.write(tmp_path / "wider.gguf"))
    path = actor.snapshot(tmp_path / "bench.safetensors").path
    with pytest.raises(SnapshotMismatch, match="bench does not export on_replay"):
        restored(shared, path, other, require="replayed")
    for guest, message in (("chat", "My name is Ada."), ("summarise", "Ships sail. " * 9)):
        with shared.spawn(guest, models={"default": model}, args=CHAT, seed=1) as first:
            first.send(message)
            path = first.snapshot(tmp_path / f"{guest}.safetensors").path
        with restored(shared, path, other, require="replayed") as again:
            again.send("And now?")
            tokens = again.sessions[0].tokens
            text = other.tokenizer.decode(tokens, render_special=True).decode(errors="replace")
            assert ("My name is Ada." in text) == (guest == "chat")
            assert "And now?" in text


def test_a_model_file_that_was_replaced_is_not_taken_for_the_one_in_use(tmp_path: Path) -> None:
    path = TinyLlama(with_tokenizer=True).write(tmp_path / "tiny.gguf")
    other = TinyLlama(with_tokenizer=True, seed=9).write(tmp_path / "other.gguf")
    with Runtime(device="cpu", threads=1) as runtime:
        models = {"default": runtime.load_model(path)}
        with runtime.spawn("bench", models=models, args=["n_ctx=256"]) as actor:
            actor.send("prefill 5 1")
            os.replace(other, path)
            with pytest.raises(SnapshotError, match="was replaced"):
                actor.snapshot(tmp_path / "a.safetensors")
            assert not (tmp_path / "a.safetensors").exists()
            assert actor.send("next 1").text.startswith("token=")


def test_limits_and_tools_come_back(shared: Runtime, tmp_path: Path, model: Model) -> None:
    limits = Limits(tokens=30, memory_nbytes=1 << 26, deadline_s=20.0)
    with shared.spawn(
        "bench", models={"default": model}, args=BENCH, limits=limits, tools={"add": lambda it: it}
    ) as actor:
        path = actor.snapshot(tmp_path / "a.safetensors").path
    with pytest.raises(SnapshotMismatch, match="the tool 'add'"):
        restored(shared, path, model)
    with restored(shared, path, model, tools={"add": lambda it: it}) as again:
        assert again.limits == limits
    small = Limits(memory_nbytes=65536)
    with pytest.raises(SnapshotMismatch, match="of memory"):
        restored(shared, path, model, tools={"add": lambda it: it}, limits=small)


def test_signed(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with Runtime(device="null", snapshot_key=b"k" * 16) as runtime:
        runtime.spawn("bench").snapshot(path)
        assert runtime.restore(path).restored
    with Runtime(device="null") as runtime:
        assert runtime.restore(path).restored  # whoever has no key does not ask
        runtime.spawn("bench").snapshot(tmp_path / "unsigned.safetensors")
    with Runtime(device="null", snapshot_key=b"other" * 4) as runtime:
        with pytest.raises(SnapshotUntrusted, match="another key"):
            runtime.restore(path)
        with pytest.raises(SnapshotUntrusted, match="not signed"):
            runtime.restore(tmp_path / "unsigned.safetensors")
        assert runtime.actors == []
    with pytest.raises(SettingsError, match="16 bytes or more"):
        Runtime(device="null", snapshot_key=b"short")


# ---------------------------------------------------------------------------------- stores


def test_an_incremental_snapshot_reads_and_writes_what_changed(
    shared: Runtime, model: Model, actor: Actor, tmp_path: Path
) -> None:
    (tmp_path / "store").mkdir()
    first = actor.snapshot(tmp_path / "store", name="first")
    assert touched_chunks(actor.region, CHUNK_NBYTES).size == 0  # hashed already
    actor.send("sequence 1")
    n_touched = touched_chunks(actor.region, CHUNK_NBYTES).size
    second = actor.snapshot(tmp_path / "store", name="second", base="first")
    assert 0 < second.n_chunks_written <= n_touched
    found = open_snapshot(second.path)
    assert found.manifest.parent == first.id
    found.verify()
    with restored(shared, second.path, model) as again:
        assert digest(again) == digest(actor)
    with pytest.raises(SettingsError, match="for stores"):
        actor.snapshot(tmp_path / "a.safetensors", base=first)


def test_agents_share_chunks(shared: Runtime, model: Model, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    saved = []
    for n in range(3):
        with shared.spawn("bench", models={"default": model}, args=BENCH, seed=1) as actor:
            actor.send("prefill 150 1")
            actor.send(f"prefill 3 {n}")
            saved.append(actor.snapshot(store, name=f"agent-{n}"))
    assert saved[1].n_chunks_written < saved[0].n_chunks_written
    store.delete("agent-0")
    store.gc()
    for it in saved[1:]:
        with restored(shared, it.path, model) as again:
            assert again.sessions[0].n_tokens == 153


# ---------------------------------------------------------------------------------- forks


def test_forks_live_on_their_own(shared: Runtime, model: Model, actor: Actor) -> None:
    first, second = actor.fork(2)
    assert digest(first) == digest(second) == digest(actor)
    actor.send("sequence 3")
    first.send("truncate 5")
    assert (second.sessions[0].n_tokens, first.sessions[0].n_tokens) == (20, 5)
    actor.close()
    assert second.send("sequence 3").text
    third = second.fork()[0]
    assert digest(third) == digest(second)
    with pytest.raises(ActorClosed):
        actor.fork()
    with pytest.raises(ActorClosed):
        actor.snapshot("x.safetensors")
    with pytest.raises(SettingsError):
        second.fork(0)


def test_neither_fork_nor_snapshot_while_it_runs(
    shared: Runtime, model: Model, tmp_path: Path
) -> None:
    """Of a guest that is not resumable; tests/e2e/test_pausing.py has the others."""
    with shared.spawn("bench", models={"default": model}, args=BENCH, seed=1) as actor:
        actor.send("prefill 20 1")
        stream = actor.stream("sequence 200")
        with pytest.raises(ActorBusy):
            actor.fork()
        with pytest.raises(ActorBusy):
            actor.snapshot(tmp_path / "a.safetensors")
        stream.close()
        assert actor.fork()[0].state == "idle"
    assert os.listdir(tmp_path) == []


@pytest.mark.model
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
def test_a_hundred_forks_take_little_more_than_one_agent(shared: Runtime, smollm2: Path) -> None:
    model = shared.load_model(smollm2)

    def spawn() -> Actor:
        actor = shared.spawn("bench", models={"default": model}, args=["n_ctx=1280"], seed=1)
        actor.send("prefill 1000 3")
        actor.send("sequence 1")
        return actor

    spawn().close()  # weights and scratch memory are resident from now on
    before = _held_nbytes()
    actor = spawn()
    one = _held_nbytes() - before
    own = touched_chunks(actor.region, OS_PAGE).size * OS_PAGE  # whatever was freed meanwhile
    children = actor.fork(100)
    answers = [child.send("sequence 2").text for child in children]
    assert set(answers) == {actor.send("sequence 2").text}
    total = _held_nbytes() - before
    written = sum(touched_chunks(it.region, OS_PAGE).size * OS_PAGE for it in (actor, *children))
    assert own > 1000 * actor.sessions[0].layout.token_nbytes
    assert written < 100 * 1_000_000
    assert total - written < 1.5 * max(one, own)
    for child in children:
        child.close()


def _held_nbytes() -> int:
    """Bytes of memory in use, without mapped files, whose share other processes change: what Python
    and malloc keep free for later is given back first."""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc
        libc.malloc_trim(0)
    return exact_resident_nbytes("Pss_Anon") + exact_resident_nbytes("Pss_Shmem")


# ---------------------------------------------------------------------------------- command line


def test_the_command_line(tiny: Path, tmp_path: Path) -> None:
    file, store = tmp_path / "a.safetensors", tmp_path / "store"
    common = ("--model", tiny, "--arg", "max_tokens=4", "--arg", "n_ctx=1024", "--seed", "1")
    done = isthmus("snapshot", "chat", *common, "--message", "My name is Ada.", "--out", file)
    assert done.returncode == 0, done.stderr
    assert "Saved" in done.stderr
    done = isthmus("snapshot", "chat", *common, "--out", f"{store}/", "--name", "empty")
    assert done.returncode == 0, done.stderr

    done = isthmus("inspect", file)
    assert "My name is Ada." in done.stdout
    assert json.loads(isthmus("inspect", file, "--json").stdout)["guest"] == "chat"

    done = isthmus("restore", file, "--model", tiny, "--message", "Hi", "--save", store / "later")
    assert done.returncode == 0, done.stderr
    assert "Restored chat, exact." in done.stderr
    assert isthmus("diff", file, file).stdout == "the same agent\n"
    done = isthmus("diff", file, store / "later")
    assert done.returncode == 1
    assert "tokens in common" in done.stdout
    assert "not in this folder" in isthmus("log", store / "later").stdout

    done = isthmus(
        "fork", file, "--model", tiny, "--message", "A?", "--message", "B?", "--out", store
    )
    assert done.returncode == 0, done.stderr
    assert "--- 2: B?" in done.stdout
    done = isthmus("verify-snapshot", file, store / "later", store / "fork-1", store / "fork-2")
    assert done.stdout.count("whole") == 4
    done = isthmus("gc", store, "--delete", "later")
    assert done.stdout.startswith("3 snapshots left")


def test_the_command_line_complains(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    complains(isthmus("restore", file, "--message", "x"), 2, "there is no snapshot")
    complains(isthmus("inspect", tiny), 2, "not a safetensors file")
    complains(isthmus("gc", tmp_path), 2, "not a store")
    complains(isthmus("inspect", tmp_path), 2, "is a folder")
    done = isthmus("snapshot", "bench", "--model", tiny, "--message", "prefill 5 1", "--out", file)
    assert done.returncode == 0, done.stderr
    complains(isthmus("restore", file, "--message", "next 1"), 2, "the model 'default' .tiny.gguf")
    complains(
        isthmus("restore", file, "--model", f"other={tiny}", "--message", "x"), 2, "named other"
    )
    other = TinyLlama(with_tokenizer=True, seed=3).write(tmp_path / "other.gguf")
    complains(isthmus("restore", file, "--model", other, "--message", "x"), 2, "weights")
    key = tmp_path / "key"
    key.write_text("0123456789abcdef\n")
    complains(isthmus("inspect", file, "--key-file", key), 2, "not signed")
    complains(isthmus("inspect", file, "--key-file", tmp_path / "none"), 2, "cannot read the key")
    data = bytearray(file.read_bytes())
    data[40_000] ^= 1
    file.write_bytes(data)
    complains(isthmus("verify-snapshot", file), 2, "damaged")


def test_chat_is_resumed(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "chat.safetensors"
    args = ("--model", tiny, "--arg", "max_tokens=4", "--arg", "n_ctx=1024", "--seed", "1")
    done = isthmus("chat", "--resume", file, *args, stdin="My name is Ada.\n")
    assert done.returncode == 0, done.stderr
    done = isthmus("chat", "--resume", file, "--model", tiny, stdin="Who am I?\n")
    assert done.returncode == 0, done.stderr
    assert "Restored chat, exact." in done.stderr
    text = json.loads(isthmus("inspect", file, "--json").stdout)["sessions"][0]["text"]
    assert text.index("My name is Ada.") < text.index("Who am I?")
    assert os.listdir(tmp_path) == ["chat.safetensors"]
    done = isthmus("chat", "--resume", file, "--model", tiny, "--arg", "x=1", stdin="/new\nHi\n")
    assert "--arg not used" in done.stderr
    kept = [path for path in tmp_path.iterdir() if path != file]
    assert len(kept) == 1
    assert "Ada" in isthmus("inspect", kept[0]).stdout
    assert "Ada" not in isthmus("inspect", file).stdout
    done = isthmus("chat", "--resume", tmp_path / "no" / "x", "--model", tiny, stdin="Hi\n")
    complains(done, 2, "cannot write in")


def test_saved_before_its_first_message(tiny: Path, tmp_path: Path) -> None:
    file, store = tmp_path / "a.safetensors", tmp_path / "store"
    done = isthmus("snapshot", "chat", "--model", tiny, "--arg", "max_tokens=4", "--out", file)
    assert done.returncode == 0, done.stderr
    done = isthmus("restore", file, "--model", tiny, "--message", "Hi")
    assert done.returncode == 0, done.stderr
    done = isthmus("chat", "--resume", f"{store}/one", "--model", tiny, stdin="")
    complains(done, 2, "cannot write in")
    Store(store)
    done = isthmus("chat", "--resume", f"{store}/one", "--model", tiny, stdin="Hi\n")
    assert Store(store).names() == ["one"], done.stderr
    complains(isthmus("inspect", store), 2, "is a store; give .*/NAME.*: one")
    assert "whole" in isthmus("verify-snapshot", store).stdout
    done = isthmus("restore", f"{store}/one", "--model", tiny, "--save", tmp_path / "b.safetensors")
    assert open_snapshot(tmp_path / "b.safetensors").self_contained, done.stderr


def test_a_folder_with_other_things_does_not_become_a_store(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear")
    with Runtime(device="null") as runtime, pytest.raises(SnapshotError, match="neither empty nor"):
        runtime.spawn("bench").snapshot(tmp_path)
    assert os.listdir(tmp_path) == ["letter.txt"]


def test_what_says_which_snapshot_is_meant(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    with Runtime(device="null") as runtime:
        saved = runtime.spawn("bench").snapshot(store, name="one")
        for meant in (saved, saved.path, str(saved.path), tmp_path / "store" / "one"):
            assert runtime.restore(meant).restored
        with pytest.raises(SnapshotNotFound, match=r"is a store.*one"):
            runtime.restore(tmp_path / "store")
        with pytest.raises(SettingsError, match="is str"):
            Runtime(device="null", snapshot_key="a text of 16 or more")  # type: ignore[arg-type]
