"""The moment at which a message is done, and who may come between."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
import wasmtime
from starlette.requests import Request

from isthmus import Runtime
from isthmus.errors import (
    Overloaded,
    SettingsError,
    SnapshotError,
    SnapshotInvalid,
    SnapshotNotFound,
)
from isthmus.server.agents.answers import Answers, sent_of
from isthmus.server.agents.requests import NewMessage
from isthmus.server.agents.routes import Agents
from isthmus.server.agents.shelf import Shelf
from isthmus.server.settings import ServerSettings
from isthmus.server.storage import folder, history
from isthmus.server.storage.folder import Folder
from isthmus.server.storage.record import Record, Turn, new_id
from isthmus.snapshot import Store, open_snapshot
from isthmus.wasm import loading
from tests.server.process import no_models

COUNTS = """(module (import "isthmus" "reply" (func $r (param i32 i32) (result i32)))
  (memory (export "memory") 1) (data (i32.const 8) "@")
  (func (export "on_message") (param i32) (result i32)
    (i32.store8 (i32.const 8) (i32.add (i32.load8_u (i32.const 8)) (i32.const 1)))
    (call $r (i32.const 8) (i32.const 1))))"""


def _record(guest: str) -> Record:
    return Record(
        id=new_id(), name="", guest=guest, models={}, args={}, limits={}, seed=1, created=0.0
    )


def test_a_caller_who_is_cancelled_while_it_is_saved_lets_nobody_between(
    null_runtime: Runtime, tmp_path: Path
) -> None:
    settings = ServerSettings(data=tmp_path)
    shelf = Shelf(no_models(null_runtime), settings)
    saving, go_on = threading.Event(), threading.Event()
    write = shelf.write

    def slowly(record: Record, turns: Sequence[Turn]) -> None:
        if record.position == 1:
            saving.set()
            assert go_on.wait(20)
        write(record, turns)

    async def live() -> list[Turn]:
        guest = shelf.guests.add(bytes(wasmtime.wat2wasm(COUNTS)))
        record = await shelf.create(_record(guest))
        shelf.write = slowly  # type: ignore[method-assign]
        answers = Answers(shelf, settings)

        async def tell() -> None:
            async with shelf.holding(record.id) as held:
                async for _ in answers.items(held, sent_of(NewMessage(input="x"))):
                    pass

        first = asyncio.ensure_future(tell())
        await asyncio.to_thread(saving.wait, 20)
        first.cancel()
        second = asyncio.ensure_future(tell())
        await asyncio.sleep(0.1)
        assert not second.done()  # the first is still being saved
        go_on.set()
        with contextlib.suppress(asyncio.CancelledError):
            await first
        await second
        turns = await shelf.turns(shelf.record(record.id))
        await shelf.close()
        return turns

    assert [(turn.position, turn.output) for turn in asyncio.run(live())] == [(1, "A"), (2, "B")]


def test_what_never_happened_is_swept_at_the_start(null_runtime: Runtime, tmp_path: Path) -> None:
    settings = ServerSettings(data=tmp_path)
    shelf = Shelf(no_models(null_runtime), settings)
    with null_runtime.spawn(bytes(wasmtime.wat2wasm(COUNTS))) as actor:
        actor.snapshot(shelf.store, name="aaaaaaaaaaaa.1")
    packs = tmp_path / "store" / "packs"
    assert list(packs.iterdir())
    asyncio.run(shelf.close())
    again = Shelf(no_models(null_runtime), settings)
    assert again.store.names() == []
    again.wait()
    assert list(packs.iterdir()) == []
    asyncio.run(again.close())


def test_a_seed_that_no_record_holds_is_refused(null_runtime: Runtime, tmp_path: Path) -> None:
    shelf = Shelf(no_models(null_runtime), ServerSettings(data=tmp_path / "data"))
    with null_runtime.spawn(bytes(wasmtime.wat2wasm(COUNTS))) as actor:
        snapshot = open_snapshot(actor.snapshot(tmp_path / "a.safetensors").path)
    manifest, replace = snapshot.manifest, msgspec.structs.replace
    snapshot.manifest = replace(manifest, actor=replace(manifest.actor, seed="9" * 20))

    async def adopt() -> None:
        with pytest.raises(SnapshotInvalid, match="impossible seed"):
            await shelf.adopt("", snapshot, {}, "state-exact")
        assert shelf.records == {}
        await shelf.close()

    asyncio.run(adopt())


def test_modules_that_compile_for_long_leave_threads_to_others(
    null_runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def slowly(_wasm: bytes, _kind: object, check: object) -> bytes:
        assert go_on.wait(120)
        raise Overloaded("never mind")

    def posted(text: bytes) -> Request:
        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": text, "more_body": False}

        return Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)

    async def live() -> int:
        settings = ServerSettings(data=tmp_path)
        shelf = Shelf(no_models(null_runtime), settings)
        answers = Answers(shelf, settings)
        module = bytes(wasmtime.wat2wasm(COUNTS))
        bringing = [
            asyncio.ensure_future(
                Agents(shelf, answers, settings).bring(posted(module + bytes([0, 2, 1, i])))
            )
            for i in range(64)
        ]
        await asyncio.sleep(0.2)
        try:
            return await asyncio.wait_for(shelf.in_thread(lambda: 7), 60)
        finally:
            go_on.set()
            await asyncio.gather(*bringing, return_exceptions=True)
            await shelf.close()

    monkeypatch.setattr(loading, "compile_apart", slowly)
    assert asyncio.run(live()) == 7


# ---------------------------------------------------------------------------------- the home


def record_of(id_: str, position: int = 0) -> Record:
    return Record(
        id=id_,
        name="n",
        guest="chat",
        models={},
        args={},
        limits={},
        seed=1,
        created=1.5,
        position=position,
    )


def turn_of(position: int, text: str) -> Turn:
    return Turn(
        position=position,
        at=1.0,
        input=text,
        output=text,
        n_tokens=1,
        seconds=1.0,
        nbytes_written=1,
    )


ID = "aaaaaaaaaaaa"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Folder]:
    home = Folder(tmp_path)
    yield home
    home.close()


def n_kept(home: Folder, tmp_path: Path) -> int:
    """Bytes of all records and turns."""
    return sum(
        it.stat().st_size for name in ("agents", "turns") for it in (tmp_path / name).iterdir()
    )


def test_a_message_does_not_write_those_before_it_again(home: Folder, tmp_path: Path) -> None:
    """What is written with a message, the record and new segments, is bounded; all comes back."""
    text = "word " * 400
    home.commit(record_of(ID), [])
    most = 0
    for position in range(1, 301):
        before = set((tmp_path / "turns").iterdir())
        home.commit(record_of(ID, position), [turn_of(position, f"{position} {text}")])
        new = set((tmp_path / "turns").iterdir()) - before
        size = (tmp_path / "agents" / f"{ID}.json").stat().st_size
        most = max(most, size + sum(it.stat().st_size for it in new))
    assert most < 2 * history.TAIL_NBYTES
    turns = home.turns(record_of(ID, 300))
    assert [it.position for it in turns] == list(range(1, 301))
    assert turns[7].input == f"8 {text}"
    assert [it.position for it in home.turns(record_of(ID, 299))] == list(range(1, 300))


def test_what_an_agent_keeps_of_huge_answers_is_bounded(home: Folder, tmp_path: Path) -> None:
    home.commit(record_of(ID), [])
    for position in range(1, 31):
        home.commit(record_of(ID, position), [turn_of(position, "\0" * (2 << 20))])
        home.wait()
        assert n_kept(home, tmp_path) < 2 * history.KEPT_NBYTES
    last = home.turns(record_of(ID, 30))[-1]
    assert last.position == 30
    assert last.output == "\0" * history.TEXT_CHARACTERS
    assert last.n_left_out == 2 * ((2 << 20) - history.TEXT_CHARACTERS)


def test_a_record_of_an_earlier_release(home: Folder, tmp_path: Path) -> None:
    """All turns are in it, with indentation; the first message brings it into the new form."""
    turns = [msgspec.to_builtins(turn_of(n, f"{n} " + "x" * 5_000)) for n in range(1, 301)]
    for turn in turns:
        del turn["n_left_out"]
    old = {**msgspec.to_builtins(record_of(ID, 300)), "turns": turns, "stored": None}
    path = tmp_path / "agents" / f"{ID}.json"
    path.write_text(json.dumps(old, indent=1))
    (found,) = home.records()
    assert found == record_of(ID, 300)
    assert len(home.turns(found)) == 300
    home.commit(record_of(ID, 301), [turn_of(301, "new")])
    assert path.stat().st_size < 2 * history.TAIL_NBYTES
    kept = home.turns(record_of(ID, 301))
    assert [it.input.split()[0] for it in kept] == [*map(str, range(1, 301)), "new"]


def test_a_crash_between_segment_and_record(
    home: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The turns are the old ones or the new ones, wherever a message ends."""
    long = "x" * history.TAIL_NBYTES
    home.commit(record_of(ID), [])
    home.commit(record_of(ID, 1), [turn_of(1, long)])
    write = folder._write

    def dies(path: Path, data: bytes) -> None:
        if path.name.endswith(".json"):
            raise SnapshotError("killed")
        write(path, data)

    monkeypatch.setattr(folder, "_write", dies)
    with pytest.raises(SnapshotError):
        home.commit(record_of(ID, 2), [turn_of(2, long)])
    monkeypatch.undo()
    assert [it.position for it in home.turns(record_of(ID, 1))] == [1]
    home.commit(record_of(ID, 2), [turn_of(2, "another" + long)])
    assert home.turns(record_of(ID, 2))[-1].input.startswith("another")
    home.remove(record_of(ID, 2))
    assert home.records() == []
    assert list((tmp_path / "turns").iterdir()) == []


