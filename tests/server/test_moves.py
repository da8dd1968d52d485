"""Agents that move between servers: from those that end, to where requests come, among equals."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from isthmus import Runtime
from isthmus.errors import SnapshotMismatch
from isthmus.server.agents.held import hand_over
from isthmus.server.agents.replies import summary, told
from isthmus.server.agents.shelf import Shelf
from isthmus.server.http.entry import Entry, begin
from isthmus.server.http.errors import HttpError
from isthmus.server.storage.mirror import Mirror
from tests.server.test_mirror import COUNTS, Place, asked, new, tell
from tests.server.test_owners import let_go, seen, serving


@pytest.fixture
def place(null_runtime: Runtime, tmp_path: Path, memory_store: str) -> Place:
    return Place(null_runtime, tmp_path, memory_store)


def test_an_agent_that_may_have_ended_its_owners_is_quarantined(place: Place) -> None:
    """What it is asked never ends; each of its owners does."""

    async def work() -> None:
        shelves = [place.shelf(lease_s=60) for _ in range(4)]
        async with serving(*shelves):
            first, *_, last = shelves
            id_, other = await new(first), await new(first)
            for former, heir in pairwise(shelves):
                end(former, heir)
                await heir.owning.refresh()
                await heir.owning.acquire(id_)
                assert heir.records[id_].deaths == shelves.index(heir)
                assert await tell(heir, other) in "ABC"  # an answer sets the count to 0
            assert last.record(other).deaths == 0
            for use in (tell(last, id_), last.fork(last.record(id_), 0, {})):
                with pytest.raises(HttpError) as refused:
                    await use
                assert (refused.value.status, refused.value.code) == (409, "quarantined")
            assert summary(last.record(id_))["quarantined"]
            assert await last.turns(last.record(id_)) == []
            async with last.holding(id_) as held:
                last.write(msgspec.structs.replace(held.record, name="named"), [])
            assert last.record(id_).quarantined  # a name is no answer
            async with last.holding(id_) as held:
                last.write(msgspec.structs.replace(held.record, deaths=0), [])
            assert await tell(last, id_) == "A"
            fork = (await last.fork(last.record(id_), 1, {})).id
            assert await tell(last, fork) == "B"

    asyncio.run(work())


def end(former: Shelf, heir: Shelf) -> None:
    """Has a server take another one for dead."""
    assert isinstance(heir._home, Mirror)
    assert isinstance(former._home, Mirror)
    heir._home._node._ended.add(former._home._node.number)


def test_an_agent_that_nobody_uses_is_handed_over(place: Place) -> None:
    async def work() -> None:
        one, two = place.shelf(lease_s=60), place.shelf(lease_s=60)
        async with serving(one, two):
            id_ = await new(one)
            assert await tell(one, id_) == "A"
            async with one.holding(id_):
                assert not await hand_over(one, id_)
            assert await hand_over(one, id_)
            assert not await hand_over(one, id_)
            assert await seen(two, id_) is None
            assert await tell(two, id_) == "B"
            assert not await hand_over(one, id_)

    asyncio.run(work())


def test_an_agent_that_requires_exact_stays_among_equals(place: Place) -> None:
    async def work() -> None:
        one, unlike = place.shelf(lease_s=60), place.shelf(lease_s=60, width="alone")
        async with serving(unlike):
            async with serving(one):
                assert isinstance(one._home, Mirror)
                one._home.advertise("http://one")
                guest = await one.in_thread(lambda: one.guests.add(COUNTS))
                bound = msgspec.structs.replace(asked(guest), require="exact")
                ids = [(await one.create(it)).id for it in (bound, asked(guest))]
                for id_ in ids:
                    await tell(one, id_)
                    await let_go(one, id_)
                    assert await seen(unlike, id_) is None
                peers = [await unlike.owning.equal(id_) for id_ in ids]
                assert [None if it is None else it.address for it in peers] == ["http://one", None]
                assert peers[0] is not None
                assert peers[0].computes.settings["width"] == "many"
                assert await one.owning.equal(ids[0]) is None
            number = one._home._node.number
            assert isinstance(unlike._home, Mirror)
            assert number not in [it.number for it in unlike._home.peers()]
            with pytest.raises(HttpError) as refused:
                await unlike.owning.equal(ids[0])
            assert (refused.value.status, refused.value.code) == (503, "no_equal")

    asyncio.run(work())


def test_a_move_to_a_server_that_computes_otherwise_is_told(place: Place) -> None:
    async def work(other: Runtime) -> None:
        one, two = place.shelf(lease_s=60), place.shelf(lease_s=60, runtime=other)
        async with serving(one, two):
            guest = await one.in_thread(lambda: one.guests.add(COUNTS))
            bound = msgspec.structs.replace(asked(guest), require="exact")
            ids = [(await one.create(it)).id for it in (asked(guest), bound)]
            for id_ in ids:
                assert await tell(one, id_) == "A"
                await let_go(one, id_)
                await two.owning.look(id_)
            entry = Entry("-", "POST", "-")
            begin(entry)
            assert [await tell(two, ids[0]) for _ in range(2)] == ["B", "C"]
            (warned,) = entry.warnings
            assert "came back state-exact: threads: " in warned
            turns = await two.turns(two.record(ids[0]))
            levels = [told(two.record(ids[0]), it)["exactness"] for it in turns]
            assert levels == ["exact", "state-exact", "exact"]
            with pytest.raises(SnapshotMismatch, match="exact is required"):
                await tell(two, ids[1])
            loose = (await two.fork(two.record(ids[1]), 1, {"require": "state-exact"})).id
            assert await tell(two, loose) == "B"

    with Runtime(device="null", threads=3) as other:
        asyncio.run(work(other))
