"""What the routes of llama.cpp's API answer, as types."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from isthmus.server.openai.replies import EmbeddingUsage


class LlamaErrorDetail(TypedDict):
    """What happened, and to which part of the request."""

    code: int
    """The status."""
    message: str
    type: str
    param: str | None


class LlamaError(TypedDict):
    """An error as llama.cpp's server tells it."""

    error: LlamaErrorDetail


class Health(TypedDict):
    """`/health`."""

    status: Literal["ok"]


class TokenPiece(TypedDict):
    """A token and what it stands for: a text, or bytes that are no UTF-8 by themselves."""

    id: int
    piece: str | list[int]


class Tokens(TypedDict):
    """`/tokenize`."""

    tokens: list[int | TokenPiece]


class Content(TypedDict):
    """`/detokenize`."""

    content: str


class _Templated(TypedDict):
    prompt: str


class Templated(_Templated, total=False):
    """`/apply-template`."""

    warnings: list[str]
    """What of the conversation the chat template leaves out."""


class Prob(TypedDict):
    """A token and the logarithm of its probability."""

    id: int
    token: str
    bytes: list[int]
    logprob: float | None


class TokenProb(Prob):
    """A token of an answer, and what else might have come."""

    top_logprobs: list[Prob]


class Timings(TypedDict):
    """How long an answer took."""

    cache_n: int
    """Tokens of the prompt that were not computed again."""
    prompt_n: int
    """Those that were."""
    prompt_ms: float
    """Milliseconds until the first token, with the time that the request waited."""
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_token_ms: float
    predicted_per_second: float


class CompletionReply(TypedDict, total=False):
    """`/completion` and `/infill`: an answer, or what a stream tells of it.

    All but the last event of a stream have `index`, `content`, `tokens`, `stop`,
    `tokens_predicted`, `tokens_evaluated` and, if they are wanted, `completion_probabilities`.
    With `response_fields` it has those alone.
    """

    index: int
    content: str
    tokens: list[int]
    id_slot: int
    """-1: requests have no place of their own."""
    stop: bool
    model: str
    tokens_predicted: int
    tokens_evaluated: int
    generation_settings: dict[str, Any]
    prompt: str
    has_new_line: bool
    truncated: bool
    """Whether the context was full, or something was left out around a gap."""
    stop_type: Literal["eos", "limit", "word"]
    stopping_word: str
    tokens_cached: int
    timings: Timings
    completion_probabilities: list[TokenProb]
    warnings: list[str]


class Modalities(TypedDict):
    """What a model reads beside text."""

    vision: bool
    audio: bool
    video: bool


class DefaultSettings(TypedDict):
    """What holds for a completion that says nothing else."""

    params: dict[str, Any]
    n_ctx: int


class Props(TypedDict):
    """`/props`."""

    default_generation_settings: DefaultSettings
    total_slots: int
    model_alias: str
    """What requests call the model."""
    model_path: str
    """The name of its file, without folders."""
    modalities: Modalities
    endpoint_slots: bool
    endpoint_props: bool
    endpoint_metrics: bool
    chat_template: str
    bos_token: str
    eos_token: str
    build_info: str
    is_sleeping: bool


class RankedDocument(TypedDict):
    """A document as it was given."""

    text: str


class _Ranked(TypedDict):
    index: int
    """Its place among the documents of the request."""
    relevance_score: float


class Ranked(_Ranked, total=False):
    """How near a document is to the query."""

    document: RankedDocument


class Ranking(TypedDict):
    """`/v1/rerank`, the nearest document first."""

    object: Literal["list"]
    model: str
    results: list[Ranked]
    usage: EmbeddingUsage
