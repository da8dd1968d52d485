"""Answers that are awaited in an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from isthmus import Runtime
from isthmus.server.generation import answering
from isthmus.server.generation.answering import Answer
from tests.unit.loop_guests import DATA, EMIT, SPIN, TALKS_ON, on_message, require_still

SAYS_ASK = on_message("(drop (call $emit (i32.const 8) (i32.const 3))) (i32.const 0)", EMIT, DATA)


class NoThreads(ThreadPoolExecutor):
    """Of an event loop in which nothing may need a thread."""

    def submit(self, fn: Callable[..., Any], /, *_args: Any, **_kwargs: Any) -> Future[Any]:
        raise AssertionError(f"{fn} wants a thread")


@pytest.mark.parametrize(("guest", "ends_as"), [(TALKS_ON, "idle"), (SPIN, "closed")])
def test_callers_who_leave_take_no_thread(
    null_runtime: Runtime, guest: bytes, ends_as: str
) -> None:
    """One that does not listen is cut off after two seconds, in which threads would be missing."""

    async def main() -> None:
        asyncio.get_running_loop().set_default_executor(NoThreads(1))
        actors = [null_runtime.spawn(guest) for _ in range(3)]
        answers = [Answer(actor, b"x", 60.0) for actor in actors]
        await asyncio.sleep(0.05)
        assert [actor.state for actor in actors] == ["running"] * 3
        await asyncio.gather(*(answer.close() for answer in answers))
        states = [actor.state for actor in actors]
        assert states[0] == ends_as
        assert "running" not in states  # the others may not have begun: then they are idle
        await answers[0].close()

    asyncio.run(asyncio.wait_for(main(), 60))
    for actor in null_runtime.actors:
        actor.close()
    require_still(null_runtime)


def test_others_have_the_event_loop_between_two_pieces(
    null_runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much has come, and however long its reader takes for a piece."""
    monkeypatch.setattr(answering, "_MAX_CHARACTERS", 1)
    turns: list[str] = []

    async def main() -> None:
        answer = Answer(null_runtime.spawn(SAYS_ASK), b"x", 60.0)
        await asyncio.sleep(0.2)  # all of it has come

        async def others() -> None:
            while True:
                turns.append("-")
                await asyncio.sleep(0)

        beside = asyncio.ensure_future(others())
        async for piece in answer:
            turns.append(piece)
        beside.cancel()
        await answer.close()

    asyncio.run(asyncio.wait_for(main(), 60))
    for actor in null_runtime.actors:
        actor.close()
    said = "".join(turns).strip("-")
    assert said.replace("-", "") == "ask"
    assert all(f"{it}-" in said for it in "as")
