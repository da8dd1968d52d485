"""The tables of fields of all routes, against the types, OpenAI's package and the docs; and
each parameter at, beyond and far beyond its bounds, null, of another type, and twice."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import msgspec
import pytest
from msgspec import inspect
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionContentPartParam,
    ChatCompletionContentPartRefusalParam,
    ChatCompletionDeveloperMessageParam,
    ChatCompletionFunctionMessageParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionToolChoiceOptionParam,
    ChatCompletionToolMessageParam,
    ChatCompletionToolUnionParam,
    ChatCompletionUserMessageParam,
)
from openai.types.chat import completion_create_params as chat_create_params
from starlette.requests import Request

from isthmus.server.anthropic import fields as anthropic
from isthmus.server.anthropic import requests as anthropic_requests
from isthmus.server.http.endpoint import written
from isthmus.server.http.errors import HttpError
from isthmus.server.http.strict import Tables, decode_strictly, read_wanted
from isthmus.server.http.support import Support, Table, as_markdown
from isthmus.server.llamacpp import fields as llamacpp
from isthmus.server.llamacpp import requests as llamacpp_requests
from isthmus.server.ollama import fields as ollama
from isthmus.server.ollama import requests as ollama_requests
from isthmus.server.openai import fields, requests
from isthmus.server.responses import fields as responses
from isthmus.server.responses import requests as responses_requests
from tests.server.conftest import Serving
from tests.tiny_gguf import TinyLlama

DOCS = Path(__file__).parents[2] / "docs" / "server.md"
HELLO = [{"role": "user", "content": "hi"}]
MESSAGES = (
    ChatCompletionAssistantMessageParam,
    ChatCompletionDeveloperMessageParam,
    ChatCompletionFunctionMessageParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionToolMessageParam,
    ChatCompletionUserMessageParam,
)


class Route(NamedTuple):
    path: str
    takes: type[msgspec.Struct]
    tables: Tables
    plain: Mapping[str, Any]
    """What must be there, and what keeps answers short."""
    inside: str = ""
    """The field whose parts are asked for."""

    def body(self, **more: Any) -> dict[str, Any]:
        if not self.inside:
            return {**self.plain, **more}
        return {**self.plain, self.inside: {**self.plain.get(self.inside, {}), **more}}

    def place(self, name: str) -> str:
        return f"{self.inside}.{name}" if self.inside else name

    @property
    def rows(self) -> Table:
        return self.tables[self.inside]


_SHORT = {"num_predict": 1}
ROUTES = {
    "chat": Route(
        "/v1/chat/completions",
        requests.ChatRequest,
        fields.CHAT_TABLES,
        {"model": "tiny", "messages": HELLO, "max_tokens": 1},
    ),
    "completions": Route(
        "/v1/completions",
        requests.CompletionRequest,
        fields.COMPLETION_TABLES,
        {"model": "tiny", "prompt": "hi", "max_tokens": 1},
    ),
    "embeddings": Route(
        "/v1/embeddings",
        requests.EmbeddingRequest,
        fields.EMBEDDING_TABLES,
        {"model": "tiny", "input": "hi"},
    ),
    "ollama chat": Route(
        "/api/chat",
        ollama_requests.ChatRequest,
        ollama.CHAT_TABLES,
        {"model": "tiny", "messages": HELLO, "options": _SHORT},
    ),
    "ollama generate": Route(
        "/api/generate",
        ollama_requests.GenerateRequest,
        ollama.GENERATE_TABLES,
        {"model": "tiny", "prompt": "hi", "options": _SHORT},
    ),
    "ollama options": Route(
        "/api/chat",
        ollama_requests.Options,
        ollama.CHAT_TABLES,
        {"model": "tiny", "messages": HELLO, "options": _SHORT},
        "options",
    ),
    "ollama show": Route(
        "/api/show", ollama_requests.ShowRequest, ollama.SHOW_TABLES, {"model": "tiny"}
    ),
    "messages": Route(
        "/v1/messages",
        anthropic_requests.MessagesRequest,
        anthropic.MESSAGE_TABLES,
        {"model": "tiny", "messages": HELLO, "max_tokens": 1},
    ),
    "llamacpp completion": Route(
        "/completion",
        llamacpp_requests.CompletionRequest,
        {"": llamacpp.COMPLETION},
        {"model": "tiny", "prompt": "hi", "n_predict": 1},
    ),
    "tokenize": Route(
        "/tokenize",
        llamacpp_requests.TokenizeRequest,
        {"": llamacpp.TOKENIZE},
        {"model": "tiny", "content": "hi"},
    ),
    "apply-template": Route(
        "/apply-template",
        llamacpp_requests.TemplateRequest,
        llamacpp.TEMPLATE_TABLES,
        {"model": "tiny", "messages": HELLO},
    ),
    "detokenize": Route(
        "/detokenize",
        llamacpp_requests.DetokenizeRequest,
        {"": llamacpp.DETOKENIZE},
        {"model": "tiny", "tokens": [70]},
    ),
    "responses": Route(
        "/v1/responses",
        responses_requests.ResponseRequest,
        {"": responses.FIELDS},
        {"model": "tiny", "input": "hi", "max_output_tokens": 1, "store": False},
    ),
    "rerank": Route(
        "/v1/rerank",
        llamacpp_requests.RerankRequest,
        {"": llamacpp.RERANK},
        {"model": "tiny", "query": "hi", "documents": ["hi"]},
    ),
}
APART = {
    "repetition_penalty",
    "tool_choice",
    "max_completion_tokens",
    "num_predict",
    "dimensions",
    "background",
}
"""What cannot be had beside others, makes answers long, or may only say what the model has."""
EACH_ROUTE = pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)


def names(rows: Table, *supports: Support) -> set[str]:
    return {name for name, row in rows.items() if row.support in supports}


def decoded(route: Route, body: bytes | Mapping[str, Any]) -> Any:
    """The body as the route decodes it."""
    takes = ollama_requests.ChatRequest if route.inside else route.takes
    given = body if isinstance(body, bytes) else json.dumps(body).encode()
    return decode_strictly(given, msgspec.json.Decoder(takes), route.tables)


def refusal(route: Route, body: bytes | Mapping[str, Any]) -> HttpError:
    with pytest.raises(HttpError) as refused:
        decoded(route, body)
    assert refused.value.status == 400
    return refused.value


# ------------------------------------------------------------------ the tables are whole


@EACH_ROUTE
def test_the_fields_are_those_of_the_types(route: Route) -> None:
    known = {it.name for it in msgspec.structs.fields(route.takes)}
    assert known == names(route.rows, Support.DONE, Support.WITHOUT_EFFECT)


def test_the_fields_of_messages_are_those_of_the_types() -> None:
    for takes, rows in (
        (requests.ChatMessage, fields.MESSAGE),
        (ollama_requests.ChatMessage, ollama.MESSAGE),
    ):
        assert {it.name for it in msgspec.structs.fields(takes)} == rows.keys()


@pytest.mark.parametrize(
    ("params", "rows"),
    [
        (chat_create_params.CompletionCreateParamsNonStreaming, fields.CHAT),
        (completion_create_params.CompletionCreateParamsNonStreaming, fields.COMPLETIONS),
        (embedding_create_params.EmbeddingCreateParams, fields.EMBEDDINGS),
    ],
)
def test_nothing_of_openais_reference_is_missing(params: Any, rows: Table) -> None:
    found = params.__required_keys__ | params.__optional_keys__
    assert len(found) >= 5
    assert found <= rows.keys()


def test_no_message_part_tool_or_format_of_openais_reference_is_missing() -> None:
    for params in MESSAGES:
        assert params.__required_keys__ | params.__optional_keys__ <= fields.MESSAGE.keys()
    assert {kind for params in MESSAGES for kind in tags(params, "role")} <= fields.ROLES.keys()
    parts = (*get_args(ChatCompletionContentPartParam), ChatCompletionContentPartRefusalParam)
    assert {kind for params in parts for kind in tags(params)} == fields.PARTS.keys() - {
        "video_url",
        "audio_url",
    }
    tools = get_args(ChatCompletionToolUnionParam)
    assert {kind for params in tools for kind in tags(params)} <= fields.TOOLS.keys()
    choices = get_args(ChatCompletionToolChoiceOptionParam)[1:]
    assert {kind for params in choices for kind in tags(params)} == fields.CHOICES.keys()
    formats = get_args(chat_create_params.ResponseFormat)
    assert {kind for params in formats for kind in tags(params)} <= fields.FORMATS.keys()


def tags(params: Any, name: str = "type") -> set[str]:
    """What a field of a type of OpenAI's package may be."""
    namespace = __import__(params.__module__, fromlist=["x"]).__dict__
    hint = params.__annotations__[name]
    hint = getattr(hint, "__forward_arg__", hint)
    return set(get_args(get_args(eval(hint, namespace))[0]))


