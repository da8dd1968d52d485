"""Several servers over one URL: each agent has one owner, and what others write is refused."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from isthmus import Runtime
from isthmus.errors import SnapshotNotFound, StorageError
from isthmus.server.agents.shelf import Shelf
from isthmus.server.settings import ServerSettings
from isthmus.server.storage.mirror import Mirror
from isthmus.server.storage.objects import Objects
from tests.server.test_mirror import COUNTS, Place, new, stored_of, tell

LEASE_S = 2.0


@pytest.fixture
def place(null_runtime: Runtime, tmp_path: Path, memory_store: str) -> Place:
    return Place(null_runtime, tmp_path, memory_store)


@asynccontextmanager
async def serving(*shelves: Shelf) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for shelf in shelves:
            await shelf.close()


async def seen(shelf: Shelf, id_: str) -> str | None:
    """Where the owner of an agent is, if that is another server."""
    peer = await shelf.owning.look(id_)
    return None if peer is None else peer.where


async def let_go(shelf: Shelf, id_: str) -> None:
    if not shelf.is_held(id_):
        await shelf.forget(id_)
    shelf._let_go(id_)
    await shelf.owning.close()


def test_an_agent_goes_from_one_server_to_another(place: Place) -> None:
    async def work() -> None:
        one, two = place.shelf(lease_s=60), place.shelf(lease_s=60)
        async with serving(one, two):
            id_ = await new(one)
            assert await tell(one, id_) == "A"
            with pytest.raises(SnapshotNotFound):
                two.record(id_)
            assert "process" in (await seen(two, id_) or "")
            assert two.record(id_).position == 1
            with pytest.raises(StorageError, match="owned by another server"):
                await tell(two, id_)
            await let_go(one, id_)
            assert await seen(two, id_) is None
            assert await tell(two, id_) == "B"
            assert stored_of(two, id_).holder == 2
            assert await seen(one, id_) is not None
            assert one.record(id_).position == 2
            await let_go(two, id_)
            assert [await tell(one, id_) for _ in range(2)] == ["C", "D"]
            assert stored_of(one, id_).epoch == 3

    asyncio.run(work())


def test_lists_show_all(place: Place) -> None:
    async def work() -> None:
        one, two = place.shelf(lease_s=60), place.shelf(lease_s=60)
        async with serving(one, two):
            ids = {await new(one), await new(two)}
            gone = await new(one)
            for shelf in (one, two):
                await shelf.owning.refresh()
                assert shelf.records.keys() == {*ids, gone}
            await one.delete(gone)
            await two.owning.refresh()
            assert two.records.keys() == ids
            assert await seen(two, gone) is None
            with pytest.raises(SnapshotNotFound):
                two.record(gone)

    asyncio.run(work())


def test_what_was_used_elsewhere_is_not_removed_as_old(place: Place) -> None:
    async def work() -> None:
        one, two = place.shelf(lease_s=60), place.shelf(lease_s=60)
        async with serving(one, two):
            id_ = await new(one)
            await two.owning.refresh()
            old = two.record(id_)
            await tell(one, id_)
            await let_go(one, id_)
            assert not await two.delete(id_, old)
            assert await two.delete(id_, two.record(id_))
            assert place.names("agents") == set()

    asyncio.run(work())


def test_an_agent_that_leaves_memory_is_anybodys(place: Place) -> None:
    async def work() -> None:
        one, two = place.shelf(lease_s=60), place.shelf(lease_s=60)
        one._settings = ServerSettings(live=1)
        async with serving(one, two):
            first, second = await new(one), await new(one)
            await one.owning.close()
            assert await seen(two, first) is None
            assert await seen(two, second) is not None
            assert await tell(two, first) == "A"

    asyncio.run(work())


def test_many_who_want_the_same_agents_at_once(place: Place) -> None:
    """Each message is answered by whoever gets the agent, and once."""

    async def work() -> None:
        shelves = [place.shelf(lease_s=60) for _ in range(3)]
        async with serving(*shelves):
            ids = [await new(shelves[n % 3]) for n in range(4)]
            for shelf, id_ in zip(shelves * 2, ids, strict=False):
                await let_go(shelf, id_)

            async def ask(shelf: Shelf, id_: str) -> str:
                while True:
                    try:
                        await shelf.owning.look(id_)
                        said = await tell(shelf, id_)
                    except StorageError:
                        await asyncio.sleep(0.01)
                        continue
                    await let_go(shelf, id_)
                    return said

            for id_ in ids:
                said = await asyncio.gather(*(ask(it, id_) for it in shelves * 2))
                assert sorted(said) == list("ABCDEF")

    asyncio.run(work())


# ---------------------------------------------------------------------- a server that was stopped


def stop(shelf: Shelf) -> None:
    """Has a server send no more beats, as if its machine were stopped."""
    assert isinstance(shelf._home, Mirror)
    shelf._home._node._stop.set()


def wake(shelf: Shelf) -> None:
    """Has it send one."""
    assert isinstance(shelf._home, Mirror)
    shelf._home.advertise("")


async def ended(heir: Shelf, id_: str) -> None:
    """Returns once the owner of an agent has ended."""
    end = time.monotonic() + 60
    while await seen(heir, id_) is not None:
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


def test_a_server_that_wakes_up_after_a_takeover_changes_nothing(place: Place) -> None:
    async def work() -> None:
        sleeper, heir = place.shelf(lease_s=LEASE_S), place.shelf(lease_s=LEASE_S)
        async with serving(sleeper, heir):
            ids = [await new(sleeper) for _ in range(4)]
            assert [await tell(sleeper, id_) for id_ in ids] == ["A"] * 4
            told, removed, forked, left = ids
            stop(sleeper)
            for id_ in ids:
                await ended(heir, id_)
            assert [await tell(heir, id_) for id_ in ids[:3]] == ["B"] * 3
            writes = (
                lambda: tell(sleeper, told),
                lambda: sleeper.delete(removed),
                lambda: sleeper.fork(sleeper.record(forked), 1, {}),
            )
            for write in writes:
                with pytest.raises(StorageError, match="another server"):
                    await write()
            wake(sleeper)  # it knows by now, and has begun anew
            assert await seen(sleeper, told) is not None
            assert sleeper.record(told).position == 2
            assert [await tell(heir, id_) for id_ in ids[:3]] == ["C"] * 3
            await let_go(heir, told)
            assert await tell(sleeper, told) == "D"
            assert await tell(sleeper, left) == "B"  # which nobody wanted meanwhile

    asyncio.run(work())


def test_what_a_stopped_server_removes_as_garbage_is_nothing_that_the_next_one_wrote(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both make the same chunks: the message is sent again to the one that took over."""

    def unreachable(*_: object) -> None:
        raise StorageError("the store is gone")

    async def work() -> None:
        sleeper, heir = place.shelf(lease_s=LEASE_S), place.shelf(lease_s=LEASE_S)
        id_ = await new(sleeper)
        stop(sleeper)
        with monkeypatch.context() as patch:
            patch.setattr(Objects, "replace", unreachable)
            with pytest.raises(StorageError):
                await tell(sleeper, id_)  # its pack is there, and no record names it
        await ended(heir, id_)
        assert await tell(heir, id_) == "A"
        assert isinstance(sleeper._home, Mirror)
        sleeper._home._scan()
        assert isinstance(heir._home, Mirror)
        heir._home._scan()
        await heir.close()
        await sleeper.close()
        third = place.shelf()
        async with serving(third):
            assert await tell(third, id_) == "B"

    asyncio.run(work())


