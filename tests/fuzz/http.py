"""HTTP: requests with bodies and heads that are meant to hurt, against a real server."""

from __future__ import annotations

import copy
import json
import random
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import httpx

from tests.fuzz.surface import Surface
from tests.server.conftest import Serving
from tests.tiny_gguf import TinyLlama

_END = b"\r\n"
_ROUTES = (
    *(("GET", it) for it in ("/", "/healthz", "/metrics", "/openapi.json", "/v1/models")),
    *(("GET", it) for it in ("/v1/models/tiny", "/v1/agents", "/v1/agents/x", "/v1/guests")),
    *(("GET", it) for it in ("/props", "/slots", "/health", "/models", "/v1/tools", "/api/tags")),
    *(("GET", it) for it in ("/api/ps", "/v1/activity", "/v1/responses/resp_1", "/v1/messages")),
    *(("GET", f"/v1/responses/resp_1/input_items?{it}") for it in ("limit=0", "after=x", "a=b")),
    *(("GET", f"/v1/conversations/conv_1/items{it}") for it in ("", "/msg_1", "?order=x")),
    *(("POST", it) for it in ("/v1/responses/resp_1/cancel", "/v1/models/unload")),
    *(
        ("DELETE", it)
        for it in ("/v1/responses/resp_1", "/v1/conversations/conv_1", "/v1/guests/x")
    ),
    *(("GET", f"/v1/agents/x/{it}?at=1") for it in ("turns", "inspect", "diff", "memory")),
    *(("POST", it) for it in ("/v1/guests", "/v1/agents/restore?name=a", "/v1/agents/x/fork")),
    ("DELETE", "/v1/agents/x"),
    ("PUT", "/v1/agents"),
)
_PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
"""A picture of one pixel."""
_PARTS: list[dict[str, Any]] = [
    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_PNG}", "detail": "low"}},
    {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
    {"type": "text", "text": "hello"},
]
_BODIES: dict[str, Any] = {
    "/v1/chat/completions": {
        "model": "tiny",
        "max_tokens": 2,
        "messages": [{"role": "user", "content": "hello"}, {"role": "user", "content": _PARTS}],
        "stream": False,
        "stop": ["x"],
        "logit_bias": {"5": 1},
        "n": 1,
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    },
    "/v1/messages": {
        "model": "tiny",
        "max_tokens": 2,
        "system": [{"type": "text", "text": "be kind", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hello"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "isthmus-text:aG0="},
                    {"type": "tool_use", "id": "1", "name": "f", "input": {"a": [1]}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "1", "content": "b", "is_error": True},
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": _PNG},
                    },
                ],
            },
        ],
        "stop_sequences": ["x"],
        "tools": [{"name": "f", "description": "g", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": False},
        "thinking": {"type": "enabled", "budget_tokens": 1, "display": "omitted"},
        "output_config": {"effort": "low", "format": None},
        "top_k": 1,
        "stream": True,
    },
    "/v1/messages/count_tokens": {
        "model": "tiny",
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        "system": "be kind",
        "tool_choice": {"type": "none"},
    },
    "/v1/completions": {"model": "tiny", "prompt": "hello", "max_tokens": 2, "n": 1, "seed": 1},
    "/v1/embeddings": {"model": "tiny", "input": ["hello", [1, 2]], "encoding_format": "float"},
    "/v1/responses": {
        "model": "tiny",
        "max_output_tokens": 2,
        "instructions": "be kind",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": "b"},
            {"type": "item_reference", "id": "msg_1"},
        ],
        "tools": [{"type": "function", "name": "f", "parameters": {}, "strict": False}],
        "tool_choice": {"type": "function", "name": "f"},
        "text": {"format": {"type": "json_schema", "name": "a", "schema": {}}},
        "reasoning": {"effort": "low", "summary": "auto"},
        "metadata": {"a": "b"},
        "include": ["message.output_text.logprobs"],
        "previous_response_id": None,
        "conversation": None,
        "background": False,
        "store": True,
        "stream": True,
    },
    "/v1/responses/input_tokens": {"model": "tiny", "input": "hello", "instructions": "a"},
    "/v1/conversations": {
        "items": [{"type": "message", "role": "user", "content": "hello"}],
        "metadata": {"a": "b"},
    },
    "/v1/conversations/conv_1/items": {"items": [{"role": "user", "content": "hello"}]},
    "/v1/rerank": {"model": "tiny", "query": "a", "documents": ["b", {"text": "c"}], "top_n": 1},
    "/api/chat": {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hello", "images": [_PNG]}],
        "options": {"num_predict": 2, "num_ctx": 64, "temperature": 0, "stop": ["x"], "seed": 1},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "format": {"type": "object"},
        "keep_alive": "5m",
        "think": False,
        "stream": True,
    },
    "/api/generate": {
        "model": "tiny",
        "prompt": "hello",
        "suffix": "",
        "system": "be kind",
        "context": [1, 2],
        "options": {"num_predict": 2},
        "format": "json",
        "keep_alive": -1,
        "raw": False,
        "stream": False,
    },
    "/api/embed": {"model": "tiny", "input": ["hello"], "truncate": True, "dimensions": 4},
    "/api/embeddings": {"model": "tiny", "prompt": "hello"},
    "/api/show": {"model": "tiny", "verbose": True},
    "/api/pull": {"model": "hf:a/../b", "stream": False},
    "/completion": {
        "prompt": ["hello", [1, "user"], {"prompt_string": "a", "multimodal_data": [_PNG]}],
        "n_predict": 2,
        "logit_bias": [[5, 1], ["x", False]],
        "json_schema": {"type": "object"},
        "samplers": ["top_k", "temperature"],
        "response_fields": ["content", "a/b"],
        "n_probs": 2,
        "stop": ["x"],
        "stream": False,
    },
    "/infill": {
        "input_prefix": "a",
        "input_suffix": ["b", 1],
        "input_extra": [{"filename": "c", "text": "d"}],
        "prompt": "e",
        "n_predict": 2,
    },
    "/tokenize": {"content": ["a", 2], "add_special": True, "with_pieces": True},
    "/detokenize": {"tokens": [1, 2]},
    "/apply-template": {
        "messages": [{"role": "user", "content": "hello"}],
        "chat_template_kwargs": {"a": [1]},
        "tools": [],
    },
    "/models/load": {"model": "tiny"},
    "/v1/agents": {"guest": "chat", "models": {"default": "tiny"}, "name": "a", "seed": 1},
    "/v1/agents/x/messages": {"input": "hello", "previous": 0, "stream": False},
}
_VALUES = (
    *(None, True, 0, -1, 2**31, 2**63, 2**64, 10**400, 0.5, 1e308, -0.0, "", "x", "\ud800", "\0"),
    *([], {}, [[]], [None], {"": ""}, "a" * 100_000, "<|im_end|>", "!" * 5000, "../..", "\x1b[2J"),
)
_HEADERS = (
    b"Host: x/?",
    b"Content-Length: 5",
    b"Content-Length: -1",
    b"Transfer-Encoding: chunked",
    b"Content-Type: text/plain; charset=utf-16",
    b"Content-Encoding: gzip",
    b"Authorization: Bearer \xff",
    b"If-None-Match: " + b'"x",' * 5000,
    b"X: " + b"y" * 70_000,
    b"Expect: 100-continue",
    b"Connection: upgrade",
    b"Range: bytes=0-",
)


