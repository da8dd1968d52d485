"""What a commit leaves in an object store, and what it is that comes back."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import wasmtime

from isthmus import Runtime
from isthmus.errors import (
    GuestInvalid,
    SettingsError,
    SnapshotInvalid,
    SnapshotNotFound,
    StorageError,
)
from isthmus.server.agents.answers import Answers, sent_of
from isthmus.server.agents.requests import NewMessage
from isthmus.server.agents.shelf import Shelf
from isthmus.server.http.errors import body_of
from isthmus.server.settings import ServerSettings
from isthmus.server.storage import mirror
from isthmus.server.storage import record as records
from isthmus.server.storage.garbage import kept_of
from isthmus.server.storage.mirror import Mirror
from isthmus.server.storage.objects import Objects
from tests.server.process import no_models

COUNTS = bytes(
    wasmtime.wat2wasm("""(module (import "isthmus" "reply" (func $r (param i32 i32) (result i32)))
  (memory (export "memory") 8) (data (i32.const 8) "@") (data (i32.const 300000) "far away")
  (func (export "on_message") (param i32) (result i32)
    (i32.store8 (i32.const 8) (i32.add (i32.load8_u (i32.const 8)) (i32.const 1)))
    (call $r (i32.const 8) (i32.const 1))))""")
)
"""Answers with A, B, C, …, each of which changes one chunk."""


class Place:
    """A URL in memory, and shelves over it with caches of their own."""

    def __init__(self, runtime: Runtime, folder: Path, url: str) -> None:
        self.url = url
        self._runtime, self._folder = runtime, folder
        self._n = 0

    def shelf(self, cache: str = "", runtime: Runtime | None = None, **how: Any) -> Shelf:
        self._n += 1
        folder = self._folder / (cache or f"cache-{self._n}")
        settings = ServerSettings(data=self.url, cache=folder, **{"lease_s": 3.0, **how})
        return Shelf(no_models(runtime or self._runtime), settings)

    def names(self, folder: str) -> set[str]:
        return set(Objects(self.url).names(folder))


@pytest.fixture
def place(null_runtime: Runtime, tmp_path: Path, memory_store: str) -> Place:
    return Place(null_runtime, tmp_path, memory_store)


def asked(guest: str) -> records.Record:
    """An agent that somebody asks for."""
    given: dict[str, Any] = {"models": {}, "args": {}, "limits": {}, "seed": 1}
    return records.Record(id=records.new_id(), name="", guest=guest, created=time.time(), **given)


async def new(shelf: Shelf) -> str:
    guest = await shelf.in_thread(lambda: shelf.guests.add(COUNTS))
    return (await shelf.create(asked(guest))).id


async def tell(shelf: Shelf, id_: str) -> str:
    answers = Answers(shelf, ServerSettings())
    async with shelf.holding(id_) as held:
        async for _ in answers.items(held, sent_of(NewMessage(input="x"))):
            pass
    return (await shelf.turns(shelf.record(id_)))[-1].output


def stored_of(shelf: Shelf, id_: str) -> records.Stored:
    assert isinstance(shelf._home, Mirror)
    return shelf._home._records.get(id_).stored or records.Stored()


def live(shelf: Shelf, work: Callable[[Shelf], Awaitable[None]]) -> None:
    async def whole() -> None:
        try:
            await work(shelf)
        finally:
            await shelf.close()

    asyncio.run(whole())


def test_only_what_is_new_is_uploaded_and_the_record_comes_last(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    put, put_if = Objects.put, Objects._put_if
    monkeypatch.setattr(Objects, "put", lambda *it: (sent.append(it[1]), put(*it))[1])
    monkeypatch.setattr(Objects, "_put_if", lambda *it: (sent.append(it[1]), put_if(*it))[1])

    async def work(shelf: Shelf) -> None:
        id_ = await new(shelf)
        sent.clear()
        assert await tell(shelf, id_) == "A"
        folders = [name.split("/")[0] for name in sent if not name.startswith("lease")]
        assert [*sorted(folders[:-1]), folders[-1]] == ["packs", "snapshots", "agents"]
        assert (await shelf.turns(shelf.record(id_)))[0].nbytes_written < 100_000
        stored = stored_of(shelf, id_)
        assert list(stored.packs.values()) == [1, 1]
        assert list(stored.snapshots) == [0, 1]

    live(place.shelf(), work)


def test_an_empty_cache_and_a_stale_one(place: Place) -> None:
    ids: list[str] = []

    async def first(shelf: Shelf) -> None:
        ids.extend([await new(shelf), await new(shelf)])
        assert [await tell(shelf, ids[0]) for _ in range(3)] == ["A", "B", "C"]

    async def elsewhere(shelf: Shelf) -> None:
        assert set(shelf.records) == set(ids)
        assert await tell(shelf, ids[0]) == "D"
        assert len(shelf.guests.cards()) > 1
        fork = await shelf.fork(shelf.record(ids[0]), 1, {})
        assert await tell(shelf, fork.id) == "B"
        assert shelf.snapshot(shelf.record(ids[0]), 2).manifest.actor.n_messages == 2

    async def again(shelf: Shelf) -> None:
        assert await tell(shelf, ids[0]) == "E"

    live(place.shelf("one"), first)
    live(place.shelf("two"), elsewhere)
    live(place.shelf("one"), again)


def test_a_snapshot_of_the_cache_that_the_record_does_not_name_is_not_used(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved here, never committed; meanwhile the message happened elsewhere, another way."""
    ids: list[str] = []

    async def fails(shelf: Shelf) -> None:
        ids.append(await new(shelf))
        with monkeypatch.context() as patch:
            patch.setattr(Objects, "put", _unreachable)
            with pytest.raises(StorageError, match="gone"):
                await tell(shelf, ids[0])
        assert shelf.record(ids[0]).position == 0
        assert f"{ids[0]}.1" in shelf.store.names()

    async def elsewhere(shelf: Shelf) -> None:
        await tell(shelf, ids[0])

    async def again(shelf: Shelf) -> None:
        assert shelf.store.names() == [f"{ids[0]}.0", f"{ids[0]}.1"]
        assert shelf.store.open(f"{ids[0]}.1").id != kept_of(stored_of(shelf, ids[0]).snapshots[1])
        assert await tell(shelf, ids[0]) == "B"
        assert shelf.store.open(f"{ids[0]}.1").id == kept_of(stored_of(shelf, ids[0]).snapshots[1])

    live(place.shelf("one"), fails)
    live(place.shelf("two"), elsewhere)
    live(place.shelf("one"), again)