@pytest.mark.parametrize(("mark", "tables"), [("openai", fields.TABLES), ("ollama", ollama.TABLES)])
def test_the_docs_have_the_tables(mark: str, tables: Mapping[str, Table]) -> None:
    page = DOCS.read_text()
    begin = page.index(f"<!-- {mark}:")
    end = page.index("<!-- end -->", begin)
    assert page[begin:end].partition("-->\n")[2] == as_markdown(tables)


def test_the_document_says_what_becomes_of_each_field(tiny_server: Serving) -> None:
    said = tiny_server.get("/openapi.json")
    for route in ROUTES.values():
        if route.inside:
            continue
        body = said["paths"][route.path]["post"]["requestBody"]["content"]["application/json"]
        schema = said["components"]["schemas"][body["schema"]["$ref"].rpartition("/")[2]]
        assert schema["additionalProperties"] is False
        for name, it in schema["properties"].items():
            assert route.rows[name].said in it["description"]


# ------------------------------------------------------------------ what is refused


@EACH_ROUTE
def test_what_is_refused_is_refused_by_its_name(route: Route) -> None:
    for name in names(route.rows, Support.REFUSED):
        row = route.rows[name]
        for value in ("x", [1], {"x": 1}, 77, 0.123):
            error = refusal(route, route.body(**{name: value}))
            assert (error.param, error.code) == (route.place(name), "unsupported_parameter")
            assert row.said in str(error)
            assert name in str(error)
        for silent in (None, *row.silent):
            assert decoded(route, route.body(**{name: silent})) == decoded(route, route.body())
        twice = route.body(**{name: None, "nonsense": 1})
        assert refusal(route, twice).param == route.place("nonsense")


