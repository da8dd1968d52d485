"""Who may write below a URL."""

from __future__ import annotations

import threading

import pytest

from isthmus.errors import SettingsError, StorageError
from isthmus.server.storage.lease import Lease
from isthmus.server.storage.objects import Objects


@pytest.fixture
def url(memory_store: str) -> str:
    return memory_store


def test_a_second_server_is_refused_until_the_first_gives_back(url: str) -> None:
    objects = Objects(url)
    first = Lease(objects, "a", 0.6)
    with pytest.raises(SettingsError, match=r"another server uses s3://.*process \d+ on"):
        Lease(objects, "b", 0.6)
    first.release()
    second = Lease(objects, "b", 60)
    second.require()
    third = Lease(objects, "b", 60)  # the same cache, whose lock says that b has died
    third.require()
    third.release()
    second.release()
    assert objects.names("lease") == ["0000000003"]


def test_a_server_that_died_is_outlasted_and_one_that_wakes_up_is_refused(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = Objects(url)
    with monkeypatch.context() as patch:
        patch.setattr(Lease, "_keep", lambda _: None)  # it dies at once
        dead = Lease(objects, "a", 0.6)
    dead.require()
    heir = Lease(objects, "b", 0.6)
    heir.require()
    with pytest.raises(StorageError, match=r"not been reached|taken over"):
        dead.require()
    dead._beat()
    with pytest.raises(StorageError, match="taken over"):
        dead.require()
    dead.release()
    heir.release()


def test_a_store_that_is_out_of_reach_is_written_to_no_more(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = Lease(Objects(url), "a", 0.6)
    beaten = threading.Event()

    def unreachable(*_: object) -> list[str]:
        beaten.set()
        raise StorageError("the store is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Objects, "names", unreachable)
        assert beaten.wait(20)
        lease._sure_until = 0.0
        with pytest.raises(StorageError, match="has not been reached"):
            lease.require()
    lease._beat()
    lease.require()
    lease.release()


def test_of_several_who_create_one_manages(url: str) -> None:
    objects = Objects(url)
    assert objects.create("x", b"mine")
    assert objects.create("x", b"mine")  # the same request, repeated
    assert not objects.create("x", b"yours")
    assert objects.get("x") == b"mine"
    assert objects.get("y") is None
