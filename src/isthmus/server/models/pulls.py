"""Models that are being fetched: those that `isthmus pull` knows by name, and no others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypedDict

from isthmus.download import PACKAGED, pull
from isthmus.server.http.errors import HttpError
from isthmus.server.models.catalog import Source
from isthmus.server.models.models import Models

_LOOK_S = 0.2
"""Seconds between two words on how much has come."""


class Pulling(TypedDict, total=False):
    """A word on how far a pull is."""

    status: str
    digest: str
    """The file's SHA-256."""
    total: int
    completed: int
    """Bytes of what is fetched, and those that have come."""


@dataclass
class _Pull:
    """One model on its way."""

    name: str
    digest: str
    completed: int = 0
    total: int = 0
    done: asyncio.Future[Path] = field(init=False)

    def look(self, completed: int, total: int) -> None:
        """Called by the thread that fetches."""
        self.completed, self.total = min(completed, total), total

    def word(self) -> Pulling:
        """How far it is."""
        said: Pulling = {"status": f"pulling {self.digest[:12]}", "digest": f"sha256:{self.digest}"}
        return {**said, "total": self.total, "completed": self.completed} if self.total else said


class Pulls:
    """See the module. Used by one event loop. Several who want one model wait for one pull, which
    goes on if they leave."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._under_way: dict[str, _Pull] = {}

    async def follow(self, name: str) -> AsyncIterator[Pulling]:
        """Fetches a model, and tells how far that is, until requests may name it.

        HttpError 404 for a name that `isthmus pull` does not know, DownloadError.
        """
        if name not in PACKAGED:
            said = f"{name!r} cannot be pulled; {', '.join(PACKAGED)} can: other models are files"
            raise HttpError(404, said, code="model_not_found", param="model")
        found = self._under_way.get(name) or self._begin(name)
        while not found.done.done():
            yield found.word()
            await asyncio.wait([found.done], timeout=_LOOK_S)
        path = found.done.result()
        yield {"status": "verifying sha256 digest"}  # which `pull` has done
        self._models.files.add(Source(path, {name: ()}))
        yield {"status": "success"}

    def _begin(self, name: str) -> _Pull:
        found = self._under_way[name] = _Pull(name, PACKAGED[name].file_sha256)
        work = partial(pull, name, self._models.runtime.cache, lambda _: None, found.look)
        found.done = asyncio.ensure_future(asyncio.to_thread(work))
        found.done.add_done_callback(lambda _: self._end(found))
        return found

    def _end(self, found: _Pull) -> None:
        del self._under_way[found.name]
        if not found.done.cancelled():
            found.done.exception()  # is told to those who follow