@EACH_ROUTE
def test_what_is_unknown_is_refused_by_its_name(route: Route) -> None:
    for name in ("nonsense", "Model", "top-p", "", "ü\x00\n", "x" * 5000):
        error = refusal(route, route.body(**{name: None}))
        assert (error.param, error.code) == (route.place(name[:80]), "unknown_parameter")
    for name in names(route.rows, Support.DONE, Support.WITHOUT_EFFECT):
        if len(name) > 4:  # one letter less is near enough
            error = refusal(route, route.body(**{name[:-2] + name[-1]: None}))
            assert "did you mean " in str(error) or error.code != "unknown_parameter"


@EACH_ROUTE
def test_a_name_that_is_given_twice(route: Route) -> None:
    for name in names(route.rows, Support.DONE, Support.WITHOUT_EFFECT):
        value = None if route.inside else route.plain.get(name)
        text, pair = json.dumps(route.body(**{name: value})), f'"{name}": {json.dumps(value)}'
        assert pair in text
        error = refusal(route, text.replace(pair, f"{pair}, {pair}").encode())
        assert (error.param, error.code) == (name, "invalid_json")


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, "content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "odd"}]}]}, "content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": "x", "odd": 1}]}, "messages[0].odd"),
        ({"messages": [{"role": "assistant", "audio": {"id": "x"}}]}, "messages[0].audio"),
        ({"messages": [{"role": 5, "content": "x"}]}, "messages[0].role"),
        ({"messages": []}, "messages"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "odd", "function": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "x", "odd": 1}}]}, "function.odd"),
        ({"tool_choice": {"type": "custom", "custom": {"name": "x"}}}, "tool_choice.type"),
        ({"tool_choice": "odd"}, "tool_choice"),
        ({"response_format": {"type": "grammar", "grammar": "x"}}, "response_format.type"),
        ({"modalities": ["text", "audio"]}, "modalities[1]"),
        ({"stream_options": {"odd": 1}}, "stream_options.odd"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"metadata": {"x" * 65: "y"}}, "metadata"),
    ],
)
def test_where_a_chat_is_wrong(more: dict[str, Any], param: str) -> None:
    route = ROUTES["chat"]
    error = refusal(route, route.body(**more))
    assert param in (error.param or "")
    assert str(error)


# ------------------------------------------------------------------ bounds, made from the types


@EACH_ROUTE
def test_beyond_the_bounds_and_of_another_type(route: Route) -> None:
    tried = 0
    for it in inspect.type_info(route.takes).fields:  # type: ignore[attr-defined]
        for value in wrong_values(it.type):
            error = refusal(route, route.body(**{it.name: value}))
            assert (error.param or "").startswith(route.place(it.name)), (it.name, value)
            assert "`" not in str(error)  # as msgspec has it
            tried += 1
    assert tried >= 5


@EACH_ROUTE
def test_at_the_bounds_and_null(route: Route) -> None:
    for it in inspect.type_info(route.takes).fields:  # type: ignore[attr-defined]
        for value in (*right_values(it.type), *(() if it.required else (None,))):
            decoded(route, route.body(**{it.name: value}))