def test_damaged_turns(home: Folder, tmp_path: Path) -> None:
    home.commit(record_of(ID, 1), [turn_of(1, "x" * history.TAIL_NBYTES)])
    (segment,) = (tmp_path / "turns").iterdir()
    segment.write_bytes(b"[" * 1000)
    with pytest.raises(SnapshotInvalid, match="damaged"):
        home.turns(record_of(ID, 1))
    segment.unlink()
    with pytest.raises(SnapshotInvalid, match="missing"):
        home.turns(record_of(ID, 1))
    with pytest.raises(SnapshotNotFound):
        home.turns(record_of("b" * 12))


def brackets(path: Path) -> None:
    path.write_bytes(b"[" * (8 << 20))


def deep_turns(path: Path) -> None:
    path.write_bytes(b'{"id":"aaaaaaaaaaaa","turns":' + b"[" * (8 << 20))


def sparse(path: Path) -> None:
    path.write_bytes(b"[")
    os.truncate(path, 1 << 40)


def not_text(path: Path) -> None:
    path.write_bytes(b'{"id":"\xff\xfe"}')


def a_folder(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_link(path: Path) -> None:
    path.symlink_to(path.parent)


def a_number(path: Path) -> None:
    path.write_bytes(b'{"id":"aaaaaaaaaaaa","position":1e400}')


@pytest.mark.parametrize(
    "make", [brackets, deep_turns, sparse, not_text, a_folder, a_pipe, a_link, a_number]
)
def test_what_is_found_instead_of_a_record(tmp_path: Path, make: Callable[[Path], None]) -> None:
    home = Folder(tmp_path)
    make(tmp_path / "agents" / f"{ID}.json")
    with pytest.raises(SettingsError, match=ID):
        home.records()
    with pytest.raises(SnapshotError):
        home.turns(record_of(ID))
    with pytest.raises(SnapshotError):
        home.commit(record_of(ID, 1), [turn_of(1, "x")])
    home.close()


def test_names_that_are_not_text(tmp_path: Path) -> None:
    home = Folder(tmp_path)
    for name in ("agents", "turns", "guests", "store/packs", "store/snapshots"):
        (tmp_path / name / os.fsdecode(b"\xff\xfe.json")).write_bytes(b"{}")
    with pytest.raises(SettingsError):
        home.records()
    (tmp_path / "agents" / os.fsdecode(b"\xff\xfe.json")).unlink()
    assert home.records() == []
    home.close()


def test_deleting_waits_for_no_collection(home: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    going, go_on = threading.Event(), threading.Event()
    collect = Store.gc

    def slowly(store: Store, **how: bool) -> object:
        going.set()
        assert go_on.wait(20)
        return collect(store, **how)

    monkeypatch.setattr(Store, "gc", slowly)
    for id_ in (ID, "b" * 12):
        home.commit(record_of(id_), [])
    home.remove(record_of(ID))
    assert going.wait(20)
    home.remove(record_of("b" * 12))
    home.commit(record_of("c" * 12), [])
    assert [it.id for it in home.records()] == ["c" * 12]
    go_on.set()
    home.wait()
