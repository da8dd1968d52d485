"""Stored responses, conversations and jobs against callers who mean harm."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest

from isthmus.server.duration import MAX_S
from isthmus.server.http.depth import MAX_DEPTH, is_deep
from isthmus.server.http.endpoint import decode_json
from isthmus.server.http.entry import Entry, begin
from isthmus.server.http.errors import HttpError
from isthmus.server.responses import archive
from isthmus.server.responses.bounds import Bounds
from isthmus.server.responses.chain import Added, Chain, as_turn
from isthmus.server.responses.creating import Creating, Order
from isthmus.server.responses.jobs import Job, Jobs
from isthmus.server.settings import ServerSettings
from isthmus.server.storage.record import Record
from isthmus.units import MIB
from tests.server.conftest import Serving

N_CTX = 256
SAID = [{"id": "msg_x", "role": "user", "content": "Hi."}]


@pytest.fixture(scope="module")
def serving(tiny_q8: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    data = tmp_path_factory.mktemp("attacked")
    serving = Serving(data / "data", "--model", f"tiny={tiny_q8}", "--n-ctx", str(N_CTX))
    yield serving
    assert serving.stop() == 0


def asked(items: Any, **how: Any) -> dict[str, Any]:
    return {"model": "tiny", "input": items, "max_output_tokens": 2, **how}


# ------------------------------------------------------------------ ids


def test_an_id_that_is_given_twice_breaks_no_conversation(serving: Serving) -> None:
    path = f"/v1/conversations/{serving.post('/v1/conversations')['id']}"
    id_ = path.rpartition("/")[2]
    for given in (SAID, SAID, [{"type": "item_reference", "id": "msg_x"}]):
        serving.post("/v1/responses", asked(given, conversation=id_))
    ids = [it["id"] for it in serving.get(f"{path}/items?order=asc")["data"]]
    assert len(ids) == len(set(ids)) == 6
    assert serving.client.delete(f"{path}/items/msg_x").status_code == 200
    assert serving.client.delete(f"{path}/items/msg_x").status_code == 404
    assert len(serving.get(f"{path}/items")["data"]) == 5
    assert serving.client.delete(path).status_code == 200


def test_many_remove_an_item_at_once(serving: Serving) -> None:
    path = f"/v1/conversations/{serving.post('/v1/conversations', {'items': SAID})['id']}"
    statuses: list[int] = []

    def remove() -> None:
        done = httpx.delete(f"{serving.url}{path}/items/msg_x", timeout=60)
        statuses.append(done.status_code)

    threads = [threading.Thread(target=remove) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses.count(200) == 1
    assert set(statuses) <= {200, 404, 409}
    assert serving.get(f"{path}/items")["data"] == []


# ------------------------------------------------------------------ nesting


def test_what_can_be_read_can_be_told(serving: Serving) -> None:
    """Lists in lists that are read, and are too many to be written."""
    places = (
        '"tools": [{"type": "web_search", "x": %s}]',
        '"text": {"format": {"type": "text", "x": %s}}',
        '"background": true, "text": {"format": {"type": "text", "x": %s}}',
    )
    for n, status in ((MAX_DEPTH // 2, 200), *((n, 400) for n in range(930, 1000, 10))):
        nested = "[" * n + "]" * n
        for place in places:
            given = f'{{"model": "tiny", "input": "x", "max_output_tokens": 1, {place % nested}}}'
            done = serving.client.post("/v1/responses", content=given)
            assert done.status_code == status, (n, place, done.text)


def test_depth_is_counted_without_a_call_stack() -> None:
    value: Any = 1
    for n in range(20_000):
        assert n > MAX_DEPTH + 1 or is_deep(value) == (n > MAX_DEPTH)
        value = [value] if n % 2 else {"x": value}
    assert is_deep(value)
    assert not is_deep([[], {}, "text"] * 1000)


# ------------------------------------------------------------------ how much is kept


def test_a_conversation_has_an_end(serving: Serving) -> None:
    path = f"/v1/conversations/{serving.post('/v1/conversations')['id']}"
    text = "x" * 500_000
    items = {"items": [{"role": "user", "content": text}]}
    statuses = [serving.client.post(f"{path}/items", json=items).status_code for _ in range(20)]
    assert statuses == sorted(statuses)
    assert set(statuses) == {200, 400}
    told = serving.client.post(path, json={"metadata": {"a": "b"}})
    assert told.json()["error"]["code"] == "conversation_too_long"
    assert serving.client.delete(path).status_code == 200


@pytest.mark.parametrize("path", ["/v1/conversations", "/v1/conversations/{}/items"])
def test_items_that_fit_into_no_context_are_not_decoded(serving: Serving, path: str) -> None:
    tools = "[" + "{}," * MIB + "{}]"
    given = f'{{"items": [{{"type": "additional_tools", "tools": {tools}}}]}}'
    conversation = serving.post("/v1/conversations")["id"]
    done = serving.client.post(path.format(conversation), content=given)
    assert (done.status_code, done.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_tools_that_are_left_out_are_said_once(serving: Serving) -> None:
    tools = [{"type": f"web_search_{n}"} for n in range(500)]
    assert len(serving.post("/v1/responses", asked("x", tools=tools))["warnings"]) == 1


def test_what_a_request_refers_to_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [{"id": f"msg_{'a' * 20}1i0", "type": "message", "x": "x" * 1000}]
    chain = Chain.of([as_turn(Added(items), 1, 0.0)], "a")
    record: Any = type("_Record", (), {"kind": "conversation", "id": "a"})

    async def looked(_agent: str) -> None:
        """There is one server."""

    shelf: Any = SimpleNamespace(owning=SimpleNamespace(look=looked))
    found = archive.Archive(shelf)

    async def same(_agent: str) -> Any:
        return record, chain, []

    monkeypatch.setattr(found, "_chain", same)
    monkeypatch.setattr(archive, "_REFERRED_NBYTES", 2500)
    wanted = [{"type": "item_reference", "id": f"msg_{it * 20}1i0"} for it in "abc"]
    assert asyncio.run(found.resolved(wanted[:1], ())) == items
    with pytest.raises(HttpError, match="bytes of items are referred to"):
        asyncio.run(found.resolved(wanted, ()))


def test_events_of_jobs_that_have_ended_are_bounded() -> None:
    jobs, all_ = Jobs(), []
    for n in range(12):
        job = Job(None)
        job.made.response = {"id": f"resp_{n}"}  # type: ignore[typeddict-item]
        job.tell({"type": "x", "text": "x" * 10 * MIB})
        job.end()
        jobs.add(job)
        all_.append(job)
    kept = [it for it in all_ if jobs.find(it.id) is not None]
    assert kept == all_[-len(kept) :]
    assert 0 < sum(it.nbytes for it in kept) <= 64 * MIB


def test_bodies_that_wait_in_the_background_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: Any = None
    settings = ServerSettings(bodies_nbytes=100_000)
    ended = asyncio.Event()

    async def work(_self: Creating, _order: Order, job: Job, _entry: Entry) -> None:
        job.tell({"type": "response.created"})
        await ended.wait()
        job.end()

    async def flood() -> None:
        creating = Creating(nothing, nothing, nothing, settings, lambda _: None, lambda _: None)
        begin(Entry("1", "POST", "/v1/responses", nbytes_in=30_000))
        jobs = [await creating.start(nothing) for _ in range(3)]
        with pytest.raises(HttpError, match="try again later"):
            await creating.start(nothing)
        ended.set()
        await asyncio.gather(*(it.task for it in jobs if it.task is not None))
        await creating.start(nothing)
        await creating.jobs.close()

    monkeypatch.setattr(Creating, "_work", work)
    asyncio.run(flood())


def test_a_body_of_many_parts_is_not_decoded() -> None:
    decoder = msgspec.json.Decoder(list[dict[str, int]])
    assert len(decode_json(b"[" + b"{}," * 200_000 + b"{}]", decoder)) == 200_001
    with pytest.raises(HttpError, match="lists and objects"):
        decode_json(b"[" + b"{}," * 300_000 + b"{}]", decoder)


class _Counting(dict[str, Record]):
    """Records that count how often all of them are looked at."""

    n_looks = 0

    def values(self) -> Any:
        self.n_looks += 1
        return super().values()


def test_one_more_response_has_no_other_owner_looked_at() -> None:
    one = Record(
        id="a" * 12, name="", guest="complete", models={}, args={}, limits={}, seed=1, created=0.0
    )
    records = _Counting(
        {str(n): msgspec.structs.replace(one, owner=str(n), kind="response") for n in range(50)}
    )
    shelf: Any = type("_Shelf", (), {"records": records})

    async def work() -> None:
        bounds = Bounds(shelf, ServerSettings(responses_kept_s=MAX_S))
        keeping = asyncio.ensure_future(bounds.keep())
        while records.n_looks < 52:
            await asyncio.sleep(0)
        for n in range(3):
            await asyncio.sleep(0.01)
            assert records.n_looks == 52 + n
            bounds.note("7")
        keeping.cancel()

    asyncio.run(work())


def test_numbers_that_are_nearly_none(serving: Serving) -> None:
    for number in (5e-324, 1e-320, 1e-45, 1e-38):
        more = {"temperature": number, "top_p": number, "min_p": number}
        done = [serving.post("/v1/responses", asked("x", **more)) for _ in range(2)]
        assert done[0]["usage"]["output_tokens"] == 2
        texts = [json.dumps(it["output"][0]["content"]) for it in done]
        assert texts[0] == texts[1]


def test_an_agent_has_few_arguments(serving: Serving) -> None:
    args = json.dumps({"args": {str(n): "x" for n in range(100_000)}})
    done = serving.client.post("/v1/agents", content=args)
    assert done.status_code == 400
