"""What clients of Anthropic's API ask, as types: a body is decoded into one of these, or refused.

`fields.py` says of each field what becomes of it. What is in neither is refused by its name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

Cache: TypeAlias = dict[str, Any] | None
"""`cache_control`, which changes nothing here."""
_Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
_Name = Annotated[str, Meta(min_length=1, max_length=128)]


class _Part(Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of all parts of a body."""


class TextBlock(_Part, tag="text", tag_field="type"):
    """Text of a message, a tool's result or the system prompt."""

    text: str
    cache_control: Cache = None
    citations: list[Any] | None = None


class ThinkingBlock(_Part, tag="thinking", tag_field="type"):
    """A thought that the model had before."""

    thinking: str
    signature: str = ""
    cache_control: Cache = None


class RedactedThinkingBlock(_Part, tag="redacted_thinking", tag_field="type"):
    """A thought that only the server which wrote it can read."""

    data: str
    cache_control: Cache = None


class ToolUseBlock(_Part, tag="tool_use", tag_field="type"):
    """A tool's call that the model made before."""

    id: Annotated[str, Meta(min_length=1, max_length=256)]
    name: _Name
    input: dict[str, Any]
    cache_control: Cache = None
    caller: dict[str, Any] | None = None


class ToolReferenceBlock(_Part, tag="tool_reference", tag_field="type"):
    """The name of a tool that a client's search for tools has found."""

    tool_name: _Name
    cache_control: Cache = None


class Base64Source(_Part, tag="base64", tag_field="type"):
    """A file in base64."""

    data: str
    media_type: str


class UrlSource(_Part, tag="url", tag_field="type"):
    """A file somewhere else, fetched if the server allows its host."""

    url: str


class ImageBlock(_Part, tag="image", tag_field="type"):
    """A picture of a message."""

    source: Base64Source | UrlSource
    cache_control: Cache = None


class ToolResultBlock(_Part, tag="tool_result", tag_field="type"):
    """What a tool gave."""

    tool_use_id: Annotated[str, Meta(min_length=1, max_length=256)]
    content: str | list[TextBlock | ToolReferenceBlock] | None = None
    is_error: bool | None = None
    cache_control: Cache = None


Block: TypeAlias = (
    TextBlock | ImageBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock
)


class InputMessage(_Part):
    """One turn."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class CustomTool(_Part):
    """A tool that the client runs."""

    name: _Name
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    cache_control: Cache = None
    strict: bool | None = None
    defer_loading: bool | None = None
    eager_input_streaming: bool | None = None
    allowed_callers: list[str] | None = None
    input_examples: list[dict[str, Any]] | None = None


class AutoChoice(_Part, tag="auto", tag_field="type"):
    """The model decides whether to call a tool."""

    disable_parallel_tool_use: bool | None = None


class AnyChoice(_Part, tag="any", tag_field="type"):
    """The model calls at least one tool."""

    disable_parallel_tool_use: bool | None = None


class NamedChoice(_Part, tag="tool", tag_field="type"):
    """The model calls the tool of that name."""

    name: _Name
    disable_parallel_tool_use: bool | None = None


class NoChoice(_Part, tag="none", tag_field="type"):
    """The model is told of no tool."""


class ThinkingEnabled(_Part, tag="enabled", tag_field="type"):
    """The model thinks, up to `budget_tokens` tokens."""

    budget_tokens: _Count
    display: Literal["summarized", "omitted"] | None = None


class ThinkingAdaptive(_Part, tag="adaptive", tag_field="type"):
    """The model thinks as long as it likes."""

    display: Literal["summarized", "omitted"] | None = None


class ThinkingDisabled(_Part, tag="disabled", tag_field="type"):
    """The model is told not to think."""


class SchemaFormat(_Part, tag="json_schema", tag_field="type"):
    """JSON that follows a schema."""

    schema: dict[str, Any]


class OutputConfig(_Part):
    """`output_config`."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: SchemaFormat | None = None
    task_budget: dict[str, Any] | None = None


class CountRequest(_Part):
    """`/v1/messages/count_tokens`."""

    model: str
    messages: Annotated[list[InputMessage], Meta(min_length=1)]
    system: str | list[TextBlock] | None = None
    tools: list[CustomTool] | None = None
    tool_choice: AutoChoice | AnyChoice | NamedChoice | NoChoice | None = None
    thinking: ThinkingEnabled | ThinkingAdaptive | ThinkingDisabled | None = None
    output_config: OutputConfig | None = None
    output_format: SchemaFormat | None = None
    cache_control: Cache = None
    context_management: dict[str, Any] | None = None
    speed: Literal["standard", "fast"] | None = None


class MessagesRequest(CountRequest, kw_only=True):
    """`/v1/messages`."""

    max_tokens: _Count
    stop_sequences: list[str] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    stream: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    diagnostics: dict[str, Any] | None = None
    extra_body: dict[str, Any] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    ignore_eos: bool | None = None
