"""From a request and the items of its conversation to what is wanted of the model. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from isthmus.abi import GrammarKind
from isthmus.server.generation.media import MediaFiles
from isthmus.server.generation.wanted import ToolChoice, Wanted, schema_grammar
from isthmus.server.http.errors import HttpError
from isthmus.server.openai.translate import sampling_of, variables_of
from isthmus.server.responses.items import Item
from isthmus.server.responses.messages import messages_of
from isthmus.server.responses.requests import CountRequest, ResponseRequest, TextConfig
from isthmus.server.responses.tools import Choice, Offer, Origin, choice_of, offer_of

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"
INCLUDABLE = (
    LOGPROBS,
    ENCRYPTED,
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "web_search_call.results",
)


@dataclass(frozen=True)
class Plan:
    """What a request comes to."""

    wanted: Wanted
    offer: Offer
    input_of: Origin | None
    """The custom tool whose input, and nothing else, is the answer."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the model does not get, or cannot do, of what was asked."""
        is_bound = self.wanted.grammar is not None and self.input_of is None
        return (*self.offer.warnings, *([_NO_CALLS] if is_bound and self.wanted.offered else []))


_NO_CALLS = "the whole answer follows text.format or grammar, so no tool is called"


def plan_of(asked: CountRequest, items: Sequence[Item]) -> Plan:
    """What a request wants of the model, after `items`, those before its own among them.

    HttpError 400, or SettingsError if its parts contradict each other.
    """
    offer = offer_of([*(asked.tools or ()), *_additional(items)])
    choice = choice_of(offer, asked.tool_choice)
    effort = None if asked.reasoning is None else asked.reasoning.effort
    files = MediaFiles()
    wanted = Wanted(
        messages=tuple(messages_of(items, asked.instructions, files)),
        media=files.files,
        remote=files.remote,
        tools=choice.tools,
        tool_choice=choice.how,
        tool=choice.name,
        parallel=asked.parallel_tool_calls is not False,
        variables=variables_of(effort, asked.chat_template_kwargs),
        truncate=asked.truncation == "auto",
        **(_answer(asked, choice) if isinstance(asked, ResponseRequest) else {}),
    )
    return Plan(wanted, offer, choice.input_of)


def require_sensible(asked: ResponseRequest) -> None:
    """HttpError 400 for wishes that cannot be had together, or are none."""
    for name in asked.include or ():
        if name not in INCLUDABLE:
            _refuse("include", f"there is nothing called {name[:80]!r} to include")
    if asked.background and asked.store is False:
        _refuse("background", "what runs in the background is stored: store must not be false")
    if asked.conversation is not None and asked.store is False:
        _refuse("store", "a conversation is kept: store must not be false")
    if asked.previous_response_id is not None and asked.conversation is not None:
        _refuse("conversation", "give previous_response_id or conversation: not both")


def _answer(asked: ResponseRequest, choice: Choice) -> dict[str, Any]:
    """The part of `Wanted` that is about the answer. A format is one of text: where a tool must be
    called there is none."""
    is_text = choice.how is not ToolChoice.REQUIRED and choice.input_of is None
    grammar = _grammar_of(asked, is_text)
    if choice.input_of is not None:
        if grammar is not None:
            _refuse("grammar", "give a grammar, or require a tool: not both")
        grammar = choice.input_of.grammar
    wants_logprobs = LOGPROBS in (asked.include or ())
    return {
        "grammar": grammar,
        "strict": bool(asked.text and (asked.text.format or {}).get("strict") is True),
        "sampling": sampling_of(asked),
        "max_tokens": asked.max_output_tokens,
        "logprobs": (asked.top_logprobs or 0) if wants_logprobs else None,
        "thinking": asked.thinking_budget,
    }


def _grammar_of(asked: ResponseRequest, is_text: bool) -> tuple[GrammarKind, str] | None:
    schema = None if asked.text is None else _schema_of(asked.text)
    schema = schema if is_text else None
    if asked.grammar is None:
        return None if schema is None else schema_grammar(schema)
    if schema is not None:
        _refuse("grammar", "give grammar or text.format: not both")
    return GrammarKind.GBNF, asked.grammar


def _schema_of(text: TextConfig) -> Mapping[str, Any] | None:
    given = text.format or {"type": "text"}
    kind, schema = given.get("type"), given.get("schema")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind != "json_schema":
        said = f"a format of type {str(kind)[:80]!r}: give text, json_object or json_schema"
        _refuse("text.format", said)
    if not isinstance(schema, dict):
        _refuse("text.format.schema", "a format of json_schema needs a schema")
    return dict(schema)


def _additional(items: Sequence[Item]) -> list[Mapping[str, Any]]:
    """Tools that items bring along."""
    return [tool for it in items if it["type"] == "additional_tools" for tool in it["tools"]]


def _refuse(param: str, said: str) -> NoReturn:
    raise HttpError(400, said, param=param)
