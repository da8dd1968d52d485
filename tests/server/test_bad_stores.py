"""Stores that do not do what servers rely on, and records that no server of here wrote.

Each of them is refused at the start, or fails messages with an error that says why; and what was
acknowledged before is there after it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from isthmus import Runtime
from isthmus.errors import SettingsError, SnapshotInvalid, StorageError
from isthmus.server.agents.shelf import Shelf
from isthmus.server.storage import objects as stores
from isthmus.server.storage.objects import Objects
from isthmus.server.storage.record import Stored, decode, encode
from tests.server.bucket import NAME, Bucket
from tests.server.front import Front, refusal
from tests.server.test_mirror import Place, live, new, tell

_numbers = itertools.count()
DENIED = refusal(403, "AccessDenied")
FULL = refusal(507, "InsufficientStorage")
READ_ONLY = refusal(405, "MethodNotAllowed")


@pytest.fixture
def front(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Front]:
    front = Front(bucket.port)
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{front.port}")
    yield front
    front.close()


@pytest.fixture
def place(front: Front, null_runtime: Runtime, tmp_path: Path) -> Place:
    return Place(null_runtime, tmp_path, f"s3://{NAME}/bad-{next(_numbers)}")


@pytest.mark.parametrize(
    ("method", "answer", "said"),
    [
        ("PUT", DENIED, r"lease/probe-\w+ cannot be written: the store's key may not do that"),
        ("POST", DENIED, "cannot be deleted: the store's key may not do that"),
        ("GET", DENIED, "cannot be (read|listed): the store's key may not do that"),
        ("PUT", READ_ONLY, "cannot be written: .*405"),
        ("PUT", FULL, "cannot be written: .*507"),
    ],
)
def test_a_store_that_cannot_be_used_is_said_at_the_start(
    place: Place, front: Front, method: str, answer: tuple[int, bytes], said: str
) -> None:
    front.rule = lambda asked, _path: answer if asked == method else None
    with pytest.raises(StorageError, match=said):
        place.shelf()
    front.rule = lambda _method, _path: None
    asyncio.run(place.shelf().close())  # nothing of it stays in the way


@pytest.mark.parametrize("answer", [DENIED, READ_ONLY, FULL])
@pytest.mark.parametrize("folder", ["packs", "agents"])
def test_a_store_that_takes_nothing_more_fails_messages_and_keeps_what_there_is(
    place: Place, front: Front, answer: tuple[int, bytes], folder: str
) -> None:
    """A key that was taken back, a bucket that was made read-only, a quota that is used up."""

    async def work(shelf: Shelf) -> None:
        id_ = await new(shelf)
        assert await tell(shelf, id_) == "A"
        front.rule = lambda method, path: (
            answer if method == "PUT" and f"/{folder}/" in path else None
        )
        with pytest.raises(StorageError, match=f"{folder}/.* cannot be written: .*{answer[0]}"):
            await tell(shelf, id_)
        assert shelf.record(id_).position == 1
        front.rule = lambda _method, _path: None
        assert await tell(shelf, id_) == "B"

    live(place.shelf(lease_s=60), work)


def test_a_slow_store_is_told_of_and_used(
    place: Place, front: Front, caplog: pytest.LogCaptureFixture
) -> None:
    front.delay_s = 0.1

    async def work(shelf: Shelf) -> None:
        id_ = await new(shelf)
        assert [await tell(shelf, id_) for _ in range(2)] == ["A", "B"]

    with caplog.at_level(logging.WARNING, "isthmus.server"):
        live(place.shelf(lease_s=1.0), work)
    (said,) = [it.getMessage() for it in caplog.records if "for a request" in it.getMessage()]
    assert "with a lease of 1 s this server may be taken for dead while it lives" in said
    assert "give a lease_s of" in said


def test_a_store_that_shows_what_was_is_refused_at_the_start(place: Place, front: Front) -> None:
    front.is_stale = True
    with pytest.raises(SettingsError, match="eventually consistent"):
        place.shelf()
    assert place.names("lease") == set()


def test_a_store_that_shows_old_lists_is_refused_at_the_start(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Objects, "tags", lambda _self, _folder: {})
    with pytest.raises(SettingsError, match="eventually consistent"):
        place.shelf()


def test_a_store_that_begins_to_show_what_was_gives_no_agent_away(
    place: Place, front: Front
) -> None:
    async def work(shelf: Shelf) -> None:
        other = place.shelf(lease_s=60)
        id_ = await new(shelf)
        await tell(shelf, id_)
        await other.owning.look(id_)
        front.is_stale = True
        await shelf.forget(id_)
        shelf._let_go(id_)
        await shelf.owning.close()
        with pytest.raises(StorageError, match=r"shows an older record of agent|owned by another"):
            await tell(other, id_)
        front.is_stale = False
        assert await tell(other, id_) == "B"
        await other.close()

    live(place.shelf(lease_s=60), work)


def test_a_url_in_another_ones_folder_is_another_store(memory_store: str) -> None:
    """Servers at s3://bucket/a, and others at s3://bucket/a/agents."""
    objects = Objects(memory_store)
    objects.put("agents/aaaaaaaaaaaa.json", b"ours")
    objects.put("agents/agents/bbbbbbbbbbbb.json", b"theirs")
    objects.put("agents/lease/0000000001", b"theirs")
    assert objects.names("agents") == ["aaaaaaaaaaaa.json"]
    assert set(objects.tags("agents")) == {"aaaaaaaaaaaa.json"}