def _unreachable(*_: object) -> None:
    raise StorageError("the store is gone")


def test_a_message_that_could_not_be_committed_has_not_happened(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids: list[str] = []

    async def work(shelf: Shelf) -> None:
        ids.extend([await new(shelf), await new(shelf)])
        await tell(shelf, ids[0])
        before = place.names("snapshots")
        with monkeypatch.context() as patch:
            patch.setattr(Objects, "replace", _unreachable)
            with pytest.raises(StorageError):
                await tell(shelf, ids[0])
        assert len(place.names("snapshots") - before) == 1  # garbage, which no record names
        assert await tell(shelf, ids[0]) == "B"

    async def again(shelf: Shelf) -> None:
        assert place.names("snapshots") == {
            f"{id_}.safetensors"
            for agent in shelf.records
            for id_ in stored_of(shelf, agent).snapshots.values()
        }
        assert await tell(shelf, ids[0]) == "C"

    live(place.shelf(), work)
    live(place.shelf(), again)


def test_deleted_agents_leave_nothing_and_forks_keep_theirs(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "_SCAN_EVERY_S", 0.0)
    forks: list[str] = []

    async def work(shelf: Shelf) -> None:
        id_ = await new(shelf)
        for _ in range(3):
            await tell(shelf, id_)
        forks.append((await shelf.fork(shelf.record(id_), 2, {})).id)
        n_packs = len(place.names("packs"))
        await shelf.delete(id_)
        await shelf.in_thread(shelf.wait)
        assert place.names("agents") == {f"{forks[0]}.json"}
        assert len(place.names("snapshots")) == 1
        assert 0 < len(place.names("packs")) < n_packs

    async def again(shelf: Shelf) -> None:
        assert await tell(shelf, forks[0]) == "C"
        await shelf.delete(forks[0])
        await shelf.in_thread(shelf.wait)
        for folder in ("agents", "snapshots", "packs"):
            assert place.names(folder) == set()
        assert shelf.store.names() == []

    live(place.shelf(), work)
    live(place.shelf(), again)


def test_garbage_that_another_commit_is_about_to_name_stays(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded, go_on = threading.Event(), threading.Event()
    create = Objects.create

    def slowly(objects: Objects, name: str, data: bytes) -> object:
        uploaded.set()
        assert go_on.wait(20)
        return create(objects, name, data)

    async def work(shelf: Shelf) -> None:
        source = await new(shelf)
        await tell(shelf, source)
        monkeypatch.setattr(Objects, "create", slowly)
        forking = asyncio.ensure_future(shelf.fork(shelf.record(source), 1, {}))
        await shelf.in_thread(uploaded.wait)
        await shelf.delete(source)  # what the fork needs is named by no record now
        await shelf.in_thread(shelf.wait)
        go_on.set()
        fork = await forking
        await shelf.forget(fork.id)
        assert {f"{it}" for it in stored_of(shelf, fork.id).packs} <= place.names("packs")
        assert await tell(shelf, fork.id) == "B"

    live(place.shelf(), work)


def test_old_snapshots_go(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "KEPT_TURNS", 3)

    async def work(shelf: Shelf) -> None:
        id_ = await new(shelf)
        for _ in range(6):
            await tell(shelf, id_)
        record = shelf.record(id_)
        await shelf.in_thread(shelf.wait)
        assert list(stored_of(shelf, id_).snapshots) == [4, 5, 6]
        assert len(place.names("snapshots")) == 3
        assert place.names("packs") == set(stored_of(shelf, id_).packs)
        with pytest.raises(SnapshotNotFound, match="any more"):
            shelf.snapshot(record, 2)
        assert await tell(shelf, id_) == "G"

    live(place.shelf(), work)


@pytest.mark.parametrize("folder", ["packs", "snapshots", "guests"])
@pytest.mark.parametrize("missing", [True, False])
def test_damage_is_one_agents_alone(place: Place, folder: str, missing: bool) -> None:
    ids: list[str] = []

    async def first(shelf: Shelf) -> None:
        ids.append(await new(shelf))
        await tell(shelf, ids[0])
        guest = shelf.record(ids[0]).guest
        objects = Objects(place.url)
        for path in [f"{folder}/{name}" for name in place.names(folder)]:
            if missing:
                objects.delete([path])
            else:
                data = bytearray(objects.get(path) or b"")
                data[len(data) // 2] ^= 1
                objects.put(path, bytes(data))
        ids.append((await shelf.create(asked("chat"))).id)
        ids.append(guest)

    async def elsewhere(shelf: Shelf) -> None:
        if folder == "guests":
            assert await tell(shelf, ids[0]) == "B"  # a snapshot has its guest in it
            with pytest.raises((SnapshotInvalid, GuestInvalid), match=r"no guest|is damaged"):
                await shelf.create(asked(ids[2]))
        else:
            with pytest.raises(SnapshotInvalid) as found:
                await tell(shelf, ids[0])
            status, said = body_of(found.value)
            assert (status, said["error"]["code"]) == (500, "damaged")
        assert (await shelf.live(shelf.record(ids[1]))).state == "idle"

    live(place.shelf(), first)
    live(place.shelf(), elsewhere)


def test_a_damaged_record_says_which(place: Place) -> None:
    async def first(shelf: Shelf) -> None:
        await new(shelf)

    live(place.shelf(), first)
    (name,) = place.names("agents")
    Objects(place.url).put(f"agents/{name}", b"{")
    with pytest.raises(SettingsError, match=f"{name} is damaged"):
        place.shelf()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nosuch://bucket/agents", "nosuch"),
        ("s3://", "give a bucket"),
        ("memory://agents", "begins with s3://"),
        ("https://bucket/agents", "begins with s3://"),
        ("az://container/agents", "Account must be specified"),
        ("s3://a/b*", r"no \*"),
    ],
)
def test_addresses_that_are_none(url: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=said):
        Mirror(url, tmp_path, 1.0)


def test_a_cache_has_one_server(place: Place, tmp_path: Path) -> None:
    shelf = place.shelf("one")
    with pytest.raises(SettingsError, match="another server uses"):
        place.shelf("one")
    asyncio.run(shelf.close())


def test_the_settings_of_a_url(tmp_path: Path) -> None:
    assert ServerSettings(data="s3://bucket/agents").data == "s3://bucket/agents"
    assert ServerSettings(data=f"file://{tmp_path}").data == tmp_path
    with pytest.raises(SettingsError, match="cache is for agents at a URL"):
        ServerSettings(cache=tmp_path)
    with pytest.raises(SettingsError, match="local files"):
        ServerSettings(data="s3://bucket/agents", cache="s3://bucket/cache")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="lease_s is 0"):
        ServerSettings(lease_s=0)


