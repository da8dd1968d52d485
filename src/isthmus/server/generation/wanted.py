"""What a request wants of a model: one type that the shapes of every API are translated to.

::

    chat completions ─┐                                        ┌─► chunks, choices
    responses ────────┼─► Wanted ─► Writer ─► Prepared ─► Steps ┼─► items, events
    messages ─────────┤                                        ├─► blocks, events
    ollama ───────────┘                                        └─► objects, lines
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from isthmus.abi import GrammarKind
from isthmus.errors import SettingsError
from isthmus.server.generation.media import RemoteFile


class ToolChoice(Enum):
    """Whether the model calls a tool."""

    NONE = "none"
    """The model is told of no tool."""
    AUTO = "auto"
    """The model decides."""
    REQUIRED = "required"
    """The model calls at least one tool, or the one that `Wanted.tool` names."""


@dataclass(frozen=True)
class Tool:
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None
    """A JSON schema of an object; None for a function without parameters."""
    strict: bool = False
    """Whether a call that must be made is refused if the schema cannot be enforced whole."""

    def as_dict(self) -> dict[str, Any]:
        """The tool as chat templates take it, which is as OpenAI's chat completions write it."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        if self.parameters is not None:
            function["parameters"] = dict(self.parameters)
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class Sampling:
    """How each token is chosen."""

    temperature: float = 1.0
    top_k: int = 0
    """Candidates that are left; 0 for all."""
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    """Tokens before the next one that `repeat_penalty` is for."""
    presence_penalty: float = 0.0
    """What is subtracted from the logit of each token that the answer has already."""
    frequency_penalty: float = 0.0
    """What is subtracted as often as the answer has the token."""
    seed: int | None = None
    """None for another one each time."""
    bias: Mapping[str, float] = field(default_factory=dict)
    """What is added to the logits of tokens, whose ids are texts, as JSON has them."""
    ignore_eos: bool = False
    """Whether the answer goes on after a token that ends a text."""


MAX_STOPS = 16


@dataclass(frozen=True)
class Wanted:
    """See the module. SettingsError if its parts contradict each other."""

    messages: tuple[Mapping[str, Any], ...]
    """The conversation, oldest first, with the keys of OpenAI's chat completions: `role`, `content`
    (a text or a list of parts), `name`, `tool_calls`, `tool_call_id`, `reasoning_content`. What was
    not given is absent. A part of the type `media` has the `number` of one of `media`."""
    media: tuple[bytes, ...] = ()
    """Files of pictures and sounds."""
    remote: tuple[RemoteFile, ...] = ()
    """Those of `media` that are still to be fetched."""
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice.AUTO
    tool: str | None = None
    """The name of the tool that must be called."""
    parallel: bool = True
    """Whether several tools may be called in one answer."""
    grammar: tuple[GrammarKind, str] | None = None
    """What the answer follows: a kind and its source."""
    strict: bool = False
    """Whether an answer is refused if the JSON schema that it follows cannot be enforced whole."""
    sampling: Sampling = Sampling()
    max_tokens: int | None = None
    """Tokens of the answer, thoughts included; None for as many as the context has room for."""
    stop: tuple[str, ...] = ()
    """Texts before which the answer ends."""
    logprobs: int | None = None
    """How many of the most probable tokens are told beside each; None for no logprobs at all."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Further variables of the chat template, such as `enable_thinking`."""
    thinking: int | None = None
    """Tokens of a thought, after which it is closed; None for no bound."""
    truncate: bool = False
    """Whether the oldest turns are left out if the conversation does not fit into the context."""

    def __post_init__(self) -> None:
        if len(self.stop) > MAX_STOPS or not all(self.stop):
            raise SettingsError(f"stop: give at most {MAX_STOPS} texts, none of them empty")
        if self.tool_choice is ToolChoice.REQUIRED:
            if self.grammar is not None:
                raise SettingsError("give a grammar or format, or require a tool: not both")
            if not self.tools or self.tool not in (None, *(it.name for it in self.tools)):
                raise SettingsError("tool_choice wants a tool that is not among tools")

    @property
    def offered(self) -> tuple[Tool, ...]:
        """The tools that the model is told of."""
        return () if self.tool_choice is ToolChoice.NONE else self.tools


def schema_grammar(schema: Mapping[str, Any]) -> tuple[GrammarKind, str]:
    """The kind and source of a grammar of JSON that follows a schema."""
    return GrammarKind.JSON_SCHEMA, json.dumps(schema)


def thinking_variables(
    *, thinks: bool | None = None, effort: str | None = None
) -> dict[str, bool | str]:
    """Variables of a chat template for a wish to think more or less; None for no such wish.

    Templates of models whose thoughts can only be had or not read `enable_thinking`; those of
    gpt-oss and others read `reasoning_effort`.
    """
    found: dict[str, bool | str] = {} if effort is None else {"reasoning_effort": effort}
    return found if thinks is None else {**found, "enable_thinking": thinks}
