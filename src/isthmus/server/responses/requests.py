"""What clients of the Responses API ask, as types: a body is decoded into one, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request as HttpRequest

from isthmus.server.http.errors import HttpError
from isthmus.server.http.strict import read_strictly
from isthmus.server.http.support import done
from isthmus.server.http.wording import fault_of
from isthmus.server.responses.fields import FIELDS

_T = TypeVar("_T")
Items = list[dict[str, Any]]
_Text = Annotated[str, Meta(max_length=1024)]
_MaxTokens = Annotated[int, Meta(ge=1, le=2**31 - 1)]
_Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
    Meta(max_length=16),
]


class TextConfig(Struct, kw_only=True):
    """`text`."""

    format: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(Struct, kw_only=True):
    """`reasoning`."""

    effort: Annotated[str, Meta(max_length=32)] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: _Text | None = None
    mode: _Text | None = None


class ConversationId(Struct, kw_only=True):
    """`conversation`, as an object."""

    id: _Text


class CountRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """`/v1/responses/input_tokens`: what a prompt is made of."""

    model: str
    input: str | Items | None = None
    instructions: str | None = None
    previous_response_id: _Text | None = None
    conversation: _Text | ConversationId | None = None
    tools: Items | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["auto", "disabled"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class ResponseRequest(CountRequest, kw_only=True, forbid_unknown_fields=True):
    """`/v1/responses`. `fields.FIELDS` says what becomes of each field."""

    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    include: list[str] | None = None
    max_output_tokens: _MaxTokens | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    metadata: _Metadata | None = None
    max_tool_calls: _MaxTokens | None = None
    service_tier: _Text | None = None
    prompt_cache_key: _Text | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: _Text | None = None
    safety_identifier: _Text | None = None
    user: _Text | None = None
    client_metadata: dict[str, Any] | None = None
    background_options: dict[str, Any] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[dict[str, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=300)] | None
    ) = None
    ignore_eos: bool | None = None
    grammar: str | None = None
    thinking_budget: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None


class NewConversation(Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/conversations`."""

    items: Annotated[Items, Meta(max_length=20)] | None = None
    metadata: _Metadata | None = None


class ConversationUpdate(Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/conversations/ID`."""

    metadata: _Metadata | None


class NewItems(Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/conversations/ID/items`."""

    items: Annotated[Items, Meta(min_length=1, max_length=20)]


class Page(Struct, kw_only=True):
    """Which items of a list are wanted."""

    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None
    """The id of the item after which the page begins."""


class Retrieval(Struct, kw_only=True):
    """How a response is told: whole, or as the events that made it."""

    stream: bool = False
    starting_after: Annotated[int, Meta(ge=0, le=2**53)] | None = None
    """The `sequence_number` after which events are told."""


async def read(
    http: HttpRequest, kind: type[_T], empty: bytes = b"", most: int | None = None
) -> _T:
    """The body of a request; `empty` stands for one that is not there.

    Fields that are refused have their reasons in `FIELDS`. A body of more than `most` bytes is not
    decoded. HttpError 400.
    """
    known = {it.encode_name for it in msgspec.structs.fields(kind)}  # type: ignore[arg-type]
    refused = {name: row for name, row in FIELDS.items() if row.is_refused}
    rows = {**refused, **{name: FIELDS.get(name, done()) for name in known}}
    return await read_strictly(http, msgspec.json.Decoder(kind), {"": rows}, most, empty)


def converted(given: Mapping[str, Any], kind: type[_T], where: str, code: str) -> _T:
    """A part of a body as a type. HttpError 400 with `code` and the place within the body, in which
    the part is at `where`."""
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        fault = fault_of(error, given, kind)
        param = where if fault.param is None else f"{where}.{fault.param}"
        said = fault.said.replace(f"'{fault.param}'", f"'{param}'", 1)
        raise HttpError(400, said, code=code, param=param) from None