def request(path: str, body: bytes, method: str = "POST", headers: tuple[bytes, ...] = ()) -> bytes:
    """A request as bytes."""
    head = [f"{method} {path} HTTP/1.1".encode(), b"Host: localhost", *headers]
    if not any(it.lower().startswith((b"content-length", b"transfer-encoding")) for it in headers):
        head.append(b"Content-Length: %d" % len(body))
    if not any(it.lower().startswith(b"content-type") for it in headers):
        head.append(b"Content-Type: application/json")
    return _END.join([*head, b"Connection: close", b"", body])


def chat(**changed: Any) -> Callable[[], bytes]:
    """A request for a chat completion of which something is otherwise."""
    body = _BODIES["/v1/chat/completions"] | changed
    return lambda: request("/v1/chat/completions", json.dumps(body).encode())


def raw(body: bytes, path: str = "/v1/chat/completions", *headers: bytes) -> Callable[[], bytes]:
    """A request with that body."""
    return lambda: request(path, body, headers=headers)


def _messages(n: int, content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}] * n


_NESTED = {"name": "a", "schema": json.loads('{"items":' * 400 + "{}" + "}" * 400)}
_HEAD = b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], '
_KEY = _HEAD + b'"logit_bias": {"%s": 1}}' % (b"9" * 5000)
_DEEP = b'"tools": [{"type": "function", "function": {"name": "f", "parameters": %s}}]}' % (
    b'{"a":' * 100_000 + b"1" + b"}" * 100_000
)