def test_a_name_is_given_by_a_server_that_has_no_snapshot(place: Place) -> None:
    async def work() -> None:
        one, two = place.shelf(lease_s=60), place.shelf(lease_s=60)
        async with serving(one, two):
            id_ = await new(one)
            assert await tell(one, id_) == "A"
            await let_go(one, id_)
            await two.owning.look(id_)
            async with two.holding(id_) as held:
                two.write(msgspec.structs.replace(held.record, name="Ada"), [])
            await let_go(two, id_)
            assert await seen(one, id_) is None
            assert one.record(id_).name == "Ada"
            assert await tell(one, id_) == "B"

    asyncio.run(work())


def test_garbage_goes_and_what_others_name_stays(place: Place) -> None:
    """An agent that moved has packs of two servers, and so has its fork."""

    async def work() -> None:
        one, two = place.shelf(lease_s=60), place.shelf(lease_s=60)
        async with serving(one, two):
            id_ = await new(one)
            await tell(one, id_)
            await let_go(one, id_)
            await two.owning.look(id_)
            assert await tell(two, id_) == "B"
            made = (await two.fork(two.record(id_), 2, {})).id
            assert place.names("packs") >= set(stored_of(two, made).packs)
            await two.delete(id_)
            for shelf in (one, two):
                assert isinstance(shelf._home, Mirror)
                await shelf.in_thread(shelf.wait)
                shelf._home._scan()
            assert place.names("packs") == set(stored_of(two, made).packs)
            assert len(place.names("snapshots")) == 1
            await let_go(two, made)
            await one.owning.look(made)
            assert await tell(one, made) == "C"
            await one.delete(made)
            for shelf in (one, two):
                await shelf.in_thread(shelf.wait)
                assert isinstance(shelf._home, Mirror)
                shelf._home._scan()
            for folder in ("agents", "packs", "snapshots", "turns"):
                assert place.names(folder) == set()

    asyncio.run(work())


def test_a_guest_that_one_server_removes_is_not_the_one_that_was_brought_again(
    place: Place,
) -> None:
    async def work() -> None:
        one, two = place.shelf(lease_s=60), place.shelf(lease_s=60)
        async with serving(one, two):
            await new(one)
            (digest,) = one._home.guests()
            await new(two)
            one._home.remove_guest(digest)
            third = place.shelf(lease_s=60)
            async with serving(third):
                assert third._home.guests() == [digest]
                assert third._home.guest(digest) == COUNTS

    asyncio.run(work())


def test_a_message_costs_two_requests_more_when_the_agent_comes_and_none_after_that(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    for name in ("put", "find", "fetch", "_put_if", "tags"):
        method = getattr(Objects, name)

        def counted(objects: Objects, what: str, *rest: object, to: object = method) -> object:
            if not what.startswith("lease"):
                sent.append(what.partition("/")[0])
            return to(objects, what, *rest)  # type: ignore[operator]

        monkeypatch.setattr(Objects, name, counted)

    async def work() -> None:
        one, two = place.shelf(lease_s=60), place.shelf("two", lease_s=60)
        async with serving(one, two):
            id_ = await new(two)
            sent.clear()
            assert await tell(two, id_) == "A"
            assert [*sorted(sent[:-1]), sent[-1]] == [
                "packs",
                "snapshots",
                "agents",
            ]  # as where one server had the URL
            await let_go(two, id_)
            await one.owning.look(id_)
            assert await tell(one, id_) == "B"
            await let_go(one, id_)
            sent.clear()
            assert await seen(two, id_) is None
            assert await tell(two, id_) == "C"
            assert sent.count("agents") == 3  # looked at, acquired, written
            first = Counter(sent)
            sent.clear()
            assert await tell(two, id_) == "D"
            assert [*sorted(sent[:-1]), sent[-1]] == ["packs", "snapshots", "agents"]
            print(f"\nrequests: {dict(Counter(sent))}; first message elsewhere: {dict(first)}")

    asyncio.run(work())