def test_records_of_a_folder_are_as_they_were(tmp_path: Path) -> None:
    """Written by a release that knew no object stores."""
    old = b"""{"id": "aaaaaaaaaaaa", "name": "", "guest": "chat", "models": {}, "args": {},
      "limits": {}, "seed": 1, "created": 1.5, "position": 0, "turns": []}"""
    found = records.decode(old, "aaaaaaaaaaaa", "it")
    assert isinstance(found, records.Record)
    assert found.stored is None
    assert records.decode(records.encode(found), "aaaaaaaaaaaa", "it") == found


def test_a_write_that_was_carried_out_and_not_answered_is_found_by_the_next(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Objects.replace

    def unanswered(objects: Objects, name: str, data: bytes, seen: dict[str, str]) -> None:
        replace(objects, name, data, seen)
        _unreachable()

    async def work(shelf: Shelf) -> None:
        id_ = await new(shelf)
        with monkeypatch.context() as patch:
            patch.setattr(Objects, "replace", unanswered)
            with pytest.raises(StorageError):
                await tell(shelf, id_)
        assert await tell(shelf, id_) == "B"  # the record decides: the message was done
        assert shelf.record(id_).position == 2

    live(place.shelf(), work)


def test_an_agent_whose_removal_was_cut_short_is_gone(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids: list[str] = []

    async def work(shelf: Shelf) -> None:
        ids.append(await new(shelf))
        with monkeypatch.context() as patch:
            patch.setattr(Objects, "delete", _unreachable)
            with pytest.raises(StorageError):
                await shelf.delete(ids[0])

    async def again(shelf: Shelf) -> None:
        assert shelf.records == {}
        for folder in ("agents", "snapshots", "packs"):
            assert place.names(folder) == set()

    live(place.shelf("one"), work)
    assert place.names("agents") == {f"{ids[0]}.json"}
    live(place.shelf("one"), again)


@pytest.mark.parametrize("ignored", ["create", "replace"])
def test_a_store_that_ignores_conditions_is_refused(
    place: Place, ignored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(objects: Objects, name: str, data: bytes, *_: object) -> dict[str, str]:
        objects.put(name, data)
        return {"e_tag": "x"}

    monkeypatch.setattr(Objects, ignored, careless)
    with pytest.raises(SettingsError, match="does not honour conditional writes"):
        place.shelf("one")


def test_a_store_of_an_earlier_release_opens(place: Place) -> None:
    """It had one server at a time, snapshots without who uploaded them, and no epochs."""
    ids: list[str] = []

    async def first(shelf: Shelf) -> None:
        ids.append(await new(shelf))
        await tell(shelf, ids[0])

    async def after(shelf: Shelf) -> None:
        assert await tell(shelf, ids[0]) == "B"
        stored = stored_of(shelf, ids[0])
        assert (stored.holder, stored.epoch) == (3, 1)
        shelf._home._scan()  # type: ignore[attr-defined]
        assert shelf.snapshot(shelf.record(ids[0]), 1).manifest.actor.n_messages == 1

    live(place.shelf(), first)
    objects = Objects(place.url)
    record = msgspec.json.decode(objects.get(f"agents/{ids[0]}.json") or b"")
    del record["stored"]["epoch"]
    for at, said in record["stored"]["snapshots"].items():
        data = objects.get(f"snapshots/{said}.safetensors") or b""
        objects.delete([f"snapshots/{said}.safetensors"])
        record["stored"]["snapshots"][at] = kept_of(said)
        objects.put(f"snapshots/{kept_of(said)}.safetensors", data)
    objects.put(f"agents/{ids[0]}.json", msgspec.json.encode(record))
    claim = b'{"owner":"x","where":"it","lease_s":30,"beat":7,"released":true,"fenced":true}'
    objects.delete(["lease/0000000001"])
    objects.put("lease/0000000002", claim)
    live(place.shelf(), after)