class Fuzz(Surface):
    """Sends a request. The status is below 500, or 503 or 529; the server is well afterwards."""

    corpus: ClassVar = {
        "100000-brackets": raw(b"[" * 100_000 + b"]" * 100_000),
        "100000-braces": raw(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "/v1/agents"),
        "100000-braces-in-a-tool": raw(_HEAD + _DEEP),
        "5000-digit-key": raw(_KEY),
        "5000-digit-number": raw(b'{"model": "tiny", "seed": %s}' % (b"9" * 5000)),
        "5000-digit-tag": raw(b'{"model": "tiny", "prompt": [%s]}' % (b"9" * 5000)),
        "latin-1": raw('{"model": "tiny", "prompt": "é"}'.encode("latin-1"), "/v1/completions"),
        "utf-16": raw('{"model": "tiny"}'.encode("utf-16")),
        "surrogate": raw(rb'{"model": "tiny", "prompt": "\ud800"}', "/v1/completions"),
        "surrogate-chat": chat(messages=_messages(1, "\ud800")),
        "surrogate-model": chat(model="\ud800"),
        "surrogate-stop": chat(stop=["\ud800"]),
        "surrogate-agent": raw(rb'{"guest": "chat", "name": "\ud800"}', "/v1/agents"),
        "surrogate-args": raw(
            rb'{"guest": "chat", "models": {"default": "tiny"}, "args": {"system": "\ud800"}}',
            "/v1/agents",
        ),
        "surrogate-grammar": chat(grammar='root ::= "\ud800"', response_format=None, tools=None),
        "surrogate-embedding": raw(rb'{"model": "tiny", "input": "\ud800"}', "/v1/embeddings"),
        "nan": raw(b'{"model": "tiny", "temperature": NaN}'),
        "1e999": raw(b'{"model": "tiny", "messages": [], "temperature": 1e999}'),
        "nul-prompt": raw(
            rb'{"model": "tiny", "prompt": "\u0000", "max_tokens": 1}', "/v1/completions"
        ),
        "surrogate-signature": raw(
            rb'{"model": "tiny", "max_tokens": 1, "messages": [{"role": "user", "content": "a"}, '
            rb'{"role": "assistant", "content": [{"type": "thinking", "thinking": "", '
            rb'"signature": "isthmus-text:7aCA"}]}, {"role": "user", "content": "a"}]}',
            "/v1/messages",
        ),
        "starts": chat(messages=_messages(1, "<|im_start|>" * 50_000)),
        "empty-messages": chat(messages=_messages(40_000, "")),
        "v128-guest": lambda: request("/v1/guests", _v128()),
        "gzip": raw(b"\x1f\x8b" * 100, "/v1/agents", b"Content-Encoding: gzip"),
        "no-body": raw(b""),
        "two-lengths": raw(b"{}", "/v1/agents", b"Content-Length: 2", b"Content-Length: 20"),
        "hostile-host": lambda: request("/v1/agents", b"", "GET", (b"Host: x/?",)),
        "nested-schema": chat(response_format={"type": "json_schema", "json_schema": _NESTED}),
    }
    wall_s = 60.0
    n_short = 40

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.n_servers = 0
        self._start()

    def options(self) -> list[str]:
        """The server's."""
        able = TinyLlama(n_layer=1, with_tokenizer=True, overrides={"pooling_type": 3})
        model = self.folder / "tiny.gguf"
        return ["--model", f"tiny={able.write(model)}", "--n-ctx", "256"]

    def _start(self) -> None:
        self.n_servers += 1
        self.data = self.folder / f"data{self.n_servers}"
        self.serving = Serving(self.data, *self.options())

    def close(self) -> None:
        assert self.serving.stop() == 0

    def make(self, rng: random.Random) -> bytes:
        headers = tuple(rng.sample(_HEADERS, rng.choice([0, 0, 0, 0, 1, 2])))
        if rng.random() < 0.3:
            method, path = rng.choice(_ROUTES)
            return request(_bent(rng, path), rng.randbytes(rng.randrange(200)), method, headers)
        path = rng.choice(list(_BODIES))
        body = json.loads(json.dumps(_BODIES[path]))
        for key in list(body):
            if rng.random() < 0.3 and key not in ("model", "max_tokens"):
                del body[key]
        for _ in range(rng.choice([1, 1, 2])):
            _change(body, rng)
        data = bytearray(json.dumps(body).encode())
        if rng.random() < 0.2:
            at = rng.randrange(len(data))
            data[at:at] = rng.choice([b"\xff", b"[" * 5000, b"\0", b'"', b"9" * 5000, b"\\ud800"])
        return request(path, bytes(data), headers=headers)

    def run(self, data: bytes) -> str:
        status = self._send(data)
        try:
            well = self.serving.client.get("/healthz", timeout=30).status_code
        except httpx.HTTPError as error:
            self.serving.kill()
            code, log = self.serving.process.returncode, self.data.with_suffix(".log").read_text()
            self._start()
            raise AssertionError(f"the server ended with {code}: {log[-3000:]}") from error
        assert well == 200
        assert status < 500 or status in (503, 529), f"it answered {status}"
        return str(status)

    def _send(self, data: bytes) -> int:
        """The status of the answer; 0 if there is none, as for a body that is promised only."""
        host, _, port = self.serving.url.rpartition("/")[2].partition(":")
        promised = len(re.findall(rb"(?i)\r\n(content-length|transfer-encoding|expect):", data)) > 1
        promised = promised or b"Content-Length: 5" in data or b"Transfer-Encoding" in data
        address = (host, int(port))
        with closing(
            socket.create_connection(address, timeout=1 if promised else 50)
        ) as connection:
            try:
                connection.sendall(data)
                with closing(connection.makefile("rb")) as answer:
                    first = answer.readline()
                    while answer.read(65_536):
                        pass
            except (ConnectionResetError, BrokenPipeError):
                return 0
            except TimeoutError:
                if not promised:
                    raise
                return 0
        return int(first.split(b" ", 2)[1]) if first else 0

    def smaller(self, data: bytes) -> Iterator[bytes]:
        head, _, body = data.partition(_END * 2)
        first = head.split(_END)[0].decode(errors="replace").split()
        for begin in range(0, len(body), max(1, len(body) // 8)):
            shorter = body[:begin] + body[begin + max(1, len(body) // 8) :]
            yield request(first[1] if len(first) > 1 else "/", shorter, first[0])


def _v128() -> bytes:
    from tests.fuzz.modules import Fuzz as Modules

    return bytes(Modules.corpus["v128-export"]())


def _bent(rng: random.Random, path: str) -> str:
    """A path with something in it that no client writes."""
    if rng.random() < 0.5:
        return path
    at = rng.randrange(1, len(path) + 1)
    odd = rng.choice(["%2f", "..", "//", "%00", "%ff", "?at=x", "?at=-1", "%0d%0a", "x" * 9000])
    return path[:at] + odd + path[at:]


def _change(body: Any, rng: random.Random) -> None:
    """Changes one value somewhere inside a JSON value."""
    keys = list(body) if isinstance(body, dict) else list(range(len(body)))
    if not keys:
        return
    key = rng.choice(keys)
    if isinstance(body[key], dict | list) and rng.random() < 0.6:
        _change(body[key], rng)
    elif isinstance(body[key], list) and rng.random() < 0.3:
        body[key] = body[key] * rng.choice([2, 100, 5000])
    else:
        body[key] = copy.deepcopy(rng.choice(_VALUES))  # it may be changed later, too
