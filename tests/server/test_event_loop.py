"""What the event loop does for a request does not grow with the request: threads do the rest.

The loop's own thread is traced: each line of Python that it runs is counted, and so is what it has
read or written as JSON. A body thirty times as large must add nothing to either.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import msgspec
import pytest
from starlette.testclient import TestClient

from isthmus import Runtime
from isthmus.server.app import create_app
from isthmus.server.http import endpoint, strict
from isthmus.server.models.catalog import Catalog, Source
from isthmus.server.models.models import Models
from isthmus.server.settings import ServerSettings
from tests.tiny_gguf import TinyLlama, TinyModel

SMALL, LARGE = 2_100, 30_000
"""Parts of a body."""
MAX_LINES = 3_000
"""Lines that one request may add: the loop also waits, more or less often."""
MAX_NBYTES = 65_536
"""Bytes of JSON that the loop reads or writes at a time."""


class Watch:
    """Counts what one thread does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.thread = 0
        self.n_lines = 0
        self.nbytes = 0
        """Of the longest JSON."""
        for module, name in ((json, "dumps"), (json, "loads"), (endpoint, "_encode")):
            self._measure(monkeypatch, module, name)
        for module in (endpoint, strict):
            self._measure(monkeypatch, module, "decode_json")

    def _measure(self, monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(module, name)

        def measured(*given: Any, **more: Any) -> Any:
            found = real(*given, **more)
            if threading.get_ident() == self.thread:
                sizes = [len(it) for it in (*given, found) if isinstance(it, bytes | str)]
                self.nbytes = max([self.nbytes, *sizes])
            return found

        monkeypatch.setattr(module, name, measured)

    def begin(self) -> None:
        """From now on, the thread that calls this is watched."""
        self.thread, self.n_lines, self.nbytes = threading.get_ident(), 0, 0
        sys.settrace(self._trace)
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            frame.f_trace = self._trace
            frame = frame.f_back

    def end(self) -> None:
        sys.settrace(None)

    def _trace(self, _frame: FrameType, event: str, _argument: Any) -> Any:
        self.n_lines += event == "line"
        return self._trace


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("loop")
    text = TinyLlama(with_tokenizer=True, n_ctx=40_960).write(folder / "tiny.gguf")
    bert = TinyModel("bert", with_tokenizer=True).write(folder / "bert.gguf")
    sources = [Source(it, {it.stem: ()}, at_start=True) for it in (text, bert)]
    settings = ServerSettings(data=folder / "data", n_ctx=40_960, slots=2)
    with Runtime(device="null", threads=1) as runtime:
        models = Models(runtime, Catalog(sources), settings)
        models.load_at_start()
        with TestClient(create_app(models, settings), "http://localhost") as client:
            yield client


def schema(n: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"key{i}": {"type": "string"} for i in range(n)}}


def tool(n: int) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": schema(n)}}


HELLO = [{"role": "user", "content": "hi"}]
CHAT = {"model": "tiny", "messages": HELLO, "max_tokens": 1}
BODIES: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "completions, schema": (
        "/v1/completions",
        lambda n: {"model": "tiny", "prompt": "a", "max_tokens": 1, "guided_json": schema(n)},
    ),
    "completions, ids": (
        "/v1/completions",
        lambda n: {"model": "tiny", "prompt": [100] * n, "max_tokens": 1},
    ),
    "completions, echo": (
        "/v1/completions",
        lambda n: {"model": "tiny", "prompt": "a" * n, "max_tokens": 1, "echo": True},
    ),
    "completions, unknown": ("/v1/completions", lambda n: {"model": "tiny", "x": [100] * n}),
    "completions, mistyped": ("/v1/completions", lambda n: {"model": [100] * n, "prompt": "a"}),
    "chat, schema": (
        "/v1/chat/completions",
        lambda n: {
            **CHAT,
            "response_format": {"type": "json_schema", "json_schema": {"schema": schema(n)}},
        },
    ),
    "chat, tools": ("/v1/chat/completions", lambda n: {**CHAT, "tools": [tool(n)]}),
    "chat, messages": ("/v1/chat/completions", lambda n: {"model": "tiny", "messages": HELLO * n}),
    "responses, schema": (
        "/v1/responses",
        lambda n: {
            "model": "tiny",
            "input": "a",
            "text": {"format": {"type": "json_schema", "name": "x", "schema": schema(n)}},
        },
    ),
    "responses, references": (
        "/v1/responses",
        lambda n: {"model": "tiny", "input": [{"id": f"msg_{i}"} for i in range(n)]},
    ),
    "messages, tools": (
        "/v1/messages",
        lambda n: {**CHAT, "tools": [{"name": "f", "input_schema": schema(n)}]},
    ),
    "messages, count": (
        "/v1/messages/count_tokens",
        lambda n: {"model": "tiny", "messages": HELLO * n},
    ),
    "ollama, format": (
        "/api/chat",
        lambda n: {"model": "tiny", "messages": HELLO, "format": schema(n)},
    ),
    "ollama, generate": (
        "/api/generate",
        lambda n: {"model": "tiny", "prompt": "a", "format": schema(n)},
    ),
    "ollama, embed": ("/api/embed", lambda n: {"model": "bert", "input": ["a"] * n}),
    "llamacpp, schema": (
        "/completion",
        lambda n: {"model": "tiny", "prompt": "a", "json_schema": schema(n)},
    ),
    "llamacpp, ids": (
        "/completion",
        lambda n: {"model": "tiny", "prompt": [100] * n, "n_predict": 1},
    ),
    "tokenize": ("/tokenize", lambda n: {"model": "tiny", "content": [100] * n}),
    "detokenize": ("/detokenize", lambda n: {"model": "tiny", "tokens": [100] * n}),
    "apply-template": (
        "/apply-template",
        lambda n: {"model": "tiny", "messages": [{"role": "user", "content": "a" * n}]},
    ),
    "rerank": ("/v1/rerank", lambda n: {"model": "bert", "query": "a", "documents": ["a"] * n}),
    "embeddings": ("/v1/embeddings", lambda n: {"model": "bert", "input": ["a"] * n}),
    "agents": ("/v1/agents", lambda n: {"args": {f"key{i}": "x" for i in range(n)}}),
    "models": ("/v1/models/load", lambda n: {"model": "tiny", "x": [{}] * n}),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_longer_body_takes_the_event_loop_no_longer(
    client: TestClient, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, body = BODIES[name]
    watch, lines = Watch(monkeypatch), []
    for n in (SMALL, SMALL, LARGE):  # the first request also makes what later ones find
        content = msgspec.json.encode(body(n))
        assert client.portal is not None
        client.portal.call(watch.begin)
        try:
            answer = client.post(path, content=content)
        finally:
            client.portal.call(watch.end)
        assert answer.status_code in (200, 400, 404), answer.text
        assert watch.nbytes <= MAX_NBYTES
        lines.append(watch.n_lines)
    assert lines[2] - lines[1] < MAX_LINES, lines
