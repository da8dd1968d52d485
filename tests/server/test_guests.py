"""Guests that clients bring: a share for each owner, and an end."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import wasmtime

from isthmus import Runtime
from isthmus.server.agents.guests import BroughtGuests
from isthmus.server.http.errors import HttpError
from isthmus.server.settings import ServerSettings
from isthmus.server.storage.folder import Folder
from isthmus.server.storage.record import Record
from isthmus.wasm import code_cache, loading
from isthmus.wasm.code_cache import CodeCache
from tests.server.conftest import Serving

DAY_S = 86_400.0


def module(n: int, nbytes: int = 0) -> bytes:
    """Modules that differ."""
    return bytes(
        wasmtime.wat2wasm(
            f"""(module (memory (export "memory") 1) (global (mut i32) (i32.const {n}))
            (data "{"x" * nbytes}")
            (func (export "on_message") (param i32) (result i32) (i32.const 0)))"""
        )
    )


class Brought:
    def __init__(self, folder: Path) -> None:
        self.now = 1000 * DAY_S
        self.records: list[Record] = []
        self.folder = folder
        self.home = Folder(folder)
        self.open()

    def open(self) -> None:
        settings = ServerSettings(data=self.folder, guests=3, guests_nbytes=100)
        self.guests = BroughtGuests(
            self.home, self.folder / "guests.json", settings, lambda: self.records, lambda: self.now
        )

    def add(self, text: bytes, owner: str) -> str:
        digest = self.home.add_guest(text)
        self.home.remove_guest(digest)
        self.guests.add(text, digest, owner)
        return digest

    def uses(self, digest: str, owner: str) -> None:
        self.records.append(
            Record(id="a" * 12, name="", guest=digest, models={}, args={}, limits={}, seed=0,
                   created=0.0, owner=owner)
        )  # fmt: skip


@pytest.fixture
def brought(tmp_path: Path) -> Iterator[Brought]:
    made = Brought(tmp_path)
    yield made
    made.home.close()


def test_an_owner_has_a_share(brought: Brought) -> None:
    for n in range(3):
        brought.add(b"%d" % n, "ada")
    with pytest.raises(HttpError, match="3 guests with 3 bytes") as caught:
        brought.add(b"4", "ada")
    assert (caught.value.status, caught.value.code) == (429, "too_many_guests")
    brought.add(b"0", "ada")  # which she has
    brought.add(b"x" * 99, "bob")
    with pytest.raises(HttpError):
        brought.add(b"yy", "bob")
    brought.open()  # after a restart too
    with pytest.raises(HttpError):
        brought.add(b"4", "ada")
    brought.guests.remove(brought.guests.names("ada")[0], "ada")
    brought.add(b"4", "ada")


def test_what_nobody_uses_goes(brought: Brought) -> None:
    used, unused = brought.add(b"used", "ada"), brought.add(b"unused", "ada")
    brought.uses(used, "ada")
    brought.now += 8 * DAY_S
    brought.guests.collect()
    assert brought.home.guests() == [used]
    assert brought.guests.get(unused, "ada") is None
    with pytest.raises(HttpError, match="1 agents use") as caught:
        brought.guests.remove(used, "ada")
    assert caught.value.status == 409
    brought.records.clear()
    assert brought.guests.remove(used, "ada")
    assert brought.home.guests() == []


def test_two_owners_of_one_module(brought: Brought) -> None:
    digest = brought.add(b"x", "ada")
    brought.add(b"x", "bob")
    brought.uses(digest, "bob")
    assert not brought.guests.remove(digest, "ada")
    assert brought.guests.get(digest, "bob") == b"x"
    with pytest.raises(HttpError):
        brought.guests.remove(digest, "ada")  # it is hers no more


def test_what_is_compiled_is_bounded(
    null_runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_KEPT", 4)
    recent = null_runtime.engine._loader._recent
    kept = null_runtime.load_guest(module(0))
    for n in range(1, 10):
        null_runtime.load_guest(module(n))
        assert null_runtime.load_guest(module(0)) is kept  # used again and again
    assert len(recent) == 4
    monkeypatch.setattr(loading, "_KEPT_NBYTES", kept_nbytes(recent))
    for n in range(5):
        null_runtime.load_guest(module(n, 4000))
    assert 1 <= len(recent) < 4
    null_runtime.forget_guest(kept.sha256)
    assert kept.sha256 not in {sha256 for sha256, _ in recent}


def kept_nbytes(recent: Mapping[tuple[str, str], tuple[object, int]]) -> int:
    return sum(nbytes for _, nbytes in recent.values())


def test_compiled_code_on_the_disk_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_cache, "_MAX_NBYTES", 10_000)
    cache = CodeCache(tmp_path / "cache")
    for n in range(20):
        cache.put(f"{n}", os.urandom(1000))
        os.utime(tmp_path / "cache" / f"{n}", ns=(n, n))
        cache.read("0")
    files = list((tmp_path / "cache").iterdir())
    assert sum(it.stat().st_size for it in files) <= 10_000
    assert cache.read("0") is not None  # it was used all the time
    assert cache.read("1") is None


def test_over_http(tiny_server: Serving) -> None:
    client = tiny_server.client
    digest = client.post("/v1/guests", content=module(77)).json()["id"]
    agent = tiny_server.post("/v1/agents", {"guest": digest})["id"]
    refused = client.delete(f"/v1/guests/{digest}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "guest_in_use")
    assert client.delete(f"/v1/agents/{agent}").status_code == 200
    assert client.delete(f"/v1/guests/{digest}").json() == {"id": digest, "deleted": True}
    assert digest not in client.get("/v1/guests").text
    for gone in (digest, "chat", "../../lock", "x" * 5000, "%00"):
        assert client.delete(f"/v1/guests/{gone}").status_code == 404, gone


def test_a_message_has_the_time_that_its_agent_allows(tiny_server: Serving) -> None:
    wasm = wasmtime.wat2wasm(
        """(module (memory (export "memory") 1)
        (func (export "on_message") (param i32) (result i32) (loop $l (br $l)) (i32.const 0)))"""
    )
    guest = tiny_server.client.post("/v1/guests", content=bytes(wasm)).json()["id"]
    agent = tiny_server.post("/v1/agents", {"guest": guest, "limits": {"deadline_s": 0.5}})
    path = f"/v1/agents/{agent['id']}"
    told = tiny_server.client.post(f"{path}/messages", json={"input": "x"}, timeout=60)
    assert told.status_code == 504
    assert tiny_server.client.delete(path).status_code == 200