@pytest.fixture(scope="module")
def able_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server whose model makes text and embeddings."""
    folder = tmp_path_factory.mktemp("able")
    able = TinyLlama(with_tokenizer=True, quantisation="Q8_0", overrides={"pooling_type": 3})
    path = able.write(folder / "tiny.gguf")
    serving = Serving(folder / "data", "--model", f"tiny={path}", "--n-ctx", "1024")
    yield serving
    assert serving.stop() == 0


@EACH_ROUTE
def test_all_together_at_their_bounds_or_null(route: Route, able_server: Serving) -> None:
    """As the server answers: one request with the least of all, one with the most, one of nulls."""
    kinds = {it.name: it for it in inspect.type_info(route.takes).fields}  # type: ignore[attr-defined]
    own = kinds.keys() - route.body().keys() - APART
    values = {name: [*right_values(kinds[name].type)] for name in own}
    least = {name: found[0] for name, found in values.items() if found}
    most = {name: found[-1] for name, found in values.items() if found}
    logprobs = {"logprobs": True} if {"logprobs", "top_logprobs"} <= own else {}
    for more in ({**least, **logprobs}, {**most, **logprobs}, dict.fromkeys(own)):
        answer = able_server.client.post(route.path, json=route.body(**more))
        assert answer.status_code == 200, (more, answer.text)
        assert '"error":{' not in answer.text[:500]


def members(kind: inspect.Type) -> tuple[inspect.Type, ...]:
    return kind.types if isinstance(kind, inspect.UnionType) else (kind,)


def wrong_values(kind: inspect.Type) -> Iterator[Any]:
    """Values beyond the bounds of a type, and of types that it is not."""
    types = members(kind)
    known = {type(it) for it in types}
    if not known & {inspect.StrType, inspect.LiteralType}:
        yield "x"
    takes_true = any(it is True for it in right_values(kind))
    if inspect.AnyType not in known and not takes_true:
        yield True
    if not known & {inspect.IntType, inspect.FloatType}:
        yield 7
        yield 0.5
    if inspect.FloatType not in known:
        yield 1.5
    if inspect.ListType not in known:
        yield [1]
    if not known & {inspect.DictType, inspect.StructType}:
        yield {"x": 1}
    for it in types:
        yield from _beyond(it)


def _beyond(it: inspect.Type) -> Iterator[Any]:
    if isinstance(it, inspect.IntType | inspect.FloatType):
        if it.ge is not None:
            yield from (it.ge - 1, -(2**70), -1e300)
        if it.le is not None:
            yield from (it.le + 1, 2**70, 1e300)
    elif isinstance(it, inspect.StrType):
        if it.min_length:
            yield ""
        if it.max_length is not None:
            yield "x" * (it.max_length + 1)
    elif isinstance(it, inspect.LiteralType):
        yield "odd"
    elif isinstance(it, inspect.ListType | inspect.DictType) and it.max_length is not None:
        n = it.max_length + 1
        yield ["x"] * n if isinstance(it, inspect.ListType) else {str(i): 1 for i in range(n)}


def right_values(kind: inspect.Type) -> Iterator[Any]:
    """Values at the bounds of a type that has some, and the truth values."""
    for it in members(kind):
        if isinstance(it, inspect.BoolType):
            yield from (False, True)
        elif isinstance(it, inspect.IntType | inspect.FloatType):
            yield from (bound for bound in (it.ge, it.le) if bound is not None)
            if isinstance(it, inspect.FloatType) and it.le is None:
                yield 1e300
        elif isinstance(it, inspect.LiteralType):
            yield from it.values


def test_what_is_long_is_read_translated_and_written_in_a_thread() -> None:
    """A conversation of 100,000 messages takes a second, and logprobs of a context many."""

    def where(_asked: object) -> threading.Thread:
        return threading.current_thread()

    async def read(length: int) -> threading.Thread:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b'{"model":"%s"}' % (b"x" * length)}

        http = Request({"type": "http", "method": "POST", "headers": []}, receive)
        tables = {"": ollama.SHOW}
        decoder = msgspec.json.Decoder(ollama_requests.ShowRequest)
        return (await read_wanted(http, decoder, tables, where))[1]

    async def write(*, is_long: bool) -> threading.Thread:
        found: list[threading.Thread] = []
        done = await written(lambda: found.append(where(None)), is_long=is_long)
        assert done.body == b"null"
        return found[0]

    here = threading.current_thread()
    assert asyncio.run(read(10)) is here
    assert asyncio.run(read(100_000)) is not here
    assert asyncio.run(write(is_long=False)) is here
    assert asyncio.run(write(is_long=True)) is not here
