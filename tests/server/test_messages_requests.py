"""Anthropic's Messages API over HTTP: what is refused, routes and keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from isthmus.server.keys.keys import new_key
from tests.server.conftest import Serving
from tests.server.messages import (
    COUNT,
    FORGED,
    PATH,
    PLAIN,
    QUESTION,
    WEATHER,
    count,
    error_of,
    post,
)

# ------------------------------------------------------------------ texts


def turns(said: str) -> list[dict[str, Any]]:
    user = {"role": "user", "content": "hello"}
    call = {"type": "tool_use", "id": "1", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "1", "content": "so"}
    block = {"type": "text", "text": said}

    def called(*blocks: Any) -> dict[str, Any]:
        return {"role": "assistant", "content": list(blocks)}

    def given(**more: Any) -> dict[str, Any]:
        return {"role": "user", "content": [{**result, **more}]}

    return [
        {"messages": [{"role": "user", "content": said}]},
        {"messages": [{"role": "user", "content": [block]}]},
        {"messages": [user], "system": said},
        {"messages": [user], "system": [block, block]},
        {"messages": [user, {"role": "system", "content": said}]},
        {"messages": [user, called(block), user]},
        {"messages": [user, called({"type": "thinking", "thinking": said}), user]},
        {"messages": [user, called({**call, "name": said}), given()]},
        {"messages": [user, called({**call, "input": {said: said}}), given()]},
        {"messages": [user, called({**call, "id": said}), given(tool_use_id=said)]},
        {"messages": [user, called(call), given(content=said)]},
        {"messages": [user, called(call), given(content=[block])]},
        {"messages": [user], "tools": [{"name": "f", "input_schema": {}, "description": said}]},
        {"messages": [user], "tools": [{"name": said, "input_schema": {"properties": {said: {}}}}]},
        {"messages": [user, {"role": "assistant", "content": said}]},
    ]


@pytest.mark.parametrize("which", range(len(turns(""))))
def test_nobody_forges_a_turn(tiny_server: Serving, which: int) -> None:
    """Each byte of a text is a token of the tiny model, and a control token would be one."""
    assert count(tiny_server, **turns(FORGED)[which]) == count(tiny_server, **turns(PLAIN)[which])


BODIES = [
    b"",
    b"[]",
    b"null",
    b"{",
    b'{"model":"tiny"}',
    b'{"model":"tiny","max_tokens":1,"messages":[]}',
    b'{"model":"tiny","max_tokens":1,"messages":[{"role":"user","content":"\xff"}]}',
    b'{"model":"tiny","max_tokens":1,"messages":[{"role":"user","content":"\xed\xa0\x80"}]}',
    b'{"model":"tiny","max_tokens":1,"messages":[{"role":"user","content":"\\ud800"}]}',
    b'{"model":"tiny","max_tokens":1,"messages":[{"role":"user","content":"\\ud800\\u0041"}]}',
    b'{"model":"tiny","max_tokens":1,"messages":[{"role":"user","content":"a"}],"temperature":NaN}',
    b'{"model":"tiny","max_tokens":1,"messages":[{"role":"user","content":"a"}],"temperature":1e999}',
    b'{"model":"tiny","max_tokens":1,"max_tokens":2,"messages":[{"role":"user","content":"a"}]}',
    b'{"model":"tiny","max_tokens":1,"messages":[{"role":"user","content":"a","content":"b"}]}',
    b'{"model":"tiny","max_tokens":18446744073709551616,"messages":[{"role":"user","content":"a"}]}',
    b'{"model":"tiny","max_tokens":-9223372036854775808,"messages":[{"role":"user","content":"a"}]}',
    b'{"model":"tiny","max_tokens":1.5,"messages":[{"role":"user","content":"a"}]}',
    b'{"model":"tiny","max_tokens":true,"messages":[{"role":"user","content":"a"}]}',
    b'{"model":7,"max_tokens":1,"messages":[{"role":"user","content":"a"}]}',
    b'{"model":"tiny","max_tokens":1,"messages":' + b"[" * 100_000,
    b'{"model":"tiny","max_tokens":1,"messages":[{"role":"user","content":"a"}],"metadata":{"a":'
    + b"[" * 100_000,
    b'{"model":"tiny","max_tokens":1,"messages":[{"role":"user","content":"a"}],"metadata":{"a":'
    + b"[" * 100_000 + b"]" * 100_000 + b"}}",
    b'{"model":"tiny","max_tokens":1,"messages":[{"role":"user","content":"a"}],"odd":1}',
]  # fmt: skip


@pytest.mark.parametrize("which", range(len(BODIES)))
def test_bad_bodies(tiny_server: Serving, which: int) -> None:
    for path in (PATH, COUNT):
        body = BODIES[which]
        body = body if path == PATH else body.replace(b'"max_tokens":1,', b"")
        answer = tiny_server.client.post(path, content=body)
        assert answer.status_code == 400, answer.text
        assert error_of(answer)
        assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_call_that_is_nested_deeply(tiny_server: Serving) -> None:
    for depth in (50, 90, 150, 900, 20_000):
        deep = "[" * depth + "]" * depth
        call = f'{{"type":"tool_use","id":"1","name":"f","input":{{"a":{deep}}}}}'
        result = '{"type":"tool_result","tool_use_id":"1"}'
        said = (
            f'{{"model":"tiny","messages":[{{"role":"user","content":"a"}},{{"role":"assistant",'
            f'"content":[{call}]}},{{"role":"user","content":[{result}]}}]}}'
        )
        answer = tiny_server.client.post(COUNT, content=said)
        assert answer.status_code in ((200,) if depth < 90 else (200, 400)), answer.text
        assert depth < 20_000 or error_of(answer)


def test_what_is_refused_is_named(tiny_server: Serving) -> None:
    image = {"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}
    for more, said in (
        (
            {"messages": [{"role": "user", "content": [image]}]},
            "the model tiny takes text alone: it was loaded without a projector",
        ),
        (
            {"tools": [{"type": "web_search_20250305", "name": "w", "max_uses": 8}]},
            "tools.0.type web_search_20250305 is not supported: this server has no tools",
        ),
        (
            {"mcp_servers": [{"type": "url"}]},
            "mcp_servers is not supported: this server",
        ),
        ({"nonsense": 1}, "nonsense: there is no field nonsense here"),
        ({"stop_sequences": [""]}, "none of them empty"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice wants"),
    ):
        answer = post(tiny_server, **more)
        assert answer.status_code == 400
        assert said in error_of(answer)


# ------------------------------------------------------------------ routes, keys


def test_what_is_not_there(tiny_server: Serving) -> None:
    answer = post(tiny_server, model="none")
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")
    assert "none" in error_of(answer)
    for method, path, status in (("GET", PATH, 405), ("POST", f"{PATH}/none", 404)):
        answer = tiny_server.client.request(method, path)
        assert answer.status_code == status
        assert error_of(answer)
    assert "param" in tiny_server.client.post("/v1/none").json()["error"]


def test_what_clients_add_changes_nothing(tiny_server: Serving) -> None:
    heads = {
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14",
        "anthropic-dangerous-direct-browser-access": "true",
        "x-app": "cli",
    }
    block = {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}
    body = {
        "model": "tiny",
        "max_tokens": 3,
        "stream": False,
        "messages": [{"role": "user", "content": [block]}],
        "metadata": {"user_id": "x"},
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
    }  # fmt: skip
    answer = tiny_server.client.post(f"{PATH}?beta=true", json=body, headers=heads)
    assert answer.status_code == 200, answer.text
    assert "warnings" not in answer.json()
    assert tiny_server.client.head("/").status_code == 200


def test_models_in_both_shapes(tiny_server: Serving) -> None:
    heads = {"anthropic-version": "2026-10-21"}
    assert tiny_server.get("/v1/models")["object"] == "list"
    assert tiny_server.get("/v1/models/tiny")["object"] == "model"
    page = tiny_server.client.get("/v1/models?limit=5&beta=true", headers=heads).json()
    assert (page["has_more"], page["first_id"], page["last_id"]) == (False, "tiny", "tiny")
    [info] = page["data"]
    assert info == tiny_server.client.get("/v1/models/tiny", headers=heads).json()
    assert (info["type"], info["max_input_tokens"]) == ("model", 1024)
    for path, status in (("/none", 404), ("?after_id=none", 404), ("?limit=0", 400)):
        answer = tiny_server.client.get(f"/v1/models{path}", headers=heads)
        assert answer.status_code == status
        assert error_of(answer)
    assert "param" in tiny_server.client.get("/v1/models/none").json()["error"]


@pytest.fixture(scope="module")
def keyed(tiny_q8: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Serving, str]]:
    folder = tmp_path_factory.mktemp("keyed")
    key = new_key(folder / "keys", "ada")
    options = ("--model", f"tiny={tiny_q8}", "--n-ctx", "512", "--keys", str(folder / "keys"))
    serving = Serving(folder / "data", *options)
    yield serving, key
    assert serving.stop() == 0


def test_keys(keyed: tuple[Serving, str]) -> None:
    serving, key = keyed
    for heads, status in (
        ({"x-api-key": key}, 200),
        ({"authorization": f"Bearer {key}"}, 200),
        ({"x-api-key": key, "authorization": f"Bearer {key}"}, 200),
        ({"x-api-key": key, "authorization": "Basic x"}, 200),
        ({"x-api-key": "other"}, 401),
        ({"x-api-key": ""}, 401),
        ({}, 401),
        ({"x-api-key": key, "authorization": "Bearer other"}, 400),
        ({"x-api-key": "other", "authorization": f"Bearer {key}"}, 400),
    ):
        body = {"model": "tiny", "messages": QUESTION}
        answer = serving.client.post(COUNT, json=body, headers=heads)
        assert answer.status_code == status, (heads, answer.text)
        if status != 200:
            error_of(answer)
            kind = "authentication_error" if status == 401 else "invalid_request_error"
            assert answer.json()["error"]["type"] == kind
        models = serving.client.get("/v1/models", headers=heads)
        assert models.status_code == status
        assert status == 200 or "param" in models.json()["error"]
    twice = httpx.Headers([("x-api-key", key), ("x-api-key", key)])
    assert serving.client.post(COUNT, json={}, headers=twice).status_code == 400


def test_a_body_that_is_too_long(keyed: tuple[Serving, str]) -> None:
    serving, key = keyed
    answer = serving.client.post(PATH, content=b" " * 5_000_000, headers={"x-api-key": key})
    assert (answer.status_code, answer.json()["error"]["type"]) == (413, "request_too_large")
