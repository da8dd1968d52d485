"""What clients of llama.cpp's server ask, as types: https://github.com/ggml-org/llama.cpp, in
tools/server/README.md.

`fields.py` says of each field what becomes of it. What is in neither is refused by its name.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request as HttpRequest

from isthmus.server.http.endpoint import decode_json, read_body, require_unique_keys
from isthmus.server.http.errors import HttpError, fault_of
from isthmus.server.http.support import Support, Table
from isthmus.server.http.texts import Check, Texts
from isthmus.server.llamacpp.fields import NEUTRAL
from isthmus.server.openai.requests import ChatRequest

_T = TypeVar("_T")
_Id = Annotated[int, Meta(ge=0, le=2**31 - 1)]
_Count = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
_Answers = Annotated[int, Meta(ge=1, le=32)]
_Number = Annotated[float, Meta(ge=-1e9, le=1e9)]
_Share = Annotated[float, Meta(ge=0, le=1)]
Mixed: TypeAlias = str | list[str | _Id]
"""A text, or texts and ids in a row."""


class _Body(Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of all bodies."""

    model: str | None = None


class TokenizeRequest(_Body, kw_only=True):
    """`/tokenize`."""

    content: Mixed
    add_special: bool = False
    parse_special: bool = False
    with_pieces: bool = False


class DetokenizeRequest(_Body, kw_only=True):
    """`/detokenize`."""

    tokens: list[_Id]


class TemplateRequest(ChatRequest, kw_only=True, forbid_unknown_fields=True):
    """`/apply-template`: what `/v1/chat/completions` takes."""

    model: str = ""
    add_generation_prompt: Literal[True] = True


class PromptObject(Struct, kw_only=True, forbid_unknown_fields=True):
    """A prompt as an object."""

    prompt_string: str
    multimodal_data: Annotated[list[Any], Meta(max_length=0)] | None = None


Prompts: TypeAlias = str | PromptObject | list[str | _Id | PromptObject | list[str | _Id]]
_MOST_BIASES = Meta(max_length=300)
_Biases: TypeAlias = (
    Annotated[list[list[Any]], _MOST_BIASES] | Annotated[dict[str, Any], _MOST_BIASES]
)


class Sampled(_Body, kw_only=True):
    """How `/completion` and `/infill` make an answer, and how it is told."""

    n_predict: _Count | None = None
    max_tokens: _Count | None = None
    n_cmpl: _Answers | None = None
    n: _Answers | None = None
    stream: bool | None = None
    stop: str | list[str] | None = None
    temperature: Annotated[float, Meta(ge=-100, le=100)] | None = None
    top_k: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    top_p: _Number | None = None
    min_p: _Share | None = None
    repeat_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    repeat_last_n: _Count | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    ignore_eos: bool | None = None
    logit_bias: _Biases | None = None
    samplers: list[str] | str | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    n_probs: Annotated[int, Meta(ge=0, le=20)] | None = None
    return_tokens: bool | None = None
    response_fields: Annotated[list[str], Meta(max_length=100)] | None = None
    cache_prompt: bool | None = None
    id_slot: int | None = None
    n_keep: int | None = None
    n_discard: int | None = None
    n_cache_reuse: int | None = None
    n_indent: int | None = None
    t_max_predict_ms: float | None = None
    t_max_prompt_ms: float | None = None
    timings_per_token: bool | None = None
    return_progress: bool | None = None
    sse_ping_interval: float | None = None
    typical_p: float | None = None
    top_n_sigma: float | None = None
    dynatemp_range: float | None = None
    mirostat: int | None = None
    xtc_probability: float | None = None
    dry_multiplier: float | None = None
    adaptive_target: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    min_keep: int | None = None
    post_sampling_probs: bool | None = None
    lora: list[Any] | None = None
    dynatemp_exponent: float | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    xtc_threshold: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: list[str] | None = None
    adaptive_decay: float | None = None


class CompletionRequest(Sampled, kw_only=True):
    """`/completion`."""

    prompt: Prompts
    parse_special: bool = False


class ExtraFile(Struct, kw_only=True):
    """A text beside the one that has the gap."""

    text: str = ""
    filename: str = "tmp"


class InfillRequest(Sampled, kw_only=True):
    """`/infill`."""

    input_prefix: Mixed
    input_suffix: Mixed
    input_extra: Annotated[list[ExtraFile], Meta(max_length=4096)] | None = None
    prompt: Mixed | None = None
    spm_infill: bool = False


class Document(Struct, kw_only=True):
    """A document as an object; what it has beside its text is not read."""

    text: str


class RerankRequest(_Body, kw_only=True):
    """`/v1/rerank`."""

    query: str
    documents: list[str | Document]
    top_n: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    return_documents: bool | None = None
    user: str | None = None


class Which(Struct, kw_only=True, forbid_unknown_fields=True):
    """Which model is meant."""

    model: str | None = None
    """By default the first one."""


_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>[^`]*)`")


async def read(
    http: HttpRequest,
    texts: Texts,
    decoder: msgspec.json.Decoder[_T],
    table: Table,
    most: int | None = None,
) -> _T:
    """A request's body, read in a thread. HttpError 400 says where something is wrong, of a field
    that is not done in the words of its table."""
    body = await read_body(http, most)

    def decoded(_check: Check) -> _T:
        try:
            found = decode_json(body, decoder)
        except msgspec.ValidationError as error:
            raise _refusal(error, table) from None
        require_unique_keys(body)
        _require_neutral(found, table)
        return found

    return await texts.of(http, decoded)


def _refusal(error: msgspec.ValidationError, table: Table) -> HttpError:
    text, where = fault_of(error)
    where = where.removeprefix(".")
    found = _UNKNOWN.match(text)
    if found is None or where:
        return HttpError(400, text, param=where or None)
    name = found["name"]
    row = table.get(name)
    if row is None or row.support is not Support.REFUSED:
        said = f"there is no field {name[:80]!r} here"
        return HttpError(400, said, code="unknown_parameter", param=name[:80])
    return HttpError(400, row.said, code="unsupported", param=name)


def _require_neutral(asked: object, table: Table) -> None:
    """HttpError 400 for a field that is refused and would change something."""
    for name, values in NEUTRAL.items():
        value = getattr(asked, name, None)
        if value is not None and name in table and value not in values:
            raise HttpError(400, table[name].said, code="unsupported", param=name)
