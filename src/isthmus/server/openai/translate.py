"""What requests of OpenAI's chat completions and completions want of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from isthmus.abi import GrammarKind
from isthmus.errors import SettingsError
from isthmus.server.generation.wanted import (
    Sampling,
    Tool,
    ToolChoice,
    Wanted,
    schema_grammar,
    thinking_variables,
)
from isthmus.server.openai.requests import (
    ChatMessage,
    ChatRequest,
    Common,
    NamedTool,
    ResponseFormat,
)


def wanted_of(asked: ChatRequest) -> Wanted:
    """What a chat completion wants. SettingsError if its parts contradict each other."""
    choice, tool = _choice_of(asked)
    return Wanted(
        messages=tuple(map(message_of, asked.messages)),
        tools=tuple(
            Tool(
                it.function.name,
                it.function.description,
                it.function.parameters,
                it.function.strict is True,
            )
            for it in asked.tools or ()
        ),
        tool_choice=choice,
        tool=tool,
        parallel=asked.parallel_tool_calls is not False,
        grammar=_grammar_of(asked),
        strict=_is_strict(asked.response_format),
        sampling=sampling_of(asked),
        max_tokens=asked.max_completion_tokens or asked.max_tokens,
        stop=stops_of(asked),
        logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
        variables=variables_of(asked.reasoning_effort, asked.chat_template_kwargs),
        thinking=asked.thinking_budget,
    )


def message_of(message: ChatMessage) -> Mapping[str, Any]:
    """A turn with what was given of it, null included."""
    found = msgspec.structs.asdict(message)
    given = {name: it for name, it in found.items() if it is not msgspec.UNSET}
    plain: dict[str, Any] = msgspec.to_builtins(given)
    return plain


class Sampled(Protocol):
    """A request that says how tokens are chosen, in the fields that OpenAI's API and this server
    have for it; None for each that it leaves out."""

    @property
    def temperature(self) -> float | None: ...
    @property
    def top_k(self) -> int | None: ...
    @property
    def top_p(self) -> float | None: ...
    @property
    def min_p(self) -> float | None: ...
    @property
    def repeat_penalty(self) -> float | None: ...
    @property
    def seed(self) -> int | None: ...
    @property
    def logit_bias(self) -> dict[str, float] | None: ...
    @property
    def ignore_eos(self) -> bool: ...


def sampling_of(asked: Sampled) -> Sampling:
    """How tokens are chosen."""
    return Sampling(
        temperature=1.0 if asked.temperature is None else asked.temperature,
        top_k=asked.top_k or 0,
        top_p=asked.top_p or 1.0,
        min_p=asked.min_p or 0.0,
        repeat_penalty=asked.repeat_penalty or 1.0,
        seed=asked.seed,
        bias=asked.logit_bias or {},
        ignore_eos=asked.ignore_eos,
    )


def stops_of(asked: Common) -> tuple[str, ...]:
    """Texts before which the answer ends."""
    return (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())


def variables_of(effort: str | None, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Variables of the chat template: those of an effort, and over them what a request gives."""
    thinks = None if effort is None else effort != "none"
    return {**thinking_variables(thinks=thinks, effort=effort), **(given or {})}


def _choice_of(asked: ChatRequest) -> tuple[ToolChoice, str | None]:
    choice = asked.tool_choice
    if isinstance(choice, NamedTool):
        return ToolChoice.REQUIRED, choice.function.name
    return ToolChoice(choice or "auto"), None


def _grammar_of(asked: ChatRequest) -> tuple[GrammarKind, str] | None:
    schema = None if asked.response_format is None else _schema_of(asked.response_format)
    if asked.grammar is None:
        return None if schema is None else schema_grammar(schema)
    if schema is not None:
        raise SettingsError("give grammar or response_format: not both")
    return GrammarKind.GBNF, asked.grammar


def _is_strict(it: ResponseFormat | None) -> bool:
    return it is not None and it.json_schema is not None and it.json_schema.strict is True


def _schema_of(it: ResponseFormat) -> dict[str, Any] | None:
    if it.type == "text":
        return None
    if it.type == "json_schema" and it.json_schema is None:
        raise SettingsError("response_format of json_schema needs json_schema")
    return it.json_schema.schema if it.json_schema else {"type": "object"}
