"""Turns of an agent as a chain of responses, and as a conversation."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from isthmus.errors import SnapshotInvalid
from isthmus.server.http.errors import HttpError
from isthmus.server.responses.chain import (
    Added,
    Answered,
    Begun,
    Chain,
    Deleted,
    Described,
    Ended,
    Kept,
    Removed,
    as_turn,
)
from isthmus.server.responses.pages import page_of
from isthmus.server.responses.requests import Page
from isthmus.server.storage.history import KEPT_NBYTES, TEXT_CHARACTERS, turns_of, with_turns
from isthmus.server.storage.record import FullRecord, Record, Turn


def item(id_: str) -> dict[str, Any]:
    return {"id": id_, "type": "message", "role": "user", "content": [], "status": "completed"}


def response(id_: str, status: str = "completed") -> dict[str, Any]:
    return {"id": id_, "status": status, "output": [item(f"{id_}-out")]}


def answered(id_: str, status: str = "completed") -> Answered:
    return Answered([item(f"{id_}-in")], response(id_, status), 9)


def chain_of(*kept: Kept) -> Chain:
    return Chain.of([as_turn(it, n, 0.0) for n, it in enumerate(kept, 1)], "agent")


def ids(items: list[dict[str, Any]]) -> list[str]:
    return [it["id"] for it in items]


def test_an_item_is_removed_twice_and_one_id_is_that_of_two() -> None:
    """As earlier releases kept them."""
    same = Added([item("x")])
    chain = chain_of(same, Added([item("y")]), same, Removed("x"), Removed("x"))
    assert ids(chain.items) == ["y"]


def test_a_chain() -> None:
    chain = chain_of(answered("a"), answered("b", "incomplete"), answered("c"))
    assert ids(chain.items) == ["a-in", "a-out", "b-in", "b-out", "c-in", "c-out"]
    found = chain.find("b")
    assert found is not None
    assert (ids(found.before), ids(found.input), found.position) == (["a-in", "a-out"], ["b-in"], 2)
    assert found.is_said
    assert chain.find("d") is None
    assert chain.position == 3


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_what_was_not_said_adds_nothing(status: str) -> None:
    chain = chain_of(answered("a"), Begun([item("b-in")], response("b", "queued")), answered("c"))
    assert ids(chain.items) == ["a-in", "a-out", "c-in", "c-out"]
    begun = chain.find("b")
    assert begun is not None
    assert begun.last_event is None
    assert not begun.is_said
    ended = chain_of(
        Begun([item("b-in")], response("b", "queued")), Ended("b", response("b", status), 4)
    )
    assert ended.items == []
    assert ended.position == 0
    assert not ended.responses["b"].is_said


def test_one_that_ran_in_the_background_is_where_it_ended() -> None:
    begun = Begun([item("b-in")], response("b", "queued"))
    chain = chain_of(answered("a"), begun, Ended("b", response("b"), 7))
    found = chain.find("b")
    assert found is not None
    assert (found.position, found.last_event, found.is_said) == (3, 7, True)
    assert ids(chain.items) == ["a-in", "a-out", "b-in", "b-out"]
    assert ids(found.before) == ["a-in", "a-out"]


def test_a_deleted_response_leaves_its_items_to_others() -> None:
    chain = chain_of(answered("a"), answered("b"), Deleted("a"))
    assert chain.find("a") is None
    assert ids(chain.items) == ["a-in", "a-out", "b-in", "b-out"]
    assert chain.position == 2


def test_a_conversation_changes() -> None:
    added = Added([item("x"), item("y")])
    chain = chain_of(Described({"a": "1"}), added, answered("r"), Removed("x"), Described({}))
    assert ids(chain.items) == ["y", "r-in", "r-out"]
    found = chain.find("r")
    assert found is not None
    assert ids(found.before) == ["y"]
    assert chain.metadata == {}


@pytest.mark.parametrize("kept", [None, "", "{}", '{"kind": "other"}', "[" * 10_000])
def test_a_turn_that_is_something_else(kept: str | None) -> None:
    turn = msgspec.structs.replace(as_turn(Deleted("x"), 1, 0.0), kept=kept)
    with pytest.raises(SnapshotInvalid):
        Chain.of([turn], "agent")


def test_pages() -> None:
    items = [item(str(n)) for n in range(5)]
    first = page_of(items, Page(limit=2))
    assert (ids(first["data"]), first["has_more"]) == (["4", "3"], True)
    assert (first["first_id"], first["last_id"]) == ("4", "3")
    rest = page_of(items, Page(limit=2, order="asc", after="2"))
    assert (ids(rest["data"]), rest["has_more"]) == (["3", "4"], False)
    assert page_of([], Page()) == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }
    with pytest.raises(HttpError):
        page_of(items, Page(after="9"))


# ------------------------------------------------------------------ how turns are kept


def record(kind: Any) -> Record:
    return Record(
        id="abcdefghijkl",
        name="",
        guest="complete",
        models={},
        args={},
        limits={},
        seed=0,
        created=0.0,
        kind=kind,
    )


def long_turn(position: int) -> Turn:
    text = "x" * (TEXT_CHARACTERS + 5)
    turn = as_turn(Added([{**item("i"), "content": text}]), position, 0.0)
    return msgspec.structs.replace(turn, input=text)


def kept_turns(kind: Any, n: int) -> list[Turn]:
    full: FullRecord | None = None
    written: dict[Any, bytes] = {}
    for position in range(1, n + 1):
        full, new = with_turns(full, record(kind), [long_turn(position)])
        written |= new
    assert full is not None
    return turns_of(full, lambda it: written[it])


def test_a_response_is_kept_whole_and_none_is_dropped() -> None:
    n = KEPT_NBYTES // TEXT_CHARACTERS + 4
    turns = kept_turns("response", n)
    assert [it.position for it in turns] == list(range(1, n + 1))
    assert all(it.kept == long_turn(1).kept for it in turns)
    assert all(it.n_left_out == 5 for it in turns)
    assert len(kept_turns("agent", n)) < n


def test_records_of_earlier_releases_are_agents() -> None:
    data = msgspec.to_builtins(record("agent"))
    del data["kind"], data["used"]
    assert msgspec.convert(data, Record).kind == "agent"
    turn = msgspec.to_builtins(long_turn(1))
    del turn["kept"]
    assert msgspec.convert(turn, Turn).kept is None
