"""What clients of Ollama's API ask: https://docs.ollama.com/api

`fields.py` says of each field what becomes of it. What is in neither is refused by its name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

_Share = Annotated[float, Meta(ge=0, le=1)]
_Penalty = Annotated[float, Meta(ge=-100, le=100)]
_CountOrAll = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
_Stop = Annotated[str, Meta(min_length=1)]
Think = bool | Literal["none", "minimal", "low", "medium", "high"]
Format = Literal["", "json"] | dict[str, Any]


class _Part(Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of all parts of a body."""


class Ignored(_Part, kw_only=True):
    """Fields of `options` that change nothing."""

    num_ctx: int | None = None
    num_keep: int | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    num_thread: int | None = None
    main_gpu: int | None = None
    numa: bool | None = None
    low_vram: bool | None = None
    f16_kv: bool | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None


class Options(Ignored, kw_only=True):
    """`options`: how tokens are chosen."""

    temperature: Annotated[float, Meta(ge=0)] | None = None
    top_k: _CountOrAll | None = None
    """0 and -1 keep all."""
    top_p: _Share | None = None
    min_p: _Share | None = None
    repeat_penalty: Annotated[float, Meta(ge=0, le=100)] | None = None
    repeat_last_n: _CountOrAll | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    num_predict: Annotated[int, Meta(ge=-2, le=2**31 - 1)] | None = None
    """Tokens of the answer; less than 1 for as many as fit."""
    stop: _Stop | Annotated[list[_Stop], Meta(max_length=16)] | None = None


class CalledFunction(_Part, kw_only=True):
    """What was called."""

    name: str
    arguments: dict[str, Any] | None = None
    index: int | None = None
    description: str | None = None


class Call(_Part, kw_only=True):
    """A call in an earlier turn."""

    function: CalledFunction
    id: str | None = None
    type: Literal["function"] | None = None


class ChatMessage(_Part, kw_only=True):
    """One turn."""

    role: str
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[Call] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class Function(_Part, kw_only=True):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Part, kw_only=True):
    """`tools`."""

    function: Function
    type: Literal["function"] | None = None


class Common(_Part, kw_only=True):
    """What both kinds of requests take."""

    model: str
    stream: bool | None = None
    format: Format | None = None
    options: Options | None = None
    think: Think | None = None
    keep_alive: str | float | None = None
    """How long the model stays after its last use: seconds, or a duration such as 5m; 0 for not at
    all, below 0 for ever."""
    truncate: bool | None = None


class ChatRequest(Common, kw_only=True):
    """`/api/chat`."""

    messages: list[ChatMessage] | None = None
    tools: list[Tool] | None = None


class GenerateRequest(Common, kw_only=True):
    """`/api/generate`."""

    prompt: str | None = None
    suffix: str | None = None
    """What comes after the answer, for models that fill gaps."""
    system: str | None = None
    raw: bool | None = None
    images: list[str] | None = None


class EmbedRequest(_Part, kw_only=True):
    """`/api/embed`."""

    model: str
    input: str | list[str] | None = None
    truncate: bool | None = None
    """Whether a text that is too long is cut at its end: true by default."""
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    options: dict[str, Any] | None = None
    keep_alive: str | float | None = None


class EmbeddingsRequest(_Part, kw_only=True):
    """`/api/embeddings`, which is older."""

    model: str
    prompt: str | None = None
    options: dict[str, Any] | None = None
    keep_alive: str | float | None = None


class PullRequest(_Part, kw_only=True):
    """`/api/pull`."""

    model: str | None = None
    name: str | None = None
    """What `model` is called in earlier versions."""
    stream: bool | None = None


class ShowRequest(_Part, kw_only=True):
    """`/api/show`."""

    model: str | None = None
    name: str | None = None
    """What `model` is called in earlier versions."""
    verbose: bool | None = None
