"""Models that are being fetched, by the names that `isthmus pull` takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypedDict

from isthmus.download import Progress, parse, pull
from isthmus.errors import DownloadError
from isthmus.server.http.errors import HttpError
from isthmus.server.models.catalog import Source
from isthmus.server.models.models import Models

_LOOK_S = 0.2
"""Seconds between two words on how much has come."""
_AT_A_TIME = 2
"""Models that are fetched at the same time; others wait."""


class Pulling(TypedDict, total=False):
    """A word on how far a pull is."""

    status: str
    digest: str
    """The SHA-256 of the file that is fetched now."""
    total: int
    completed: int
    """Bytes of that file, and those that have come."""


@dataclass
class _Pull:
    """One model on its way."""

    name: str
    progress: Progress | None = None
    """None until bytes of a file come."""
    stopped: bool = False
    done: asyncio.Future[Path] = field(init=False)

    def watch(self, progress: Progress) -> None:
        """Called by the thread that fetches. DownloadError once the pull is to end."""
        if self.stopped:
            raise DownloadError(f"the server ends: the next pull of {self.name} goes on from here")
        self.progress = progress

    def word(self) -> Pulling:
        """How far it is."""
        it = self.progress
        if it is None:
            return {"status": "pulling manifest"}
        return {
            "status": f"pulling {it.sha256[:12]}",
            "digest": f"sha256:{it.sha256}",
            "total": it.nbytes,
            "completed": it.done,
        }


class Pulls:
    """See the module. Used by one event loop. Several who want one model wait for one pull, which
    goes on if they leave."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._under_way: dict[str, _Pull] = {}
        self._threads = ThreadPoolExecutor(_AT_A_TIME, "isthmus-pulls")

    async def follow(self, name: str) -> AsyncIterator[Pulling]:
        """Words on how far the pull of a model is, until requests may name it.

        HttpError 404 for what is no such name, DownloadError.
        """
        try:
            parse(name)
        except DownloadError as error:
            raise HttpError(404, str(error), code="model_not_found", param="model") from None
        found = self._under_way.get(name) or self._begin(name)
        while not found.done.done():
            yield found.word()
            await asyncio.wait([found.done], timeout=_LOOK_S)
        path = found.done.result()
        yield {"status": "verifying sha256 digest"}  # which `pull` has done
        self._models.files.add(Source(path, {name: ()}))
        yield {"status": "success"}

    def _begin(self, name: str) -> _Pull:
        found = self._under_way[name] = _Pull(name)
        environment = self._models.runtime.environment
        work = partial(pull, name, environment, lambda _: None, found.watch)
        found.done = asyncio.get_running_loop().run_in_executor(self._threads, work)
        found.done.add_done_callback(lambda _: self._end(found))
        return found

    async def close(self) -> None:
        """Ends all pulls; what has come of them stays for the next ones."""
        for it in self._under_way.values():
            it.stopped = True
        await asyncio.to_thread(partial(self._threads.shutdown, cancel_futures=True))

    def _end(self, found: _Pull) -> None:
        del self._under_way[found.name]
        if not found.done.cancelled():
            found.done.exception()  # is told to those who follow
