"""What requests of Ollama's API want of a model."""

from __future__ import annotations

import json
from typing import Any

from isthmus.abi import GrammarKind
from isthmus.server.generation.media import MediaFiles
from isthmus.server.generation.wanted import (
    Sampling,
    Tool,
    Wanted,
    schema_grammar,
    thinking_variables,
)
from isthmus.server.ollama.requests import (
    Call,
    ChatMessage,
    ChatRequest,
    Common,
    Format,
    GenerateRequest,
    Options,
    Think,
)

_TEMPERATURE, _TOP_K, _TOP_P, _REPEAT_PENALTY, _LAST_N = 0.8, 40, 0.9, 1.1, 64
"""What Ollama has if a request does not say."""
_MIN_PENALTY = 0.01
_ALL = 2**31 - 1
"""`Sampling.repeat_last_n` for all tokens."""


def chat_wanted(asked: ChatRequest) -> Wanted:
    """What a chat wants of a model. SettingsError."""
    files = MediaFiles()
    messages = [_message_of(number, it, files) for number, it in enumerate(asked.messages or ())]
    tools = [
        Tool(it.function.name, it.function.description, it.function.parameters)
        for it in asked.tools or ()
    ]
    return _wanted(asked, messages, tuple(tools), files.files)


def generate_wanted(asked: GenerateRequest) -> Wanted:
    """What a prompt wants: an answer to it, after the instructions if there are any."""
    files, messages = MediaFiles(), list[dict[str, Any]]()
    if asked.system:
        messages.append({"role": "system", "content": asked.system})
    if asked.prompt or asked.images:
        content = _content_of(asked.prompt, asked.images, files, "images")
        messages.append({"role": "user", "content": content})
    return _wanted(asked, messages, (), files.files)


def _content_of(text: str | None, images: list[str] | None, files: MediaFiles, where: str) -> Any:
    """A text, or a list of pictures and the text after them. HttpError 400."""
    if not images:
        return text or ""
    parts = [files.add_base64(it, f"{where}[{number}]") for number, it in enumerate(images)]
    return [*parts, {"type": "text", "text": text}] if text else parts


def _wanted(
    asked: Common,
    messages: list[dict[str, Any]],
    tools: tuple[Tool, ...],
    media: tuple[bytes, ...],
) -> Wanted:
    options = asked.options or Options()
    n_tokens = options.num_predict or 0
    return Wanted(
        messages=tuple(messages),
        media=media,
        tools=tools,
        grammar=_grammar_of(asked.format),
        sampling=_sampling_of(options),
        max_tokens=n_tokens if n_tokens > 0 else None,
        stop=(options.stop,) if isinstance(options.stop, str) else tuple(options.stop or ()),
        variables=_variables_of(asked.think),
        truncate=bool(asked.truncate),
    )


def _message_of(number: int, it: ChatMessage, files: MediaFiles) -> dict[str, Any]:
    """A turn as the core has it: calls get the ids by which results name them, in order."""
    content = _content_of(it.content, it.images, files, f"messages[{number}].images")
    found: dict[str, Any] = {"role": it.role, "content": content}
    if it.thinking:
        found["reasoning_content"] = it.thinking
    if it.tool_calls:
        found["tool_calls"] = [_call_of(number, n, call) for n, call in enumerate(it.tool_calls)]
    if it.tool_name:
        found["name"] = it.tool_name
    if it.tool_call_id:
        found["tool_call_id"] = it.tool_call_id
    return found


def _call_of(number: int, n: int, call: Call) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": json.dumps(call.function.arguments or {})}
    return {"id": call.id or f"call_{number}_{n}", "type": "function", "function": function}


def _sampling_of(options: Options) -> Sampling:
    last_n = _LAST_N if options.repeat_last_n is None else options.repeat_last_n
    penalty = _given(options.repeat_penalty, _REPEAT_PENALTY)
    return Sampling(
        temperature=_given(options.temperature, _TEMPERATURE),
        top_k=max(_TOP_K if options.top_k is None else options.top_k, 0),
        top_p=_given(options.top_p, _TOP_P),
        min_p=_given(options.min_p, 0.0),
        repeat_penalty=max(penalty, _MIN_PENALTY),
        repeat_last_n=last_n if last_n >= 0 else _ALL,
        presence_penalty=_given(options.presence_penalty, 0.0),
        frequency_penalty=_given(options.frequency_penalty, 0.0),
        seed=options.seed if options.seed is not None and options.seed >= 0 else None,
    )


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


def _grammar_of(given: Format | None) -> tuple[GrammarKind, str] | None:
    if not given:
        return None
    schema = {"type": "object"} if given == "json" else given
    return schema_grammar(schema)


def _variables_of(think: Think | None) -> dict[str, Any]:
    if think is None or isinstance(think, bool):
        return thinking_variables(thinks=think)
    return thinking_variables(thinks=think != "none", effort=think)
