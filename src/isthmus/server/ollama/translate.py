"""What requests of Ollama's API want of a model."""

from __future__ import annotations

import json
from typing import Any

from isthmus.abi import GrammarKind
from isthmus.errors import SettingsError
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

_LEAST_PENALTY = 0.01


def chat_wanted(asked: ChatRequest, n_ctx: int) -> Wanted:
    """What a chat wants of a model with `n_ctx` tokens of context. SettingsError."""
    messages = [_message_of(number, it) for number, it in enumerate(asked.messages)]
    tools = [
        Tool(it.function.name, it.function.description, it.function.parameters)
        for it in asked.tools or ()
    ]
    return _wanted(asked, messages, tuple(tools), n_ctx)


def generate_wanted(asked: GenerateRequest, n_ctx: int) -> Wanted:
    """What a prompt wants: an answer to it, after the instructions if there are any."""
    if asked.images:
        raise SettingsError("images are not supported")
    said = {"system": asked.system, "user": asked.prompt}
    messages = [{"role": role, "content": text} for role, text in said.items() if text]
    return _wanted(asked, messages, (), n_ctx)


def _wanted(
    asked: Common, messages: list[dict[str, Any]], tools: tuple[Tool, ...], n_ctx: int
) -> Wanted:
    options = asked.options
    return Wanted(
        messages=tuple(messages),
        tools=tools,
        grammar=_grammar_of(asked.format),
        sampling=_sampling_of(options),
        max_tokens=options.num_predict if options.num_predict > 0 else n_ctx,
        stop=(options.stop,) if isinstance(options.stop, str) else tuple(options.stop or ()),
        variables=_variables_of(asked.think),
    )


def _message_of(number: int, it: ChatMessage) -> dict[str, Any]:
    """A turn as the core has it: calls get the ids by which results name them, in order."""
    if it.images:
        raise SettingsError("images are not supported")
    found: dict[str, Any] = {"role": it.role, "content": it.content}
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
    function = {"name": call.function.name, "arguments": json.dumps(call.function.arguments)}
    return {"id": call.id or f"call_{number}_{n}", "type": "function", "function": function}


def _sampling_of(options: Options) -> Sampling:
    return Sampling(
        temperature=options.temperature,
        top_k=max(options.top_k, 0),
        top_p=options.top_p or 1.0,
        min_p=options.min_p,
        repeat_penalty=max(options.repeat_penalty, _LEAST_PENALTY),
        seed=options.seed,
    )


def _grammar_of(given: Format | None) -> tuple[GrammarKind, str] | None:
    if not given:
        return None
    schema = {"type": "object"} if given == "json" else given
    return schema_grammar(schema)


def _variables_of(think: Think | None) -> dict[str, Any]:
    if think is None or isinstance(think, bool):
        return thinking_variables(thinks=think)
    return thinking_variables(thinks=think != "none", effort=think)
