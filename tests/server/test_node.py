"""Which servers there are at a URL, and which of them live."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from isthmus.errors import StorageError
from isthmus.server.storage.node import Node
from isthmus.server.storage.objects import Objects

LEASE_S = 0.6


@pytest.fixture
def objects(memory_store: str) -> Objects:
    return Objects(memory_store)


@pytest.fixture
def begin(objects: Objects) -> Iterator[Callable[..., Node]]:
    """Makes nodes, which end with the test."""
    nodes: list[Node] = []

    def make(owner: str, lease_s: float = LEASE_S) -> Node:
        nodes.append(Node(objects, owner, lease_s))
        return nodes[-1]

    yield make
    for node in nodes:
        node.release()


@pytest.fixture
def begin_stopped(
    begin: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Node]:
    """Makes a node whose process was stopped at once."""

    def make(owner: str) -> Node:
        with monkeypatch.context() as patch:
            patch.setattr(Node, "_keep", lambda _: None)
            return begin(owner)

    return make


def until(happens: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_several_live_side_by_side_and_say_where_they_are(begin: Callable[..., Node]) -> None:
    first, second = begin("a", 60), begin("b", 60)
    assert (first.number, second.number) == (1, 2)
    assert second.ended() == set()
    found = second.peer(1)
    assert found is not None
    assert (found.address, found.token) == ("", first.token)
    first.advertise("http://10.0.0.7:8080")
    found = second.peer(1)
    assert found is not None
    assert found.address == "http://10.0.0.7:8080"
    assert "process" in found.where
    first.release()
    assert second.peer(1) is None
    assert second.ended() == {1}
    second.require(2)
    with pytest.raises(StorageError):
        second.require(1)


def test_one_that_is_silent_for_its_lease_has_ended_and_one_that_beats_has_not(
    begin: Callable[..., Node], begin_stopped: Callable[[str], Node]
) -> None:
    stopped, living, watching = begin_stopped("a"), begin("b"), begin("c")
    until(lambda: watching.peer(stopped.number) is None)
    assert living.number == 2
    assert watching.peer(living.number) is not None
    assert watching.number == 3


def test_one_that_was_taken_for_dead_begins_anew(
    begin: Callable[..., Node], begin_stopped: Callable[[str], Node]
) -> None:
    stopped, heir = begin_stopped("a"), begin("b")
    stopped.advertise("http://there")
    stopped.require(1)
    until(lambda: heir.peer(1) is None)
    stopped.advertise("http://there")  # it wakes up
    assert stopped.number == 3
    stopped.require(3)
    with pytest.raises(StorageError, match="taken this one for dead"):
        stopped.require(1)
    found = heir.peer(3)
    assert found is not None
    assert found.address == "http://there"


def test_a_start_with_the_same_cache_ends_what_it_was_before(
    objects: Objects, begin: Callable[..., Node], begin_stopped: Callable[[str], Node]
) -> None:
    begin_stopped("a")
    other, again = begin("b", 60), begin("a", 60)
    assert again.number == 3
    assert again.ended() == {1}
    assert other.peer(1) is None
    begin("c", 60)
    assert objects.names("lease") == ["0000000002", "0000000003", "0000000004"]


def test_a_beat_whose_answer_was_lost_costs_nothing(
    begin: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = begin("a", 60)
    replace = Objects.replace

    def unanswered(*it: object) -> None:
        replace(*it)  # type: ignore[arg-type]
        raise StorageError("the answer did not come")

    with monkeypatch.context() as patch:
        patch.setattr(Objects, "replace", unanswered)
        with pytest.raises(StorageError):
            node.advertise("http://here")
    node.advertise("http://here")
    assert node.number == 1
    node.require(1)


def test_a_store_that_is_out_of_reach_is_not_trusted(
    begin: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object) -> None:
        raise StorageError("the store is gone")

    node = begin("a", 60)
    node._sure_until = 0.0
    with monkeypatch.context() as patch:
        patch.setattr(Objects, "replace", unreachable)
        with pytest.raises(StorageError, match="gone"):
            node.require(1)
    node.require(1)


def test_a_claim_of_an_earlier_release_ends_like_any_other(
    objects: Objects, begin: Callable[..., Node]
) -> None:
    said = (
        b'{"owner":"x","where":"process 1 on it","lease_s":0.6,"beat":7,"released":%b,"fenced":%b}'
    )
    objects.put("lease/0000000001", said % (b"true", b"true"))
    objects.put("lease/0000000002", said % (b"false", b"true"))
    node = begin("a")
    assert node.number == 3
    assert node.peer(1) is None
    until(lambda: node.peer(2) is None)


def test_of_several_who_create_one_manages(objects: Objects) -> None:
    assert objects.create("x", b"mine")
    assert objects.create("x", b"mine")  # the same request, repeated
    assert not objects.create("x", b"yours")
    assert objects.get("x") == b"mine"
    assert objects.get("y") is None
