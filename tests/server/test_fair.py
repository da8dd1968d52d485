"""Places that several owners share: one's flood is not another's wait."""

from __future__ import annotations

import asyncio
import threading

import pytest

from isthmus.errors import Overloaded
from isthmus.server.http.errors import HttpError
from isthmus.server.http.fair import Owner, Room, Threads
from isthmus.server.keys.guard import Room as BodyRoom
from isthmus.units import MIB


async def flood(room: Room, owner: Owner, n: int) -> list[asyncio.Task[None]]:
    tasks = [asyncio.ensure_future(room.take(owner)) for _ in range(n)]
    await asyncio.sleep(0)
    return tasks


def test_one_owner_alone_has_a_semaphore() -> None:
    async def run() -> None:
        room = Room(2, waiting=2)
        tasks = await flood(room, None, 5)
        assert [it.done() for it in tasks] == [True, True, False, False, True]
        with pytest.raises(Overloaded, match="2 requests wait already"):
            tasks[4].result()
        with pytest.raises(Overloaded):
            room.require(None)
        room.give_back(None)
        await asyncio.sleep(0)
        assert [it.done() for it in tasks[:4]] == [True, True, True, False]  # first come
        room.require(None)
        tasks[3].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(2):
            room.give_back(None)
        await asyncio.wait_for(room.take(None), 5)

    asyncio.run(run())


def test_who_has_none_does_not_wait_for_a_flood() -> None:
    async def run() -> None:
        room = Room(4, waiting=16)
        evil = await flood(room, "evil", 40)
        assert sum(not it.done() for it in evil) == 16
        await asyncio.wait_for(room.take("ada"), 5)  # at once
        second = asyncio.ensure_future(room.take("ada"))  # waits, and the longest line loses one
        for _ in range(3):
            await asyncio.sleep(0)
        assert sum(not it.done() for it in evil) == 15
        for _ in range(2):  # 5 are taken of 4
            assert not second.done()
            room.give_back("evil")
            await asyncio.sleep(0)
        assert second.done()  # before all others, who have more
        for it in evil:
            it.cancel()
        await asyncio.gather(*evil, return_exceptions=True)

    asyncio.run(run())


def test_owners_take_turns() -> None:
    async def run() -> list[str]:
        room, order = Room(1), []

        async def ask(owner: str) -> None:
            async with room.place(owner):
                order.append(owner)
                await asyncio.sleep(0)

        await asyncio.gather(*map(ask, ["a"] * 6 + ["b"] * 3 + ["c"] * 3))
        return order

    order = asyncio.run(run())
    assert sorted(order[:6]) == ["a", "a", "b", "b", "c", "c"]


def test_who_leaves_gives_back_what_came_meanwhile() -> None:
    async def run() -> None:
        room = Room(1)
        await room.take("a")
        waits = [asyncio.ensure_future(room.take("a")) for _ in range(3)]
        await asyncio.sleep(0)
        waits[0].cancel()  # it has not heard of it when its place comes
        room.give_back("a")
        waits[1].cancel()  # its place has come already
        await asyncio.gather(*waits[:2], return_exceptions=True)
        await asyncio.wait_for(waits[2], 5)
        room.give_back("a")
        assert room.n_waiting == 0
        await asyncio.wait_for(room.take("b"), 5)

    asyncio.run(run())


def test_threads_are_shared_too() -> None:
    async def run() -> None:
        threads, held = Threads(2, "test"), threading.Event()
        flood = [asyncio.ensure_future(threads.do("evil", held.wait)) for _ in range(50)]
        await asyncio.sleep(0)
        assert await asyncio.wait_for(threads.do("ada", lambda: 7), 20) == 7
        flood[0].cancel()  # its thread goes on, so its place is taken
        await asyncio.sleep(0.05)
        assert sum(it.done() for it in flood) == 1
        held.set()
        await asyncio.wait_for(asyncio.gather(*flood, return_exceptions=True), 20)
        with pytest.raises(ZeroDivisionError):
            await threads.do("ada", lambda: 1 // 0)
        threads.close()

    asyncio.run(run())


def test_bodies_of_one_key_leave_room_for_others() -> None:
    room = BodyRoom(10 * MIB)
    for _ in range(5):
        room.take("evil", MIB)
    with pytest.raises(HttpError, match="too many requests are being read"):
        room.take("evil", 1)
    room.take("ada", 4 * MIB)
    room.give_back("evil", MIB)
    room.take("evil", MIB)
    alone = BodyRoom(10 * MIB)
    alone.take(None, 10 * MIB)  # without keys all of it is everybody's
    with pytest.raises(HttpError):
        alone.take(None, 1)
