"""What clients of OpenAI's API ask, as types: a body is decoded into one of these, or refused.

`fields.py` says of each field what becomes of it. What is in neither is refused by its name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

_Bias = Annotated[float, Meta(ge=-100, le=100)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_RepeatPenalty = Annotated[float, Meta(ge=0.01, le=100)]
_Temperature = Annotated[float, Meta(ge=0)]
_Share = Annotated[float, Meta(ge=0, le=1)]
_Choices = Annotated[int, Meta(ge=1, le=128)]
_Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
_CountOrAll = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
"""-1 for all."""
_MaxTokens = Annotated[int, Meta(ge=1, le=2**31 - 1)]
_TopLogprobs = Annotated[int, Meta(ge=0, le=20)]
_Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_Stop = Annotated[str, Meta(min_length=1)]
_Text = Annotated[str, Meta(max_length=1024)]
_Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
    Meta(max_length=16),
]


class _Part(Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of all parts of a body."""


class StreamOptions(_Part, kw_only=True):
    """`stream_options`."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Ignored(_Part, kw_only=True):
    """Fields of other servers that change nothing."""

    cache_prompt: bool | None = None
    id_slot: int | None = None
    keep_alive: str | float | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    dynatemp_exponent: float | None = None
    xtc_threshold: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: list[str] | None = None


class Common(Ignored, kw_only=True):
    """What both kinds of completion take."""

    model: str
    temperature: _Temperature | None = None
    top_p: _Share | None = None
    top_k: _CountOrAll | None = None
    min_p: _Share | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    repeat_penalty: _RepeatPenalty | None = None
    repeat_last_n: _CountOrAll | None = None
    repetition_penalty: _RepeatPenalty | None = None
    logit_bias: Annotated[dict[str, _Bias], Meta(max_length=300)] | None = None
    ignore_eos: bool | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    guided_json: dict[str, Any] | None = None
    guided_regex: str | None = None
    n: _Choices | None = None
    seed: _Seed | None = None
    stop: _Stop | Annotated[list[_Stop], Meta(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: _Text | None = None


class TextPart(_Part, tag="text", tag_field="type"):
    """Part of a message's content."""

    text: str
    cache_control: dict[str, Any] | None = None
    prompt_cache_breakpoint: dict[str, Any] | None = None


class ImageUrl(_Part, kw_only=True):
    """`image_url`."""

    url: str
    """A data URI."""
    detail: str | None = None


class ImagePart(_Part, tag="image_url", tag_field="type"):
    """A picture of a message's content."""

    image_url: ImageUrl
    cache_control: dict[str, Any] | None = None


class InputAudio(_Part, kw_only=True):
    """`input_audio`."""

    data: str
    """A file in base64."""
    format: Literal["wav"]


class AudioPart(_Part, tag="input_audio", tag_field="type"):
    """A sound of a message's content."""

    input_audio: InputAudio
    cache_control: dict[str, Any] | None = None


class RefusalPart(_Part, tag="refusal", tag_field="type"):
    """What the model said when it refused."""

    refusal: str


ContentPart: TypeAlias = TextPart | RefusalPart | ImagePart | AudioPart


class ChatMessage(_Part, kw_only=True):
    """One turn."""

    role: str
    content: str | list[ContentPart] | UnsetType | None = UNSET
    name: str | UnsetType | None = UNSET
    tool_calls: list[dict[str, Any]] | UnsetType | None = UNSET
    tool_call_id: str | UnsetType | None = UNSET
    refusal: str | None = None
    reasoning_content: str | UnsetType | None = UNSET
    """What the model thought in an earlier turn, for templates that want it."""
    reasoning: str | None = None
    annotations: list[dict[str, Any]] | None = None
    provider_specific_fields: dict[str, Any] | None = None
    audio: None = None
    function_call: None = None


class JsonSchema(_Part, kw_only=True):
    """`response_format.json_schema`."""

    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(_Part, kw_only=True):
    """`response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Function(_Part, kw_only=True):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Part, kw_only=True):
    """`tools`."""

    type: Literal["function"]
    function: Function


class FunctionName(_Part, kw_only=True):
    """The name of the tool that must be called."""

    name: str


class NamedTool(_Part, tag="function", tag_field="type"):
    """`tool_choice` that names a tool."""

    function: FunctionName


class NamedFunction(_Part, kw_only=True):
    """A tool that may be called."""

    type: Literal["function"]
    function: FunctionName


class Allowed(_Part, kw_only=True):
    """Tools that may be called, and whether one must be."""

    mode: Literal["auto", "required"]
    tools: list[NamedFunction]


class AllowedTools(_Part, tag="allowed_tools", tag_field="type"):
    """`tool_choice` that allows some of the tools."""

    allowed_tools: Allowed


class ChatRequest(Common, kw_only=True):
    """`/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_tokens: _MaxTokens | None = None
    max_completion_tokens: _MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: _TopLogprobs | None = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | AllowedTools | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    """Further variables of the chat template, as vLLM's and llama.cpp's servers take them."""
    thinking_budget: _Count | None = None
    """Tokens of a thought, after which it is closed."""
    modalities: list[Literal["text"]] | None = None
    metadata: _Metadata | None = None
    store: bool | None = None
    service_tier: _Text | None = None
    safety_identifier: _Text | None = None
    prompt_cache_key: _Text | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: _Text | None = None
    prediction: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class CompletionRequest(Common, kw_only=True):
    """`/v1/completions`."""

    prompt: str | list[str | int | list[int]] | None
    max_tokens: _Count | None = None
    logprobs: _TopLogprobs | None = None
    echo: bool | None = None
    best_of: _Choices | None = None
    suffix: str | None = None
    """What comes after the answer, for models that fill gaps."""


EmbeddedPart: TypeAlias = TextPart | ImagePart | AudioPart


class EmbeddingRequest(_Part, kw_only=True):
    """`/v1/embeddings`."""

    model: str
    input: str | list[str | int | EmbeddedPart | list[int | EmbeddedPart]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    user: _Text | None = None
    keep_alive: str | float | None = None
