"""What Anthropic's routes answer, as types.

mypy holds those who write answers to them, `/openapi.json` tells callers, and a test compares the
two with what comes over the wire. Blocks are structs with a tag, since only these can be one of
several in a schema.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, TypedDict

from msgspec import Struct


class AnsweredText(Struct, frozen=True, tag="text", tag_field="type"):
    """A block of what the model said."""

    text: str


class AnsweredThinking(Struct, frozen=True, tag="thinking", tag_field="type"):
    """A block of what the model thought."""

    thinking: str
    signature: str
    """See `signature.py`."""


class AnsweredToolUse(Struct, frozen=True, tag="tool_use", tag_field="type"):
    """A tool that the model calls."""

    id: str
    name: str
    input: dict[str, Any]


AnsweredBlock: TypeAlias = AnsweredText | AnsweredThinking | AnsweredToolUse
StopReason: TypeAlias = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
]


class TokensDetails(TypedDict):
    """Tokens of an answer by what they were for."""

    thinking_tokens: int


class MessageUsage(TypedDict):
    """Tokens of a request."""

    input_tokens: int
    """Tokens of the prompt that were computed."""
    cache_creation_input_tokens: int
    """Always 0: remembering costs nothing."""
    cache_read_input_tokens: int
    """Tokens of the prompt that were remembered."""
    output_tokens: int
    output_tokens_details: TokensDetails


class _Message(TypedDict):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnsweredBlock]
    stop_reason: StopReason | None
    """null in `message_start` only."""
    stop_sequence: str | None
    usage: MessageUsage


class Message(_Message, total=False):
    """`/v1/messages`."""

    warnings: list[str]
    """What the model does not get of the request. Absent if it gets everything."""


class TokenCount(TypedDict):
    """`/v1/messages/count_tokens`."""

    input_tokens: int


class ModelInfo(TypedDict):
    """A model that requests may name."""

    type: Literal["model"]
    id: str
    display_name: str
    created_at: str
    """When the server started, RFC 3339 in UTC."""
    lifecycle: Literal["active"]
    max_input_tokens: int
    max_tokens: int


class ModelPage(TypedDict):
    """Some of the models, in the server's order."""

    data: list[ModelInfo]
    has_more: bool
    """Whether there are further ones in the direction in which the caller goes."""
    first_id: str | None
    last_id: str | None


class MessagesErrorDetail(TypedDict):
    """What happened."""

    type: str
    message: str


class MessagesErrorReply(TypedDict):
    """An error as Anthropic tells it."""

    type: Literal["error"]
    error: MessagesErrorDetail
    request_id: str


# ---------------------------------------------------------------------------------- events


class MessageStart(TypedDict):
    """The first event: a message without content."""

    type: Literal["message_start"]
    message: Message


class Ping(TypedDict):
    """An event that says nothing."""

    type: Literal["ping"]


class BlockStart(TypedDict):
    """A block begins, empty."""

    type: Literal["content_block_start"]
    index: int
    content_block: AnsweredBlock


class TextDelta(TypedDict):
    """More of a text."""

    type: Literal["text_delta"]
    text: str


class ThinkingDelta(TypedDict):
    """More of a thought."""

    type: Literal["thinking_delta"]
    thinking: str


class SignatureDelta(TypedDict):
    """The whole signature of a thought, at its end."""

    type: Literal["signature_delta"]
    signature: str


class InputDelta(TypedDict):
    """More of a call's input: all parts, joined, are one JSON object."""

    type: Literal["input_json_delta"]
    partial_json: str


Delta: TypeAlias = TextDelta | ThinkingDelta | SignatureDelta | InputDelta


class BlockDelta(TypedDict):
    """A block goes on."""

    type: Literal["content_block_delta"]
    index: int
    delta: Delta


class BlockStop(TypedDict):
    """A block ends."""

    type: Literal["content_block_stop"]
    index: int


class Stopped(TypedDict):
    """Why a message ended."""

    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(TypedDict):
    """What is known at the end; its usage replaces that of `message_start`."""

    type: Literal["message_delta"]
    delta: Stopped
    usage: MessageUsage


class MessageStop(TypedDict):
    """The last event."""

    type: Literal["message_stop"]


BlockEvent: TypeAlias = BlockStart | BlockDelta | BlockStop
StreamEvent: TypeAlias = MessageStart | Ping | BlockEvent | MessageDelta | MessageStop
