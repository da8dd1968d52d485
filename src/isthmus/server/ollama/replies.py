"""What the routes of Ollama's API answer, as types."""

from __future__ import annotations

from typing import Any, Literal, TypedDict


class OllamaError(TypedDict):
    """An error as Ollama tells it."""

    error: str


class CalledFunction(TypedDict):
    """Which function, and with which arguments."""

    name: str
    arguments: dict[str, Any]


class OllamaCall(TypedDict):
    """A function that the model calls."""

    id: str
    function: CalledFunction


class _Said(TypedDict):
    role: Literal["assistant"]
    content: str


class OllamaMessage(_Said, total=False):
    """What the model said, or one more piece of it."""

    thinking: str
    tool_calls: list[OllamaCall]


class _Ended(TypedDict, total=False):
    done_reason: Literal["stop", "length", "load", "unload"]
    total_duration: int
    """Nanoseconds from the request to its end."""
    load_duration: int
    """Nanoseconds until the model was in memory."""
    prompt_eval_count: int
    """Tokens of the prompt."""
    prompt_eval_duration: int
    """Nanoseconds until the first token."""
    eval_count: int
    """Tokens of the answer."""
    eval_duration: int
    """Nanoseconds from the first token to the last."""
    warnings: list[str]
    """What of the conversation the chat template leaves out."""


class ChatReply(_Ended):
    """`/api/chat`: the whole, or a line of a stream. Only what is done has counts."""

    model: str
    created_at: str
    message: OllamaMessage
    done: bool


class _Generated(_Ended):
    model: str
    created_at: str
    response: str
    done: bool


class GenerateReply(_Generated, total=False):
    """`/api/generate`, likewise."""

    thinking: str


class EmbedReply(TypedDict):
    """`/api/embed`."""

    model: str
    embeddings: list[list[float]]
    """Each of length 1."""
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class EmbeddingsReply(TypedDict):
    """`/api/embeddings`."""

    embedding: list[float]


class Details(TypedDict):
    """What is known of a model by its file."""

    parent_model: str
    format: Literal["gguf"]
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class LocalModel(TypedDict):
    """A model that requests may name."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details


class RunningModel(TypedDict):
    """A model in memory."""

    name: str
    model: str
    size: int
    """Bytes of its weights."""
    digest: str
    details: Details
    expires_at: str
    """When it leaves unless it is used."""
    size_vram: int
    """Bytes of its weights in a device's own memory."""
    context_length: int


class RunningModels(TypedDict):
    """`/api/ps`."""

    models: list[RunningModel]


class LocalModels(TypedDict):
    """`/api/tags`."""

    models: list[LocalModel]


class Shown(TypedDict):
    """`/api/show`."""

    modelfile: str
    parameters: str
    template: str
    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


class Version(TypedDict):
    """`/api/version`."""

    version: str
