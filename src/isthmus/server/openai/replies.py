"""What OpenAI's routes answer, as types.

mypy holds those who write answers to them, `/openapi.json` tells callers, and a test compares the
two with what comes over the wire.
"""

from __future__ import annotations

from typing import Literal, TypedDict


class _State(TypedDict):
    value: Literal["unloaded", "loading", "loaded"]


class ModelStatus(_State, total=False):
    """Whether a model is in memory."""

    failed: bool
    """That it could not be loaded when it was asked for last."""
    error: str
    """Why."""


class ModelChanged(TypedDict):
    """That a model was loaded, or leaves."""

    success: Literal[True]
    model: str
    status: ModelStatus


class ModelCard(TypedDict):
    """A model that requests may name."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    n_ctx: int
    makes_text: bool
    n_embd: int | None
    """The width of its embeddings; null where it makes none."""
    media: list[str]
    """What it takes beside text, by its projector: `image`, `audio`."""
    status: ModelStatus
    nbytes: int
    """Bytes of its weights."""
    aliases: list[str]
    """Further names of it."""


class ModelList(TypedDict):
    """All models that requests may name."""

    object: Literal["list"]
    data: list[ModelCard]


class PromptDetails(TypedDict):
    """What is known of a prompt's tokens."""

    cached_tokens: int


class AnswerDetails(TypedDict):
    """What is known of the answers' tokens."""

    reasoning_tokens: int


class Usage(TypedDict):
    """Tokens of a request. Cached tokens are a part of the prompt's, those of thoughts a part of
    the answers'."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: AnswerDetails


class Embedding(TypedDict):
    """The embedding of one text: numbers, or base64 of them as 32-bit floats, little-endian."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(TypedDict):
    """Tokens of a request that has no answer of its own."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(TypedDict):
    """`/v1/embeddings`."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class TextLogprobs(TypedDict):
    """Tokens and their logarithms of the probability, as `/v1/completions` tells them.

    A token whose bytes are no characters is written as `bytes:\\xe2\\x80`.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    """Null for the first token of a prompt."""
    top_logprobs: list[dict[str, float | None] | None]
    text_offset: list[int]
    """Characters of `text` before each token."""


class TextAnswer(TypedDict):
    """A choice of `/v1/completions` without its index."""

    text: str
    finish_reason: str
    logprobs: TextLogprobs | None


class TextChoice(TextAnswer):
    """A choice of `/v1/completions`."""

    index: int


class Head(TypedDict):
    """What both kinds of completion begin with."""

    id: str
    created: int
    model: str
    system_fingerprint: None
    usage: Usage


class TextCompletion(Head):
    """`/v1/completions`."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


class TopLogprob(TypedDict):
    """A token, and the logarithm of its probability."""

    token: str
    logprob: float | None
    bytes: list[int]


class ChatLogprob(TopLogprob):
    """A token, and what else might have come."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    """Tokens and their logarithms of the probability, as `/v1/chat/completions` tells them."""

    content: list[ChatLogprob]
    refusal: None


class CalledFunction(TypedDict):
    """Which function, and with which arguments, as JSON."""

    name: str
    arguments: str


class ToolCall(TypedDict):
    """A function that the model calls."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class _Message(TypedDict):
    role: Literal["assistant"]
    content: str | None
    refusal: None


class AnsweredMessage(_Message, total=False):
    """What the model said."""

    reasoning_content: str
    """What it thought before."""
    tool_calls: list[ToolCall]


class ChatAnswer(TypedDict):
    """A choice of `/v1/chat/completions` without its index."""

    message: AnsweredMessage
    finish_reason: str
    logprobs: ChatLogprobs | None


class ChatChoice(ChatAnswer):
    """A choice of `/v1/chat/completions`."""

    index: int


class _Completion(Head):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class ChatCompletion(_Completion, total=False):
    """`/v1/chat/completions`."""

    warnings: list[str]
    """What of the conversation the chat template leaves out."""
