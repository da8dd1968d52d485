"""The middle of an answer in an object store: what is named, what goes, and who may go on."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from isthmus import Runtime
from isthmus.errors import SnapshotNotFound, StorageError
from isthmus.server.agents.held import Held
from isthmus.server.agents.shelf import Shelf
from isthmus.server.storage.mirror import Mirror
from isthmus.server.storage.record import Midway, midway_name
from isthmus.server.storage.records import Records
from tests.server.test_mirror import Place, live, new, stored_of, tell

MIDWAY = Midway(message="maaaaaaaaaaaa", input="x", background=True, saved=True)


@pytest.fixture
def place(null_runtime: Runtime, tmp_path: Path, memory_store: str) -> Place:
    return Place(null_runtime, tmp_path, memory_store)


async def save(shelf: Shelf, held: Held) -> None:
    """Saves what the agent is after one more message, as if that was the middle of an answer."""
    actor = await held.actor()
    record = msgspec.structs.replace(held.record, midway=MIDWAY)
    name = midway_name(record)
    assert name is not None
    await shelf.in_thread(lambda: actor.send("x"))
    await shelf.in_thread(lambda: actor.snapshot(shelf.store, name=name))
    await shelf.in_thread(lambda: shelf.write(record, is_midway=True))
    held.record = shelf.record(record.id)


def objects(place: Place) -> tuple[int, int]:
    """How many snapshots and packs the store has."""
    return len(place.names("snapshots")), len(place.names("packs"))


def test_one_middle_is_kept_and_goes_with_its_answer(place: Place) -> None:
    async def work(shelf: Shelf) -> None:
        id_ = await new(shelf)
        before = objects(place)
        async with shelf.holding(id_) as held:
            for _ in range(3):  # each in place of the one before
                await save(shelf, held)
                await shelf.in_thread(shelf.wait)
                assert objects(place) == (before[0] + 1, before[1] + 1)
            assert len(stored_of(shelf, id_).passing) == 1
            await held.note_midway(None)
            await shelf.in_thread(shelf.wait)
            assert objects(place) == before
            await held.discard()
        assert await tell(shelf, id_) == "A"

    live(place.shelf(), work)


def test_another_server_goes_on_from_the_middle(place: Place) -> None:
    ids: list[str] = []

    async def work(shelf: Shelf) -> None:
        ids.append(await new(shelf))
        async with shelf.holding(ids[0]) as held:
            await save(shelf, held)

    async def elsewhere(shelf: Shelf) -> None:
        assert shelf.record(ids[0]).midway == MIDWAY
        async with shelf.holding(ids[0]) as held:
            actor = await held.midway_actor()
            assert actor.n_messages == 1
            assert (await shelf.in_thread(lambda: actor.send("x"))).text == "B"
            await held.note_midway(None)
            await held.discard()
        assert await tell(shelf, ids[0]) == "A"

    live(place.shelf(), work)
    live(place.shelf(), elsewhere)


def test_a_turn_takes_over_the_packs_of_its_middle(place: Place) -> None:
    async def work(shelf: Shelf) -> None:
        id_ = await new(shelf)
        async with shelf.holding(id_) as held:
            await save(shelf, held)
        (pack,) = stored_of(shelf, id_).passing
        assert await tell(shelf, id_) == "B"
        stored = stored_of(shelf, id_)
        assert (stored.midway, stored.passing, sorted(stored.snapshots)) == ("", (), [0, 1])
        await shelf.in_thread(shelf.wait)
        assert pack not in stored.packs  # the chunk that it had has changed since
        assert shelf.record(id_).midway is None

    async def again(shelf: Shelf) -> None:
        (id_,) = shelf.records
        assert await tell(shelf, id_) == "C"
        home = shelf._home
        assert isinstance(home, Mirror)
        with pytest.raises(SnapshotNotFound, match="in the middle of no answer"):
            await shelf.in_thread(lambda: home.bring_midway(shelf.record(id_)))

    live(place.shelf(), work)
    live(place.shelf(), again)


def test_a_former_owner_saves_no_middle(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(shelf: Shelf) -> None:
        id_ = await new(shelf)
        async with shelf.holding(id_) as held:
            await save(shelf, held)
            stored = stored_of(shelf, id_)
            with monkeypatch.context() as patch:
                patch.setattr(Records, "_owned", _anothers)
                with pytest.raises(StorageError, match="not this server's"):
                    await save(shelf, held)
            assert stored_of(shelf, id_) == stored

    live(place.shelf(), work)


def _anothers(_records: Records, id_: str, _number: int) -> None:
    raise StorageError(f"agent {id_} is not this server's any more")
