"""A request of Anthropic's API as what is wanted of a model: pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from isthmus.abi import GrammarKind
from isthmus.server.anthropic.conversation import conversation_of
from isthmus.server.anthropic.requests import (
    CountRequest,
    CustomTool,
    MessagesRequest,
    NamedChoice,
    NoChoice,
    ThinkingDisabled,
    ThinkingEnabled,
)
from isthmus.server.generation.wanted import (
    Sampling,
    Tool,
    ToolChoice,
    Wanted,
    schema_grammar,
    thinking_variables,
)
from isthmus.server.http.errors import HttpError

_CHOICES = {
    "auto": ToolChoice.AUTO,
    "any": ToolChoice.REQUIRED,
    "tool": ToolChoice.REQUIRED,
    "none": ToolChoice.NONE,
}
_EFFORTS = {"xhigh": "high", "max": "high"}
"""Efforts that chat templates do not know, and the nearest that they do."""


@dataclass(frozen=True)
class Translated:
    """What a request wants of a model, and how it wants to hear of it."""

    wanted: Wanted
    prefill: str = ""
    """Text that the answer goes on from."""
    hides_thoughts: bool = False


def translate(asked: CountRequest) -> Translated:
    """What a request wants. HttpError 400, SettingsError if its parts contradict each other."""
    found = conversation_of(asked.system, asked.messages)
    if not found.messages:
        raise HttpError(400, "there is no message to answer", param="messages")
    choice = ToolChoice.AUTO
    if asked.tool_choice is not None:
        choice = _CHOICES[str(asked.tool_choice.__struct_config__.tag)]
    grammar = _grammar(asked)
    if grammar is not None and asked.tools and choice is not ToolChoice.NONE:
        said = "an answer that follows a schema calls no tools: set tool_choice to none"
        raise HttpError(400, said, param="output_config.format")
    if found.prefill and (grammar is not None or choice is ToolChoice.REQUIRED):
        said = (
            "the last message begins an answer, whose form tool_choice or a schema says: not both"
        )
        raise HttpError(400, said, param="messages")
    wanted = Wanted(
        messages=found.messages,
        media=found.media,
        remote=found.remote,
        tools=_tools(asked.tools or ()),
        tool_choice=choice,
        tool=asked.tool_choice.name if isinstance(asked.tool_choice, NamedChoice) else None,
        parallel=_is_parallel(asked),
        grammar=grammar,
        variables=_variables(asked),
        **_how(asked),
    )
    display = getattr(asked.thinking, "display", None)
    return Translated(wanted, found.prefill, hides_thoughts=display == "omitted")


def _how(asked: CountRequest) -> dict[str, Any]:
    """How the answer is made, which requests that only count do not say."""
    if not isinstance(asked, MessagesRequest):
        return {}
    sampling = Sampling(
        temperature=1.0 if asked.temperature is None else asked.temperature,
        top_k=asked.top_k or 0,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        min_p=asked.min_p or 0.0,
        repeat_penalty=asked.repeat_penalty or 1.0,
        seed=asked.seed,
        ignore_eos=bool(asked.ignore_eos),
    )
    thinking = asked.thinking
    return {
        "sampling": sampling,
        "max_tokens": asked.max_tokens,
        "stop": tuple(asked.stop_sequences or ()),
        "thinking": thinking.budget_tokens if isinstance(thinking, ThinkingEnabled) else None,
    }


def _tools(given: Sequence[CustomTool]) -> tuple[Tool, ...]:
    names = Counter(it.name for it in given)
    if twice := next((name for name, n in names.items() if n > 1), None):
        raise HttpError(400, f"two tools have the name {twice!r}", param="tools")
    return tuple(Tool(it.name, it.description, it.input_schema, it.strict is True) for it in given)


def _is_parallel(asked: CountRequest) -> bool:
    choice = asked.tool_choice
    return choice is None or isinstance(choice, NoChoice) or not choice.disable_parallel_tool_use


def _grammar(asked: CountRequest) -> tuple[GrammarKind, str] | None:
    config = asked.output_config
    given = (None if config is None else config.format) or asked.output_format
    return None if given is None else schema_grammar(given.schema)


def _variables(asked: CountRequest) -> dict[str, Any]:
    """What the chat template is told of thinking, under the names that templates have for it."""
    effort = None if asked.output_config is None else asked.output_config.effort
    known = None if effort is None else _EFFORTS.get(effort, effort)
    if asked.thinking is None:
        return thinking_variables(effort=known)
    thinks = not isinstance(asked.thinking, ThinkingDisabled)
    return {**thinking_variables(thinks=thinks, effort=known), "thinking": thinks}
