"""A runtime for asyncio: what takes long is awaited, and runs in a thread meanwhile."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypedDict, TypeVar

from isthmus.actor import Actor
from isthmus.config import Caches, Capacity, Environment, Sharing
from isthmus.counters import Counters
from isthmus.errors import ActorClosed
from isthmus.runtime import Runtime

if TYPE_CHECKING:
    from typing_extensions import Unpack

_P = ParamSpec("_P")
_T = TypeVar("_T")


class RuntimeSettings(TypedDict, total=False):
    """What `Runtime` takes, by name."""

    device: str
    threads: int
    sharing: Sharing | None
    caches: Caches
    library: str | Path | None
    snapshot_key: bytes | None
    capacity: Capacity | None
    environment: Environment | None


def _awaited(
    method: Callable[Concatenate[Runtime, _P], _T],
) -> Callable[Concatenate[AsyncRuntime, _P], Coroutine[Any, Any, _T]]:
    """A method of Runtime as a coroutine, which runs it in a thread."""

    @functools.wraps(method)
    async def in_thread(self: AsyncRuntime, /, *args: _P.args, **given: _P.kwargs) -> _T:
        return await asyncio.to_thread(method, self.runtime, *args, **given)

    return in_thread


class AsyncRuntime:
    """A `Runtime` whose methods are awaited, with the same names and arguments.

    ::

        async with isthmus.AsyncRuntime() as rt:
            model = await rt.load_model("smollm2")
            actor = await rt.spawn("chat", models={"default": model})
            async for piece in actor.astream("Hello"):
                print(piece, end="", flush=True)

    Actors are the same as a Runtime's: `asend` and `astream` are for asyncio, and what else takes
    long is for `asyncio.to_thread(actor.snapshot, …)`. A task that is cancelled while it loads or
    spawns leaves that to end by itself; the runtime closes what came of it.
    """

    def __init__(self, **settings: Unpack[RuntimeSettings]) -> None:
        """Takes what `Runtime` takes, and opens nothing before `async with` or `open`."""
        self._open = functools.partial(Runtime, **settings)
        self._runtime: Runtime | None = None

    @property
    def runtime(self) -> Runtime:
        """The runtime itself; ActorClosed before `open`."""
        if self._runtime is None:
            raise ActorClosed("the runtime is not open yet: async with isthmus.AsyncRuntime() as …")
        return self._runtime

    async def open(self) -> None:
        """Opens device and engine. Raises as Runtime does; a second call does nothing."""
        if self._runtime is None:
            self._runtime = await asyncio.to_thread(self._open)

    load_model = _awaited(Runtime.load_model)
    unload_model = _awaited(Runtime.unload_model)
    load_adapter = _awaited(Runtime.load_adapter)
    adapt = _awaited(Runtime.adapt)
    load_guest = _awaited(Runtime.load_guest)
    spawn = _awaited(Runtime.spawn)
    restore = _awaited(Runtime.restore)

    @property
    def actors(self) -> list[Actor]:
        """The actors that are not closed."""
        return self.runtime.actors

    def counters(self) -> Counters:
        """Counts of the device, of all models and of all actors, added up."""
        return self.runtime.counters()

    def metrics(self) -> str:
        """Counters, gauges and histograms of everything here, in Prometheus's text format."""
        return self.runtime.metrics()

    async def close(self) -> None:
        """Closes actors, models, engine and device, in this order; a second call does nothing."""
        if self._runtime is not None:
            await asyncio.to_thread(self._runtime.close)

    async def __aenter__(self) -> AsyncRuntime:
        await self.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
