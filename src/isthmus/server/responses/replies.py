"""What the Responses API answers, as types; see `openai/replies.py`."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from isthmus.server.openai.replies import ChatLogprob

Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]


class OutputText(TypedDict):
    """A text of a message."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    """None: there are no sources to cite."""
    logprobs: list[ChatLogprob]


class MessageItem(TypedDict):
    """What the model says."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: str
    content: list[OutputText]


class ReasoningText(TypedDict):
    """A thought."""

    type: Literal["reasoning_text"]
    text: str


class SummaryText(TypedDict):
    """A thought that is told as its summary."""

    type: Literal["summary_text"]
    text: str


class _Reasoning(TypedDict):
    id: str
    type: Literal["reasoning"]
    status: str
    summary: list[SummaryText]


class ReasoningItem(_Reasoning, total=False):
    """What the model thinks."""

    content: list[ReasoningText]
    encrypted_content: str | None


class _Call(TypedDict):
    id: str
    call_id: str
    name: str
    status: str


class _FunctionCall(_Call):
    type: Literal["function_call"]
    arguments: str


class FunctionCallItem(_FunctionCall, total=False):
    """The call of a function."""

    namespace: str


class _CustomCall(_Call):
    type: Literal["custom_tool_call"]
    input: str


class CustomCallItem(_CustomCall, total=False):
    """The call of a custom tool."""

    namespace: str


class CachedDetails(TypedDict):
    """Tokens of a prompt that were not computed again."""

    cached_tokens: int
    cache_write_tokens: int
    """0: nothing is billed for what is remembered."""


class ReasoningDetails(TypedDict):
    """Tokens of thoughts."""

    reasoning_tokens: int


class ResponseUsage(TypedDict):
    """Tokens of a response."""

    input_tokens: int
    input_tokens_details: CachedDetails
    output_tokens: int
    output_tokens_details: ReasoningDetails
    total_tokens: int


class ResponseFailure(TypedDict):
    """Why a response failed."""

    code: str
    message: str


class Incomplete(TypedDict):
    """Why a response ended early: `max_output_tokens`, or the context is full."""

    reason: Literal["max_output_tokens"]


class ConversationRef(TypedDict):
    """The conversation that a response belongs to."""

    id: str


class _Response(TypedDict):
    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Status
    background: bool
    error: ResponseFailure | None
    incomplete_details: Incomplete | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: list[dict[str, Any]]
    """Messages, reasoning and calls: `MessageItem`, `ReasoningItem`, `FunctionCallItem`,
    `CustomCallItem`."""
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, Any]
    safety_identifier: str | None
    service_tier: Literal["default"]
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage | None
    user: str | None


class ModelResponse(_Response, total=False):
    """A response."""

    conversation: ConversationRef
    warnings: list[str]
    """What the model did not get of the request."""


class ItemList(TypedDict):
    """A page of items."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class InputTokens(TypedDict):
    """How many tokens a prompt has."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class DeletedResponse(TypedDict):
    """Which response is no more."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class Conversation(TypedDict):
    """A conversation."""

    id: str
    object: Literal["conversation"]
    created_at: int
    metadata: dict[str, str]


class DeletedConversation(TypedDict):
    """Which conversation is no more."""

    id: str
    object: Literal["conversation.deleted"]
    deleted: Literal[True]
