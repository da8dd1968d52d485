"""What clients of OpenAI's API ask, as types: a body is decoded into one of these, or refused.

What is not known here is ignored, as OpenAI's own server does with old clients.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from isthmus.abi import GrammarKind
from isthmus.errors import SettingsError

_Bias = Annotated[float, Meta(ge=-100, le=100)]
_Temperature = Annotated[float, Meta(ge=0, le=100)]
_Share = Annotated[float, Meta(gt=0, le=1)]
_Choices = Annotated[int, Meta(ge=1, le=32)]
_MaxTokens = Annotated[int, Meta(ge=1, le=2**31 - 1)]
_TopLogprobs = Annotated[int, Meta(ge=0, le=20)]
_Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_NO_ARGUMENTS = {"type": "object", "properties": {}}


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
    content: str | list[TextPart] | None = None
    name: str | UnsetType = UNSET
    tool_calls: list[dict[str, Any]] | UnsetType = UNSET
    tool_call_id: str | UnsetType = UNSET

    def as_dict(self) -> dict[str, Any]:
        """As a chat template takes it."""
        content = self.content
        text = content if isinstance(content, str) else "".join(it.text for it in content or ())
        found = {"role": self.role, "content": text}
        for name in ("name", "tool_calls", "tool_call_id"):
            if getattr(self, name) is not UNSET:
                found[name] = getattr(self, name)
        return found


class JsonSchema(Struct, kw_only=True):
    """`response_format.json_schema`."""

    name: str = ""
    schema: dict[str, Any] = {}


class ResponseFormat(Struct, kw_only=True):
    """`response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Function(Struct, kw_only=True):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Struct, kw_only=True):
    """`tools`."""

    type: Literal["function"]
    function: Function


class FunctionName(Struct):
    """Of the tool that must be called."""

    name: str


class ToolChoice(Struct, kw_only=True):
    """`tool_choice` that names one."""

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
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None


class CompletionRequest(Common, kw_only=True):
    """`/v1/completions`."""

    prompt: str | list[str | int | list[int]]
    logprobs: _TopLogprobs | None = None
    echo: bool | None = None


# ---------------------------------------------------------------------------------- grammars


def grammar_of(asked: ChatRequest) -> tuple[tuple[GrammarKind, str] | None, bool]:
    """What the answer follows, if anything, and whether that is the call of a tool."""
    schema = _schema_of_tools(asked)
    forced = schema is not None
    if schema is None and asked.response_format is not None:
        schema = _schema_of_format(asked.response_format)
    if asked.grammar is not None:
        if schema is not None:
            raise SettingsError("give grammar, or response_format, or tool_choice: not several")
        return (GrammarKind.GBNF, asked.grammar), False
    return (None if schema is None else (GrammarKind.JSON_SCHEMA, json.dumps(schema))), forced


def _schema_of_format(it: ResponseFormat) -> dict[str, Any] | None:
    if it.type == "text":
        return None
    if it.type == "json_schema" and it.json_schema is None:
        raise SettingsError("response_format of json_schema needs json_schema")
    return it.json_schema.schema if it.json_schema else {"type": "object"}


def _schema_of_tools(asked: ChatRequest) -> dict[str, Any] | None:
    """Of the call, where one must be made."""
    choice = asked.tool_choice
    if choice in (None, "none", "auto"):
        return None
    name = choice.function.name if isinstance(choice, ToolChoice) else None
    tools = [it.function for it in asked.tools or () if name in (None, it.function.name)]
    if not tools:
        raise SettingsError("tool_choice wants a tool that is not among tools")
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": it.name},
                "arguments": {"additionalProperties": False, **(it.parameters or _NO_ARGUMENTS)},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for it in tools
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}
