"""What the owner of a key may keep."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from isthmus.server.agents.allowance import Allowances
from isthmus.server.http.errors import HttpError
from isthmus.server.http.fair import Threads
from isthmus.server.http.key import Key, KeyLimits
from isthmus.server.keys.keys import new_key
from isthmus.server.storage.record import Record
from isthmus.server.storage.usage import nbytes_taken
from isthmus.snapshot import Store
from tests.crash.test_kill import Memory
from tests.patience import eventually
from tests.server.conftest import Serving

_LIMIT = 3 << 20
_CHAT = {"guest": "chat", "args": {"max_tokens": "4"}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    for name in ("agents", "turns"):
        (tmp_path / name).mkdir()
    return Store(tmp_path / "store")


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads(2, "test-disk")
    yield threads
    threads.close()


def record(id_: str, owner: str | None) -> Record:
    return Record(
        id=id_,
        name="",
        guest="chat",
        models={},
        args={},
        limits={},
        seed=1,
        created=0.0,
        owner=owner,
    )


def test_what_agents_share_counts_once(store: Store) -> None:
    memory = Memory()
    first = store.save(memory.draft(1), "aaaaaaaaaaaa.0").nbytes_written
    alone = nbytes_taken(store, {"aaaaaaaaaaaa"})
    assert first <= alone <= 1.1 * first
    store.save(memory.draft(1), "bbbbbbbbbbbb.0")
    assert nbytes_taken(store, {"aaaaaaaaaaaa", "bbbbbbbbbbbb"}) < 1.2 * alone
    assert nbytes_taken(store, {"bbbbbbbbbbbb"}) >= 0.9 * alone
    assert nbytes_taken(store, {"cccccccccccc"}) == 0
    (store.folder.parent / "turns" / "cccccccccccc.1").write_bytes(b"x" * 5000)
    assert nbytes_taken(store, {"cccccccccccc"}) == 5000


def test_nothing_is_counted_for_names_that_only_begin_alike(store: Store) -> None:
    store.save(Memory().draft(1), "aaaaaaaaaaaab.0")
    assert nbytes_taken(store, {"aaaaaaaaaaaa"}) == 0


def test_a_count_that_reached_the_limit_is_made_anew(
    store: Store, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isthmus.server.agents.allowance._COUNTED_EVERY_S", 0.0)
    records = [record("aaaaaaaaaaaa", "ada"), record("bbbbbbbbbbbb", "bob")]
    allowances = Allowances(store, lambda: records, threads)
    key = Key("ada", "", KeyLimits(disk=_LIMIT))

    async def use() -> None:
        await allowances.require_disk(None)
        await allowances.require_disk(key)
        allowances.wrote("ada", _LIMIT)
        await allowances.require_disk(key)  # it was counted anew: nothing is there
        store.save(Memory().draft(1), "bbbbbbbbbbbb.0")
        (store.folder.parent / "agents" / "aaaaaaaaaaaa.json").write_bytes(bytes(_LIMIT))
        allowances.wrote("ada", _LIMIT)
        with pytest.raises(HttpError, match=r"may take 3\.0 MiB") as caught:
            await allowances.require_disk(key)
        assert (caught.value.status, caught.value.code) == (429, "disk_quota")
        await allowances.require_disk(Key("bob", "", KeyLimits()))

    asyncio.run(use())


def test_without_a_limit_a_key_has_half_of_the_disk(
    store: Store, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isthmus.server.agents.allowance.nbytes_for_agents", lambda _: 8000)
    allowances = Allowances(store, lambda: [record("aaaaaaaaaaaa", "ada")], threads)
    (store.folder.parent / "agents" / "aaaaaaaaaaaa.json").write_bytes(bytes(4000))

    async def use() -> None:
        with pytest.raises(HttpError, match="delete some of them"):
            await allowances.require_disk(Key("ada", ""))
        await allowances.require_disk(Key("ada", "", KeyLimits(disk=4001)))
        await allowances.require_disk(Key("bob", ""))

    asyncio.run(use())


@pytest.fixture
def clients(tiny_q8: Path, tmp_path: Path) -> Iterator[Callable[[str], httpx.Client]]:
    """A server; clients of it with the keys `ada`, who has a limit, and `bob`."""
    keys, made = tmp_path / "keys", {}
    for name, limits in (("ada", KeyLimits(disk=200_000)), ("bob", KeyLimits())):
        made[name] = new_key(keys, name, limits)
    options = ("--model", f"tiny={tiny_q8}", "--n-ctx", "512", "--keys", str(keys))
    server, opened = Serving(tmp_path / "data", *options), []

    def client(name: str) -> httpx.Client:
        headers = {"Authorization": f"Bearer {made[name]}"}
        opened.append(httpx.Client(base_url=server.url, headers=headers, timeout=60))
        return opened[-1]

    yield client
    for it in opened:
        it.close()
    assert server.stop() == 0


def test_whoever_fills_the_disk_stops_nobody_else(clients: Callable[[str], httpx.Client]) -> None:
    ada, bob = clients("ada"), clients("bob")
    made = []
    for _ in range(50):
        answer = ada.post("/v1/agents", json=_CHAT)
        if answer.status_code != 201:
            break
        made.append(answer.json()["id"])
    assert made, answer.text
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "disk_quota")
    assert answer.headers["x-should-retry"] == "false"
    path = f"/v1/agents/{made[0]}"
    for refused in (
        ada.post(f"{path}/messages", json={"input": "x"}),
        ada.post(f"{path}/messages", json={"input": "x", "stream": True}),
        ada.post(f"{path}/fork", json={}),
        ada.post("/v1/conversations", json={}),
        ada.post("/v1/responses", json={"model": "tiny", "input": "x", "max_output_tokens": 1}),
    ):
        assert refused.json()["error"]["code"] == "disk_quota", refused.text
    assert ada.get(path).status_code == 200
    stateless = {"model": "tiny", "input": "x", "max_output_tokens": 1, "store": False}
    assert ada.post("/v1/responses", json=stateless).status_code == 200
    theirs = bob.post("/v1/agents", json=_CHAT).json()["id"]
    assert bob.post(f"/v1/agents/{theirs}/messages", json={"input": "x"}).status_code == 200
    for id_ in made:
        assert ada.delete(f"/v1/agents/{id_}").status_code == 200
    # What they leave is removed beside other work.
    assert eventually(lambda: ada.post("/v1/agents", json=_CHAT).status_code == 201)
