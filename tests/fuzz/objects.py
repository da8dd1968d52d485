"""Object stores: agents whose objects somebody has changed, by hashes that are right and wrong.

An input is JSON: the store's objects by name, as text in base64.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from obstore.store import MemoryStore

from isthmus import Runtime
from isthmus.config import Environment
from isthmus.errors import IsthmusError
from isthmus.server.agents.answers import Answers, sent_of
from isthmus.server.agents.requests import NewMessage
from isthmus.server.agents.shelf import Shelf
from isthmus.server.http.errors import body_of
from isthmus.server.settings import ServerSettings
from isthmus.server.storage import history, objects
from isthmus.server.storage.objects import Objects
from tests.fuzz.snapshots import _places
from tests.fuzz.surface import CAPACITY, Surface
from tests.server.process import no_models
from tests.server.test_mirror import COUNTS, asked

_URL = "s3://in-memory/agents"
_FOLDERS = ("agents", "guests", "lease", "packs", "snapshots", "turns")
_EMPTY = hashlib.sha256(b"").hexdigest()
_VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 2**31, 2**63, 10**400, 0.5, "", "x", "../../x", "\ud800", "\x1b[2J"),
    *([], {}, [[]], "a" * 100_000, _EMPTY, f"0000000001-{_EMPTY}.pack.safetensors", ".."),
)
Files = dict[str, bytes]


def changed(change: Callable[[Files], object]) -> Callable[[], bytes]:
    """The good store, in which `change` has changed something."""

    def made() -> bytes:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            surface = Fuzz(Path(folder))
            files = dict(surface.good)
            surface.close()
        change(files)
        return _written(files)

    return made


def _empty_pack(files: Files) -> None:
    """A record names a pack without chunks, and it is there."""
    name = f"0000000001-{_EMPTY}.pack.safetensors"
    files[f"packs/{name}"] = b"anything"
    for it in [it for it in files if it.startswith("packs/") and name not in it]:
        del files[it]
    record = json.loads(files.pop(found := _one(files, "agents")))
    record["stored"]["packs"] = {name: 99}
    files[found] = json.dumps(record).encode()


def _other_turns(data: bytes) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        """A segment of turns holds something else, under its right hash."""
        digest, found = hashlib.sha256(data).hexdigest(), _one(files, "agents")
        record = json.loads(files[found])
        record["segments"] = [{"sha256": digest, "last": 1, "nbytes": len(data), "holder": 1}]
        files[found] = json.dumps(record).encode()
        files[f"turns/0000000001-{record['id']}.{digest}"] = data

    return change


class Fuzz(Surface):
    """Opens a store, and reads, asks and removes every agent in it."""

    corpus: ClassVar = {
        "good": changed(lambda files: None),
        "empty-pack": changed(_empty_pack),
        "no-turns": changed(_other_turns(b'{"a": 1}')),
        "100000-brackets-of-turns": changed(_other_turns(b"[" * 100_000)),
        "claim-of-braces": changed(lambda it: it.update({"lease/9999999999": b'{"x":' * 50_000})),
        "no-claim": changed(lambda it: it.update({"lease/x": b"", "lease/-1": b"{}"})),
    }
    n_short = 10

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        environment = Environment(cache=folder / "cache")
        self.runtime = Runtime(device="null", threads=1, environment=environment, capacity=CAPACITY)
        self.models = no_models(self.runtime)
        self.n_caches = 0
        history.TAIL_NBYTES = 64  # so that few turns make segments
        self.good = self._stored()

    def close(self) -> None:
        self.runtime.close()

    def make(self, rng: random.Random) -> bytes:
        files = dict(self.good)
        for _ in range(rng.choice([1, 1, 2, 4])):
            _change(files, rng)
        return _written(files)

    def run(self, data: bytes) -> str:
        self._place({name: base64.b64decode(it) for name, it in json.loads(data).items()})
        shelf = self._shelf()
        try:
            return asyncio.run(self._use(shelf))
        finally:
            with suppress(IsthmusError):
                asyncio.run(shelf.close())

    async def _use(self, shelf: Shelf) -> str:
        """What came of each agent. Whatever goes wrong has an answer that is no 500."""
        done = []
        for record in [*shelf.records.values()]:
            for job in (self._read, self._ask, self._remove):
                try:
                    await job(shelf, record.id)
                    done.append("good")
                except Exception as error:
                    status, _ = body_of(error)
                    if not isinstance(error, IsthmusError) and status >= 500:
                        raise
                    done.append(type(error).__name__)
        return " ".join(done) or "none"

    @staticmethod
    async def _read(shelf: Shelf, id_: str) -> None:
        await shelf.turns(shelf.record(id_))

    @staticmethod
    async def _ask(shelf: Shelf, id_: str) -> None:
        answers = Answers(shelf, ServerSettings())
        async with shelf.holding(id_) as held:
            async for _ in answers.items(held, sent_of(NewMessage(input="x"))):
                pass

    @staticmethod
    async def _remove(shelf: Shelf, id_: str) -> None:
        await shelf.delete(id_)

    def _stored(self) -> Files:
        """The objects of a store with two agents that have talked."""
        self._place({})

        async def talk(shelf: Shelf) -> None:
            guest = await shelf.in_thread(lambda: shelf.guests.add(COUNTS))
            for _ in range(2):
                id_ = (await shelf.create(asked(guest))).id
                for _ in range(3):
                    await self._ask(shelf, id_)
            await shelf.close()

        asyncio.run(talk(self._shelf()))
        store = Objects(_URL)
        return {f"{it}/{name}": store.get(f"{it}/{name}") or b"" for it in _FOLDERS
                for name in store.names(it)}  # fmt: skip

    def _place(self, files: Files) -> None:
        store = MemoryStore()
        objects.open_store = lambda url: store
        for name, data in files.items():
            store.put(name, data)

    def _shelf(self) -> Shelf:
        shutil.rmtree(self.folder / f"store{self.n_caches}", ignore_errors=True)
        self.n_caches += 1
        cache = self.folder / f"store{self.n_caches}"
        return Shelf(self.models, ServerSettings(data=_URL, cache=cache, lease_s=3.0))


def _written(files: Files) -> bytes:
    return json.dumps({name: base64.b64encode(it).decode() for name, it in files.items()}).encode()


def _one(files: Files, folder: str) -> str:
    return next(it for it in files if it.startswith(f"{folder}/"))


def _change(files: Files, rng: random.Random) -> None:
    """Changes, swaps, renames or removes an object."""
    name, other = rng.choices(list(files), k=2)
    data = bytearray(files[name])
    match rng.randrange(6):
        case 0 if len(files) > 1:
            del files[name]
        case 1:
            files[name] = files[other]
        case 2:
            folder = name.partition("/")[0]
            files[
                f"{folder}/{rng.choice(['x', '-', '.x', '0' * 200, other.rpartition('/')[2]])}"
            ] = files[name]
        case 3:
            for _ in range(rng.choice([1, 8])):
                if data:
                    data[rng.randrange(len(data))] = rng.randrange(256)
            files[name] = bytes(data[: rng.choice([0, len(data) // 2, len(data), len(data)])])
        case _:
            record = rng.choice(
                [it for it in files if it.startswith(("agents/", "lease/"))] or [name]
            )
            with suppress(ValueError, LookupError, TypeError):
                files[record] = _lied(json.loads(files[record]), rng)


def _lied(said: Any, rng: random.Random) -> bytes:
    """A record or a claim with something else in it."""
    *way, last = rng.choice(_places(said))
    holder = said
    for key in way:
        holder = holder[key]
    holder[last] = rng.choice(_VALUES)
    return json.dumps(said).encode()
