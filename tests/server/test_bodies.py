"""Bodies that no honest client sends: each is a typed error, and the server lives on."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from tests.server.conftest import Serving
from tests.server.raw import exchange, request

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
DEEP = 100_000
ROUTES = [
    *("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/agents"),
    *("/v1/agents/{agent}/messages", "/v1/agents/{agent}/fork"),
]
HOSTILE: dict[str, bytes] = {
    "brackets": b"[" * DEEP,
    "nested": b"[" * DEEP + b"]" * DEEP,
    "braces": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "unknown field, nested": b'{"x":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "long number": b'{"seed":' + b"9" * 5000 + b',"max_tokens":' + b"9" * 5000 + b"}",
    "bare number": b"9" * 5000,
    "long key": b'{"' + b"k" * 5000 + b'":1}',
    "number as key": b'{"' + b"9" * 5000 + b'":1}',
    "great exponent": b'{"temperature":1e999,"previous":1e999,"seed":1e999}',
    "small exponent": b'{"temperature":1e-999,"n":1e-999}',
    "nan": b'{"temperature":NaN,"seed":NaN,"previous":NaN}',
    "infinity": b'{"temperature":Infinity,"input":-Infinity}',
    "latin-1": '{"input":"é","model":"é","name":"é"}'.encode("latin-1"),
    "utf-16": json.dumps({**CHAT, "input": "x"}).encode("utf-16"),
    "utf-8 with a mark": b"\xef\xbb\xbf{}x",
    "half a character": b'{"input":"\xe2\x82"}',
    "overlong": b'{"input":"\xc0\xaf"}',
    "surrogate in bytes": b'{"input":"\xed\xa0\x80"}',
    "zero": b"\x00",
    "zero in a text": b'{"input":"\x00"}',
    "gzip": gzip.compress(json.dumps(CHAT).encode()),
    "empty": b"",
    "blank": b" " * 1000,
    "null": b"null",
    "true": b"true",
    "text": b'"x"',
    "list": b"[]",
    "two": b"{}{}",
    "cut": b'{"model": "tiny", "inp',
    "form": b"model=tiny&input=x",
    "xml": b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>",
}
SURROGATES = ["\\ud800", "\\udc00x", "\\ud800\\ud800", "\\uDFFF\\uD800"]


@pytest.fixture(scope="module")
def agent(tiny_server: Serving) -> str:
    return str(tiny_server.post("/v1/agents", {"args": {"max_tokens": "3"}, "seed": 1})["id"])


def refused(serving: Serving, path: str, body: bytes, *heads: str) -> dict[str, Any]:
    found = exchange(serving, request(path, *heads, method="POST", body=body))
    assert 400 <= found.status < 500, (path, body[:60], found.data[:300])
    return found.error()


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_no_request_is_told_so(tiny_server: Serving, agent: str, what: str) -> None:
    for route in ROUTES:
        body, path = HOSTILE[what], route.replace("{agent}", agent)
        may_be_left_out = route in ("/v1/agents", "/v1/agents/{agent}/fork") and not body
        if not may_be_left_out:
            refused(tiny_server, path, body)
    for path in ("/v1/guests", "/v1/agents/restore"):
        refused(tiny_server, path, HOSTILE[what])
    assert tiny_server.get("/healthz")["status"] == "ok"


@pytest.mark.parametrize("text", SURROGATES)
def test_lone_surrogates(tiny_server: Serving, agent: str, text: str) -> None:
    """In JSON a text may say half a character, which is none."""
    each = {
        "/v1/chat/completions": [
            f'{{"model":"tiny","messages":[{{"role":"user","content":"{text}"}}]}}',
            f'{{"model":"tiny","messages":[{{"role":"{text}","content":"x"}}]}}',
            f'{{"model":"{text}","messages":[{{"role":"user","content":"x"}}]}}',
            f'{{"model":"tiny","stop":"{text}","messages":[{{"role":"user","content":"x"}}]}}',
            f'{{"model":"tiny","grammar":"{text}","messages":[{{"role":"user","content":"x"}}]}}',
        ],
        "/v1/completions": [f'{{"model":"tiny","prompt":"{text}"}}'],
        "/v1/embeddings": [f'{{"model":"tiny","input":"{text}"}}'],
        "/v1/agents": [f'{{"name":"{text}"}}', f'{{"args":{{"{text}":"{text}"}}}}'],
        f"/v1/agents/{agent}/messages": [f'{{"input":"{text}"}}'],
        f"/v1/agents/{agent}/fork": [f'{{"name":"{text}"}}'],
    }
    for path, bodies in each.items():
        for body in bodies:
            refused(tiny_server, path, body.encode())


NUMBERS = [
    *("9" * 5000, "1e999", "-1e999", "1e400", "0." + "0" * 5000 + "1", "-0", "1e-400", "1.5"),
    *("9223372036854775808", "-9223372036854775809", "true", '"1"', "[]", "null"),
]
FIELDS = [
    *("max_tokens", "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "n", "seed"),
    *("logprobs", "top_logprobs", "max_completion_tokens"),
]


def test_numbers_of_all_kinds(tiny_server: Serving, agent: str) -> None:
    seen = set()
    for field in FIELDS:
        for number in NUMBERS:
            for path, said in (("/v1/chat/completions", "[]"), ("/v1/completions", '"x"')):
                name = "prompt" if path == "/v1/completions" else "messages"
                body = f'{{"model":"tiny","{name}":{said},"{field}":{number}}}'.encode()
                found = exchange(tiny_server, request(path, method="POST", body=body))
                assert found.status == 200 or 400 <= found.status < 500, (body[:80], found.data)
                seen.add(found.status)
    assert seen == {200, 400}
    for field in ("deadline_s", "weight", "memory_nbytes", "sessions", "fuel", "output_nbytes"):
        for number in NUMBERS:
            body = f'{{"limits":{{"{field}":{number}}},"args":{{"max_tokens":"1"}}}}'.encode()
            found = exchange(tiny_server, request("/v1/agents", method="POST", body=body))
            assert found.status in (201, 504) or 400 <= found.status < 500, (body[:80], found.data)
    for query in ("at=" + "9" * 5000, "at=-1", "at=1e9", "at=%00", "at=%ff", "at=0&at=1", "at="):
        for what in ("inspect", "diff", "memory", "snapshot"):
            found = exchange(tiny_server, request(f"/v1/agents/{agent}/{what}?{query}"))
            assert found.status == 200 or 400 <= found.status < 500, (query, found.data)


HEADS = [
    "Content-Type: text/html",
    "Content-Type: application/json; charset=utf-16",
    "Content-Encoding: gzip",
    "Content-Encoding: br",
    "Expect: 100-continue",
    "Expect: nonsense",
    "Upgrade: h2c\r\nConnection: Upgrade",
    "Range: bytes=0-",
    "Accept: text/html;q=0",
    "X-Request-ID: \x7f\x80",
    "Content-Type: " + "x" * 10000,
]


@pytest.mark.parametrize("head", HEADS, ids=lambda it: it[:30])
def test_heads_that_say_something_else(tiny_server: Serving, head: str) -> None:
    body = json.dumps({**CHAT, "max_tokens": 1}).encode()
    sent = request("/v1/chat/completions", head, "Connection: close", method="POST", body=body)
    found = exchange(tiny_server, sent)
    data = found.data.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert data.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 4")), found.data[:300]


def test_the_same_key_twice(tiny_server: Serving) -> None:
    body = b'{"model":"none","model":"tiny","prompt":"x","max_tokens":1,"max_tokens":2}'
    found = exchange(tiny_server, request("/v1/completions", method="POST", body=body))
    assert found.status == 400  # it could be read in two ways
    assert json.loads(found.body)["error"]["code"] == "invalid_json"


def test_tools_and_schemas_are_strangers_too(tiny_server: Serving) -> None:
    deep = json.loads("[" * 900 + "]" * 900)
    parameters: list[Any] = [deep, {"$ref": "#"}, {"type": "x" * 9999}, {"enum": []}, {"a": 10**30}]
    parameters += [{"pattern": "(" * 5000}, {"allOf": [{}] * 5000}, {"$ref": "file:///etc/passwd"}]
    for it in parameters:
        tool = {"type": "function", "function": {"name": "f", "parameters": it}}
        told = {**CHAT, "tools": [tool], "tool_choice": "required", "max_tokens": 2}
        schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": it}}
        for body in (told, {**CHAT, "response_format": schema, "max_tokens": 2}):
            sent = request("/v1/chat/completions", method="POST", body=json.dumps(body).encode())
            found = exchange(tiny_server, sent, 60)
            assert found.status == 200 or 400 <= found.status < 500, (str(it)[:60], found.data)