# ---------------------------------------------------------------------- large agents


def test_what_is_large_is_fetched_in_parts(
    place: Place, front: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "PART_NBYTES", 1000)
    objects = Objects(place.url)
    for nbytes in (1, 999, 1000, 1001, 2500):
        data = os.urandom(nbytes)
        objects.put("packs/it", data)
        front.asked.clear()
        found = objects.fetch("packs/it", tmp_path)
        assert found is not None
        assert found[:] == data
        assert len(front.asked) == -(-nbytes // 1000)
    assert objects.fetch("packs/none", tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [1001, 2500, 1 << 62])
def test_a_size_that_is_a_lie_ends_at_the_first_part_that_is_not_there(
    place: Place, front: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(stores, "PART_NBYTES", 1000)
    objects = Objects(place.url)
    objects.put("packs/it", os.urandom(1000))
    front.size = size
    with pytest.raises(StorageError, match="packs/it"):
        objects.fetch("packs/it", tmp_path)
    assert len(front.asked) < 60  # requests, those that are tried again among them
    assert list(tmp_path.iterdir()) == []


def test_an_agent_of_many_parts_moves(
    place: Place, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids: list[str] = []

    async def first(shelf: Shelf) -> None:
        ids.append(await new(shelf))
        await tell(shelf, ids[0])

    async def after(shelf: Shelf) -> None:
        assert await tell(shelf, ids[0]) == "B"

    live(place.shelf(), first)
    monkeypatch.setattr(stores, "PART_NBYTES", 4096)
    front.asked.clear()
    live(place.shelf(), after)
    parts = [path for method, path in front.asked if method == "GET" and "/packs/" in path]
    assert len(parts) > len(set(parts))


@pytest.mark.long
def test_5_gib_are_uploaded_in_parts(front: Front, tmp_path: Path) -> None:
    """S3 takes no object of more than 5 GiB in one request."""
    nbytes, sent, lock = (5 << 30) + 4096, [0, 0], threading.Lock()
    url = f"s3://{NAME}/large"

    def rule(method: str, path: str) -> tuple[int, bytes] | None:
        if method == "POST" and "uploadId" not in path:
            return (
                200,
                b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>",
            )
        if method == "POST":
            return (
                200,
                b'<CompleteMultipartUploadResult><ETag>"x"</ETag></CompleteMultipartUploadResult>',
            )
        with lock:
            sent[0] += 1
        return 200, b""

    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(nbytes)
    front.rule = rule
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    Objects(url).put("packs/large", sparse)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    parts = [path for method, path in front.asked if method == "PUT"]
    print(
        f"\n5 GiB in {len(parts)} parts, {time.monotonic() - start:.0f} s, {grown >> 10} MiB more"
    )
    assert all("partNumber=" in path for path in parts)
    assert 1000 < len(parts) < 10_000
    assert grown < (1 << 20)  # KiB


# ---------------------------------------------------------------------- records


def record_of(place: Place) -> tuple[str, dict[str, Any]]:
    """An agent that was told one message and left, and its record as JSON."""
    ids: list[str] = []

    async def first(shelf: Shelf) -> None:
        ids.append(await new(shelf))
        await tell(shelf, ids[0])

    live(place.shelf(), first)
    return ids[0], msgspec.json.decode(Objects(place.url).get(f"agents/{ids[0]}.json") or b"")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": "bbbbbbbbbbbb"}, "is of another agent: bbbbbbbbbbbb"),
        ({"models": "tiny"}, r"is damaged: .*models"),
        ({"turns": None}, r"is damaged: .*turns"),
        ({"stored": {"holder": -1}}, r"is damaged: .*holder"),
        ({"stored": {"epoch": -1}}, r"is damaged: .*epoch"),
        ({"stored": {"epoch": 1 << 63}}, r"is damaged: .*epoch"),
        ({"stored": {"packs": ["x"]}}, r"is damaged: .*packs"),
        ({"position": "1"}, r"is damaged: .*position"),
    ],
)
def test_a_record_of_another_format_says_which_and_what(
    memory_store: str, null_runtime: Runtime, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    place = Place(null_runtime, tmp_path, memory_store)
    id_, record = record_of(place)
    name = f"agents/{id_}.json"
    objects = Objects(place.url)
    objects.put(name, msgspec.json.encode({**record, **change}))
    with pytest.raises(SettingsError, match=f"{name} {said}"):
        place.shelf()
    objects.delete([name])

    async def while_it_runs(shelf: Shelf) -> None:
        """One agent's record is no reason for others to stop."""
        id_ = await new(shelf)
        objects.put(name, msgspec.json.encode({**record, **change}))
        with pytest.raises(SnapshotInvalid, match=said):
            await shelf.owning.look(name.removeprefix("agents/").removesuffix(".json"))
        assert await tell(shelf, id_) == "A"

    live(place.shelf(), while_it_runs)


def test_an_owner_that_there_never_was_has_ended(
    memory_store: str, null_runtime: Runtime, tmp_path: Path
) -> None:
    place = Place(null_runtime, tmp_path, memory_store)
    id_, given = record_of(place)
    name = f"agents/{id_}.json"
    record = decode(msgspec.json.encode(given), id_, name)
    stored = msgspec.structs.replace(record.stored or Stored(), holder=987654, epoch=41)
    Objects(place.url).put(name, encode(msgspec.structs.replace(record, stored=stored)))

    async def after(shelf: Shelf) -> None:
        assert await tell(shelf, id_) == "B"

    live(place.shelf(), after)
    found = msgspec.json.decode(Objects(place.url).get(name) or b"")
    assert found["stored"]["epoch"] == 42
    assert found["deaths"] == 0  # a message was done


# ---------------------------------------------------------------------- two clusters


def test_servers_that_lack_a_model_keep_no_agent_of_it(
    memory_store: str, null_runtime: Runtime, tmp_path: Path
) -> None:
    """Two clusters on one prefix: what the one cannot use stays usable for the other."""
    place = Place(null_runtime, tmp_path, memory_store)
    id_, given = record_of(place)
    name = f"agents/{id_}.json"
    objects = Objects(place.url)
    objects.put(name, msgspec.json.encode({**given, "models": {"default": "theirs"}}))

    async def work(ours: Shelf) -> None:
        theirs = place.shelf(lease_s=60)
        with pytest.raises(SettingsError, match="needs the model theirs, which this server"):
            await tell(ours, id_)
        await ours.owning.close()
        assert await theirs.owning.look(id_) is None  # whoever has the model may have it
        assert not ours._home.sharing.owns(id_)  # type: ignore[union-attr]
        await theirs.close()

    live(place.shelf(lease_s=60), work)
