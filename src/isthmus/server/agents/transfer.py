"""Agents as files: downloaded while they are read, and restored from what a client uploads.

Neither is ever whole in memory. An upload is written to `uploads/`, which is emptied at the start.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Annotated

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from isthmus.config import Level
from isthmus.errors import SettingsError, SnapshotError, SnapshotMismatch
from isthmus.server.agents.replies import Agent, whole
from isthmus.server.agents.requests import Name, Which
from isthmus.server.agents.routes import Agents
from isthmus.server.agents.shelf import Shelf
from isthmus.server.http.endpoint import BINARY, Endpoint, read_query
from isthmus.server.http.entry import current
from isthmus.server.http.errors import HttpError
from isthmus.server.http.fair import Room
from isthmus.server.keys.guard import RESTORE
from isthmus.server.models.files import ModelFiles
from isthmus.server.storage.record import Record
from isthmus.snapshot import Export, Manifest, Snapshot, open_snapshot

_UPLOADS_AT_A_TIME = 4


class Restoring(Struct, kw_only=True):
    """How an agent is restored from a file."""

    name: Annotated[str, Name] = ""
    require: Level = "state-exact"
    """What is less exact is refused; replayed allows another model."""
    model: str | None = None
    """The server's model for what used one that the server does not have."""


class Transfer:
    """The routes, over a shelf."""

    def __init__(self, shelf: Shelf, agents: Agents) -> None:
        self._shelf = shelf
        self._agents = agents
        self._folder = shelf.folder / "uploads"
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            for left in self._folder.iterdir():
                left.unlink()
        except OSError as error:
            raise SettingsError(f"cannot use {self._folder}: {error.strerror}") from None
        self._room = Room(_UPLOADS_AT_A_TIME, waiting=0)

    def routes(self) -> list[Endpoint]:
        """For Starlette."""
        return [
            Endpoint(
                "GET", "/v1/agents/{id}/snapshot", self.download, query=Which, gives=(BINARY,)
            ),
            Endpoint(
                "POST",
                RESTORE,
                self.restore,
                query=Restoring,
                takes=BINARY,
                gives=(Agent,),
                status=201,
            ),
        ]

    # ------------------------------------------------------------------ download

    async def download(self, request: Request) -> Response:
        """The agent as one file, for `isthmus restore` and any safetensors reader."""
        record, position = self._agents.find(request, read_query(request, Which).at)
        snapshot = await self._shelf.in_thread(lambda: self._open(record, position))
        headers = {"ETag": f'"{snapshot.id}"'}
        if headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        file = Export(snapshot)
        headers |= {
            "Content-Length": str(file.nbytes),
            "Content-Disposition": f'attachment; filename="{record.id}.{position}.safetensors"',
        }
        return StreamingResponse(file.pieces(), media_type=BINARY, headers=headers)

    def _open(self, record: Record, position: int) -> Snapshot:
        self._shelf.bring(record, position)
        return self._shelf.snapshot(record, position)

    # ------------------------------------------------------------------ upload

    async def restore(self, request: Request) -> Response:
        """An agent from the file of a snapshot: as `isthmus restore` takes it, or refuses it.

        Raises HttpError with what is wrong with it.
        """
        asked = read_query(request, Restoring)
        async with self._uploaded(request) as path:
            try:
                record = await self._adopt(path, asked)
            except SnapshotError as error:
                said = str(error).replace(str(path), "the snapshot")
                raise HttpError(400, said, code="snapshot") from None
        return JSONResponse(whole(record, []), 201)

    async def _adopt(self, path: Path, asked: Restoring) -> Record:
        shelf = self._shelf
        snapshot = await shelf.in_thread(lambda: open_snapshot(path))
        if snapshot.manifest.actor.message is not None:
            raise SnapshotMismatch(
                "the snapshot is in the middle of an answer: isthmus restore --save ends it first"
            )
        files = shelf.models.files
        otherwise = asked.model and files.real_name(asked.model)
        if otherwise is not None:
            files.known(otherwise)
        models = await shelf.in_thread(lambda: _models_of(snapshot.manifest, files, otherwise))
        name = asked.name or f"{snapshot.manifest.guest.name}, restored"
        return await shelf.adopt(name, snapshot, models, asked.require)

    @contextlib.asynccontextmanager
    async def _uploaded(self, request: Request) -> AsyncIterator[Path]:
        """The body as a file, which is gone at the end, whatever happens."""
        path = self._folder / secrets.token_hex(8)
        async with self._room.place(current().owner):
            try:
                await self._write(request, path)
                yield path
            finally:
                await asyncio.shield(self._shelf.in_thread(partial(path.unlink, missing_ok=True)))

    async def _write(self, request: Request, path: Path) -> None:
        try:
            with path.open("xb") as file:
                async for piece in request.stream():
                    if piece:
                        await self._shelf.in_thread(partial(file.write, piece))
        except OSError as error:
            raise HttpError(
                507, f"the server cannot keep the snapshot: {error.strerror}", code="storage"
            ) from None


def _models_of(manifest: Manifest, files: ModelFiles, otherwise: str | None) -> dict[str, str]:
    """The server's models, by the guest's names: those with the same weights and adapters, or
    `otherwise`. The files are hashed, and not loaded. SnapshotMismatch where there is none."""
    found = {}
    for it in manifest.models:
        name = files.find_same(it.weights_sha256, it.added) or otherwise
        if name is None:
            raise SnapshotMismatch(
                f"the agent's model {it.name!r} is {it.file_name}, SHA-256 "
                f"{it.weights_sha256[:12]}…, with {len(it.added) or 'no'} adapters, which is none "
                f"of this server's: {', '.join(files.names())} "
                "(model=NAME and require=replayed take another one)"
            )
        found[it.name] = name
    return found
