"""Bodies of the Responses API: one table says what becomes of each field, and holds."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.requests import Request

from isthmus.server.http.errors import HttpError, body_of
from isthmus.server.http.support import Support, as_markdown, kind_of_tool
from isthmus.server.responses.fields import FIELDS, TABLES, TOOLS
from isthmus.server.responses.jobs import Job, Jobs
from isthmus.server.responses.requests import CountRequest, ResponseRequest, read

DOCS = Path(__file__).parents[2] / "docs" / "server.md"


def reading(body: bytes, kind: Any = ResponseRequest) -> Any:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    return asyncio.run(read(Request(scope, receive), kind))


def test_the_table_has_all_fields_and_no_others() -> None:
    read_fields = {it.name for it in msgspec.structs.fields(ResponseRequest)}
    assert {name for name, it in FIELDS.items() if it.support is not Support.REFUSED} == read_fields


def test_the_documentation_has_the_table() -> None:
    assert as_markdown(TABLES) in DOCS.read_text()


@pytest.mark.parametrize(
    "name", [name for name, it in FIELDS.items() if it.support is Support.REFUSED]
)
def test_what_is_not_supported_is_refused_by_name(name: str) -> None:
    with pytest.raises(HttpError) as refused:
        reading(msgspec.json.encode({"model": "m", name: {}}))
    assert refused.value.param == name
    assert refused.value.code == "unsupported_parameter"


def test_an_unknown_field_is_refused_by_name() -> None:
    with pytest.raises(HttpError) as refused:
        reading(b'{"model": "m", "temprature": 0}')
    assert (refused.value.param, refused.value.code) == ("temprature", "unknown_parameter")
    with pytest.raises(HttpError):
        reading(b'{"model": "m", "stream": true}', CountRequest)


BAD = {
    "no JSON": b"{",
    "nothing": b"",
    "a list": b"[]",
    "not UTF-8": b'{"model": "m", "input": "\xff"}',
    "brackets": b'{"model": "m", "input": ' + b"[" * 100_000,
    "brackets that end": b'{"model": "m", "tools": ' + b"[" * 9_000 + b"]" * 9_000 + b"}",
    "a lone surrogate": b'{"model": "m", "input": "\\ud800"}',
    "NaN": b'{"model": "m", "temperature": NaN}',
    "infinity": b'{"model": "m", "temperature": 1e999}',
    "a name twice": b'{"model": "m", "store": true, "store": false}',
    "a name twice, deep inside": b'{"model": "m", "input": [{"role": "user", "role": "system"}]}',
    "a number of 64 bits": b'{"model": "m", "max_output_tokens": 18446744073709551616}',
    "a long number": b'{"model": "m", "metadata": {"a": ' + b"9" * 9_999 + b"}}",
    "a negative one": b'{"model": "m", "max_output_tokens": -1}',
    "a seed of 65 bits": b'{"model": "m", "seed": 18446744073709551616}',
    "too hot": b'{"model": "m", "temperature": 3}',
    "too much metadata": msgspec.json.encode(
        {"model": "m", "metadata": {str(n): "" for n in range(17)}}
    ),
    "metadata of numbers": b'{"model": "m", "metadata": {"a": 1}}',
}


@pytest.mark.parametrize("name", BAD)
def test_a_body_that_is_none(name: str) -> None:
    with pytest.raises((HttpError, msgspec.DecodeError)) as refused:
        reading(BAD[name])
    status, told = body_of(refused.value)
    assert status == 400
    assert told["error"]["type"] == "invalid_request_error"
    assert told["error"]["message"]
    assert len(told["error"]["message"]) < 500


def test_a_long_body_is_looked_through_too() -> None:
    long = b'"' + b"x" * 100_000 + b'"'
    assert len(reading(b'{"model": "m", "input": ' + long + b"}").input) == 100_000
    with pytest.raises(HttpError):
        reading(b'{"model": "m", "input": ' + long + b', "user": "a", "user": "b"}')


def test_dated_tools_are_known_by_their_names() -> None:
    assert kind_of_tool(TOOLS, "web_search_2025_08_26") == "web_search"
    assert kind_of_tool(TOOLS, "web_search_preview") == "web_search_preview"
    assert kind_of_tool(TOOLS, "function") == "function"
    assert kind_of_tool(TOOLS, "web_searching") == "web_searching"


# ------------------------------------------------------------------ the background


def numbered(n: int) -> dict[str, Any]:
    return {"type": "x", "sequence_number": n}


def test_whoever_looks_at_a_job_gets_what_was_and_what_comes() -> None:
    async def work() -> None:
        job = Job(None)
        job.tell(numbered(0))
        job.tell(numbered(1))

        async def numbers(after: int | None) -> list[int]:
            told = [it.partition(b"data: ")[2] async for it in job.follow(after)]
            return [json.loads(it)["sequence_number"] for it in told]

        looking = [asyncio.ensure_future(numbers(after)) for after in (None, 0, 5)]
        await asyncio.sleep(0)
        job.tell(numbered(2))
        await asyncio.sleep(0)
        job.tell(numbered(3))
        job.end()
        assert await asyncio.gather(*looking) == [[0, 1, 2, 3], [1, 2, 3], []]
        assert await numbers(2) == [3]

    asyncio.run(work())


def test_a_job_that_never_begins_tells_why() -> None:
    async def work() -> None:
        job, jobs = Job(None), Jobs()

        async def fail() -> None:
            job.fail(HttpError(503, "no room"))
            job.end()

        jobs.run(job, fail())
        with pytest.raises(HttpError):
            await job.begun()
        await jobs.close()

    asyncio.run(work())
