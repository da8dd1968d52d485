"""The same agents from asyncio: awaited, streamed, cancelled, many at a time."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

import isthmus
from isthmus import Actor, AsyncRuntime, Runtime
from isthmus.errors import ActorBusy, ActorClosed, SettingsError
from isthmus.runtime.async_runtime import RuntimeSettings
from tests.patience import PATIENCE_S
from tests.unit.loop_guests import ASKING, TALKS, Tool

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine gives, within the patience of these tests."""
    return asyncio.run(asyncio.wait_for(work, PATIENCE_S))


def test_a_conversation(tiny: Path) -> None:
    async def talk() -> tuple[isthmus.Reply, str, isthmus.Reply]:
        async with AsyncRuntime(device="cpu", threads=1) as rt:
            model = await rt.load_model(tiny)
            actor = await rt.spawn("chat", models={"default": model}, max_tokens=8, seed=7)
            whole = await actor.asend("Hello")
            again = await rt.spawn("chat", models={"default": model}, max_tokens=8, seed=7)
            stream = again.astream("Hello")
            pieces = [piece async for piece in stream]
            assert "isthmus_tokens_decoded_total" in rt.metrics()
            assert len(rt.actors) == 2
            return whole, "".join(pieces), stream.reply

    whole, text, reply = run(talk())
    assert whole.n_tokens > 8
    assert str(whole) == text == str(reply)


def test_many_at_a_time(tiny: Path) -> None:
    async def talk() -> list[isthmus.Reply]:
        async with AsyncRuntime(device="cpu", threads=1) as rt:
            models = {"default": await rt.load_model(tiny)}
            spawning = (rt.spawn("chat", models=models, max_tokens=4) for _ in range(8))
            actors = await asyncio.gather(*spawning)
            return await asyncio.gather(*(actor.asend("Hello") for actor in actors))

    assert len(run(talk())) == 8


def asking(runtime: Runtime, tool: Tool) -> Actor:
    return runtime.spawn(ASKING, tools={"ask": tool})


async def until_inside(tool: Tool) -> None:
    await asyncio.to_thread(tool.wait)


@pytest.mark.parametrize("way", ["asend", "astream"])
def test_a_cancelled_task_leaves_the_actor_free(null_runtime: Runtime, way: str) -> None:
    tool, actor = Tool(), null_runtime.spawn(TALKS, tools={"ask": lambda _: b"x"})
    busy = asking(null_runtime, tool)

    async def listen(to: Actor) -> None:
        if way == "asend":
            await to.asend("x")
        async for _ in to.astream("x"):
            pass

    async def cancel() -> None:
        task = asyncio.create_task(listen(busy))
        await until_inside(tool)
        with pytest.raises(ActorBusy):
            await busy.asend("while it handles another")
        task.cancel()
        tool.free.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert busy.state == "idle"
        assert (await actor.asend("x")).text == "askask"  # the event loop and others go on

    run(cancel())


def test_a_stream_that_is_closed_or_dropped_stops_its_message(null_runtime: Runtime) -> None:
    async def drop(how: str) -> str:
        tool = Tool()
        actor = asking(null_runtime, tool)
        stream = actor.astream("x")
        await until_inside(tool)
        tool.free.set()
        if how == "closed":
            async with stream:
                pass
            with pytest.raises(RuntimeError, match="not complete"):
                stream.reply  # noqa: B018
            assert [piece async for piece in stream] == []
        del stream
        gc.collect()
        while actor.state == "running":
            await asyncio.sleep(0.01)
        return actor.state

    assert run(drop("closed")) == run(drop("dropped")) == "idle"


def test_errors_come_with_the_first_piece(null_runtime: Runtime) -> None:
    async def fail() -> None:
        actor = null_runtime.spawn(ASKING, tools={"ask": bytes})
        stream = actor.astream(3)  # type: ignore[arg-type]
        with pytest.raises(SettingsError, match="text or bytes, not int"):
            await stream.__anext__()
        actor.close()
        with pytest.raises(ActorClosed):
            await actor.asend("x")

    run(fail())


def test_a_runtime_that_is_not_open_says_so() -> None:
    rt = AsyncRuntime(device="null")
    with pytest.raises(ActorClosed, match="the runtime is not open yet"):
        rt.metrics()
    run(rt.close())


def test_its_settings_are_those_of_a_runtime() -> None:
    assert {*RuntimeSettings.__annotations__} == {*inspect.signature(Runtime).parameters}
    for name in ("load_model", "spawn", "restore", "load_guest"):
        assert inspect.signature(getattr(AsyncRuntime, name)) == inspect.signature(
            getattr(Runtime, name)
        )
