"""What clients of llama.cpp's server ask, as types: https://github.com/ggml-org/llama.cpp, in
tools/server/README.md.

`fields.py` says of each field what becomes of it. What is in neither is refused by its name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from isthmus.server.openai.requests import ChatRequest

_Id = Annotated[int, Meta(ge=0, le=2**31 - 1)]
_Count = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
_Answers = Annotated[int, Meta(ge=1, le=32)]
_Number = Annotated[float, Meta(ge=-1e9, le=1e9)]
_Share = Annotated[float, Meta(ge=0, le=1)]
_FieldName = Annotated[str, Meta(max_length=100)]
Mixed: TypeAlias = str | list[str | _Id]
"""A text, or texts and ids in a row."""


class _Body(Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of all bodies."""

    model: str | None = None


class TokenizeRequest(_Body, kw_only=True):
    """`/tokenize`."""

    content: Mixed
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class DetokenizeRequest(_Body, kw_only=True):
    """`/detokenize`."""

    tokens: list[_Id]


class TemplateRequest(ChatRequest, kw_only=True, forbid_unknown_fields=True):
    """`/apply-template`: what `/v1/chat/completions` takes."""

    model: str | None = None  # type: ignore[assignment]
    add_generation_prompt: Literal[True] | None = None


class PromptObject(Struct, kw_only=True, forbid_unknown_fields=True):
    """A prompt as an object."""

    prompt_string: str
    multimodal_data: Annotated[list[Any], Meta(max_length=0)] | None = None


Prompts: TypeAlias = str | PromptObject | list[str | _Id | PromptObject | list[str | _Id]]
_MAX_BIASES = Meta(max_length=300)
_Biases: TypeAlias = (
    Annotated[list[list[Any]], _MAX_BIASES] | Annotated[dict[str, Any], _MAX_BIASES]
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
    presence_penalty: Annotated[float, Meta(ge=-100, le=100)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-100, le=100)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    ignore_eos: bool | None = None
    logit_bias: _Biases | None = None
    samplers: list[str] | str | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    n_probs: Annotated[int, Meta(ge=0, le=20)] | None = None
    return_tokens: bool | None = None
    response_fields: Annotated[list[_FieldName], Meta(max_length=100)] | None = None
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
    parse_special: bool | None = None


class ExtraFile(Struct, kw_only=True):
    """A text beside the one that has the gap."""

    text: str | None = None
    filename: str | None = None


class InfillRequest(Sampled, kw_only=True):
    """`/infill`."""

    input_prefix: Mixed
    input_suffix: Mixed
    input_extra: Annotated[list[ExtraFile], Meta(max_length=4096)] | None = None
    prompt: Mixed | None = None
    spm_infill: bool | None = None


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
