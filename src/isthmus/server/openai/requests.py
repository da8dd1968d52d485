"""What clients of OpenAI's API ask, as types: a body is decoded into one of these, or refused.

What is not known here is ignored, as OpenAI's own server does with old clients.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

_Bias = Annotated[float, Meta(ge=-100, le=100)]
_Temperature = Annotated[float, Meta(ge=0, le=100)]
_Share = Annotated[float, Meta(gt=0, le=1)]
_Choices = Annotated[int, Meta(ge=1, le=32)]
_MaxTokens = Annotated[int, Meta(ge=1, le=2**31 - 1)]
_TopLogprobs = Annotated[int, Meta(ge=0, le=20)]
_Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


class StreamOptions(Struct):
    """`stream_options`."""

    include_usage: bool = False


class Common(Struct, kw_only=True):
    """What both kinds of completion take."""

    model: str
    max_tokens: _MaxTokens | None = None
    temperature: _Temperature | None = None
    top_p: _Share | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    logit_bias: Annotated[dict[str, _Bias], Meta(max_length=300)] | None = None
    ignore_eos: bool = False
    grammar: str | None = None
    n: _Choices | None = None
    seed: _Seed | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class TextPart(Struct, tag="text", tag_field="type"):
    """Part of a message's content."""

    text: str


class ChatMessage(Struct, kw_only=True):
    """One turn."""

    role: str
    content: str | list[TextPart] | UnsetType | None = UNSET
    name: str | UnsetType = UNSET
    tool_calls: list[dict[str, Any]] | UnsetType | None = UNSET
    tool_call_id: str | UnsetType = UNSET
    reasoning_content: str | UnsetType | None = UNSET
    """What the model thought in an earlier turn, for templates that want it."""


class JsonSchema(Struct, kw_only=True):
    """`response_format.json_schema`."""

    name: str = ""
    schema: dict[str, Any] = {}
    strict: bool | None = None


class ResponseFormat(Struct, kw_only=True):
    """`response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Function(Struct, kw_only=True):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct, kw_only=True):
    """`tools`."""

    type: Literal["function"]
    function: Function


class FunctionName(Struct):
    """The name of the tool that must be called."""

    name: str


class NamedTool(Struct, kw_only=True):
    """`tool_choice` that names a tool."""

    type: Literal["function"] = "function"
    function: FunctionName


class ChatRequest(Common, kw_only=True):
    """`/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: _MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: _TopLogprobs | None = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    """Further variables of the chat template, as vLLM's and llama.cpp's servers take them."""
    thinking_budget: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    """Tokens of a thought, after which it is closed."""


class CompletionRequest(Common, kw_only=True):
    """`/v1/completions`."""

    prompt: str | list[str | int | list[int]]
    logprobs: _TopLogprobs | None = None
    echo: bool | None = None
