"""Several answers at once: all of them whole, or what they give as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from isthmus.server.generation.prepared import Prepared, Step
from isthmus.server.generation.request import End

_T = TypeVar("_T")


async def gathered(works: list[Coroutine[Any, Any, _T]]) -> list[_T]:
    """All results; where one fails the others are ended."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        await _end(tasks)
        raise


async def _end(tasks: Sequence[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def merged(each: Sequence[Prepared]) -> AsyncGenerator[tuple[int, Step | End | None]]:
    """What all give, as it comes: None first, then the steps, then the end of each."""
    if len(each) == 1:
        async with aclosing(_numbered(0, each[0])) as items:
            async for item in items:
                yield item
        return
    queue: asyncio.Queue[tuple[int, Step | End | None] | Exception] = asyncio.Queue()

    async def feed(index: int, prepared: Prepared) -> None:
        try:
            async with aclosing(_numbered(index, prepared)) as items:
                async for item in items:
                    queue.put_nowait(item)
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.ensure_future(feed(i, prepared)) for i, prepared in enumerate(each)]
    left = len(tasks)
    try:
        while left:
            came = await queue.get()
            if isinstance(came, Exception):
                raise came
            left -= isinstance(came[1], End)
            yield came
    finally:
        await _end(tasks)


async def _numbered(
    index: int, prepared: Prepared
) -> AsyncGenerator[tuple[int, Step | End | None]]:
    """What one gives, with its number."""
    begun = False
    async with aclosing(prepared.steps()) as items:
        async for item in items:
            if not begun:
                yield index, None
                begun = True
            yield index, item
