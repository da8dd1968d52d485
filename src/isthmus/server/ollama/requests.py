"""What clients of Ollama's API ask: https://docs.ollama.com/api

What is not known here is ignored, as Ollama does; `docs/server.md` says what has no effect.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

_Share = Annotated[float, Meta(ge=0, le=1)]
Think = bool | Literal["none", "minimal", "low", "medium", "high"]
Format = Literal["", "json"] | dict[str, Any]


class Options(Struct, kw_only=True, frozen=True):
    """`options`: how tokens are chosen."""

    temperature: Annotated[float, Meta(ge=0, le=100)] = 0.8
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] = 40
    """0 and -1 keep all."""
    top_p: _Share = 0.9
    min_p: _Share = 0.0
    repeat_penalty: Annotated[float, Meta(ge=0, le=100)] = 1.1
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    num_predict: Annotated[int, Meta(ge=-2, le=2**31 - 1)] = -1
    """Tokens of the answer; -1 and -2 for as many as fit."""
    stop: str | list[str] | None = None


class CalledFunction(Struct, kw_only=True):
    """What was called."""

    name: str
    arguments: dict[str, Any] = {}


class Call(Struct, kw_only=True):
    """A call in an earlier turn."""

    function: CalledFunction
    id: str | None = None


class ChatMessage(Struct, kw_only=True):
    """One turn."""

    role: str
    content: str = ""
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[Call] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class Function(Struct, kw_only=True):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Struct, kw_only=True):
    """`tools`."""

    function: Function
    type: Literal["function"] = "function"


class Common(Struct, kw_only=True):
    """What both kinds of requests take."""

    model: str
    stream: bool = True
    format: Format | None = None
    options: Options = Options()
    think: Think | None = None
    keep_alive: str | float | None = None
    """How long the model stays after its last use: seconds, or a duration such as 5m; 0 for not at
    all, below 0 for ever."""


class ChatRequest(Common, kw_only=True):
    """`/api/chat`."""

    messages: list[ChatMessage] = []
    tools: list[Tool] | None = None


class GenerateRequest(Common, kw_only=True):
    """`/api/generate`."""

    prompt: str = ""
    system: str = ""
    suffix: str = ""
    images: list[str] | None = None
    raw: bool = False


class PullRequest(Struct, kw_only=True):
    """`/api/pull`."""

    model: str = ""
    name: str = ""
    """What `model` is called in earlier versions."""
    stream: bool = True


class ShowRequest(Struct, kw_only=True):
    """`/api/show`."""

    model: str = ""
    name: str = ""
    """What `model` is called in earlier versions."""
