"""Conversations as clients of OpenAI's API write them, made into what chat templates expect.

::

    messages, tools, variables ── prepared ──► the same, for one template, and warnings

1. What was given as null is left out, as Transformers does; `content` is there, but for messages
   with calls, where templates differ.
2. Reasoning of past answers has the names `reasoning_content` and `thinking`.
3. Arguments of calls are mappings, or text for templates that want it.
4. Contents are text, or lists of parts for templates that go through them.
5. Instructions (`system`, `developer`) keep their place if the template has one for them. Otherwise
   they join the first ones, or else the first message of the user.

What a template leaves out nevertheless is told as warnings, plain sentences for whoever asked.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from isthmus.errors import SettingsError, TemplateError
from isthmus.model.chat.template_traits import Content, Fate, Traits
from isthmus.model.checks import nothing

MAX_DEPTH = 100
"""Lists and mappings around anything in a conversation."""
MAX_VARIABLES = 64
MAX_NAME = 64
"""Characters of a variable's name."""
RESERVED = frozenset(
    (
        *("messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "unk_token"),
        *("sep_token", "pad_token", "mask_token", "cls_token", "raise_exception", "strftime_now"),
        *("namespace", "range", "dict", "cycler", "joiner", "loop", "self", "caller", "varargs"),
        *("kwargs", "true", "false", "none", "True", "False", "None"),
    )
)
"""Names that are no variables of callers."""
INSTRUCTIONS = ("system", "developer")
"""Roles whose messages are instructions."""
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of reasoning; the first one that is given counts."""
_OTHER_REASONING = ("reasoning", "thought", "tool_plan")
"""Names of reasoning that few templates have."""
_TEXT_PARTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
}
"""Types of parts that are text, and the field that has it."""
_MAX_ROLES = 4
"""Roles unknown to OpenAI that a template is asked about, for each conversation."""

Message = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """What a caller says to a model."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Further names for the template, by OpenAI's servers called `chat_template_kwargs`."""


def prepared(
    asked: Conversation, traits: Traits, check: Callable[[], None] = nothing
) -> tuple[Conversation, tuple[str, ...]]:
    """A conversation as a template expects it, and warnings.

    `check` is called for each message, and may raise. TemplateError for what is no conversation:
    a message without a role, a content that is neither text nor parts, more than 100 lists around
    something, a value that JSON does not have. SettingsError for variables that cannot be.
    """
    _require_variables(asked.variables)
    for tool in asked.tools or ():
        _require_plain(tool, "a tool")
    messages = []
    for number, message in enumerate(asked.messages):
        check()
        messages.append(_message(message, number, traits))
    warnings = _warnings(asked, messages, traits)
    messages = _instructed(messages, traits)
    messages = [_with_content(it, traits) for it in messages]
    return replace(asked, messages=messages), warnings


# ---------------------------------------------------------------------- what may be in it


def _require_variables(variables: Mapping[str, Any]) -> None:
    if len(variables) > MAX_VARIABLES:
        raise SettingsError(
            f"a chat template takes up to {MAX_VARIABLES} variables, not {len(variables)}"
        )
    for name, value in variables.items():
        is_name = isinstance(name, str) and name.isidentifier() and len(name) <= MAX_NAME
        if not is_name or name.startswith("_") or name in RESERVED:
            raise SettingsError(
                f"no variable of a chat template can be called {str(name)[:MAX_NAME]!r}"
            )
        try:
            _require_plain(value, f"the variable {name!r}")
        except TemplateError as error:
            raise SettingsError(str(error)) from None


def _require_plain(value: Any, what: str) -> None:
    """TemplateError for what JSON does not have, or what is nested too deeply."""
    if isinstance(value, dict) and all(type(it) is str for it in value.values()):
        return  # as most messages are
    todo = [iter((value,))]
    while todo:
        for item in todo[-1]:
            if item is None or isinstance(item, str | int | float):
                continue
            if not isinstance(item, list | tuple | Mapping):
                raise TemplateError(f"{what} has a {type(item).__name__}, which is not JSON")
            if len(todo) > MAX_DEPTH:
                raise TemplateError(f"{what} is nested more than {MAX_DEPTH} deep")
            todo.append(_inside(item))
            break
        else:
            todo.pop()


def _inside(value: Any) -> Any:
    if isinstance(value, Mapping):
        return (it for pair in value.items() for it in pair)
    return iter(value)


# ---------------------------------------------------------------------- one message


def _message(given: Mapping[str, Any], number: int, traits: Traits) -> Message:
    if not isinstance(given, Mapping) or not isinstance(given.get("role"), str):
        raise TemplateError(f"message {number} of the conversation has no role")
    _require_plain(given, f"message {number} of the conversation")
    message = {name: it for name, it in given.items() if it is not None}
    content = message.get("content")
    if not isinstance(content, str | list | tuple | None):
        raise TemplateError(f"the content of message {number} is neither text nor a list of parts")
    if message["role"] == "assistant":
        message = _with_reasoning(message, traits)
        if not message.get("tool_calls"):
            message.pop("tool_calls", None)
        else:
            message = _with_calls(message, number, traits)
    elif traits.ids_are_short and isinstance(message.get("tool_call_id"), str):
        message["tool_call_id"] = _short_id(message["tool_call_id"])
    if "content" not in message and "tool_calls" not in message:
        message["content"] = ""
    return message


def _with_reasoning(message: Message, traits: Traits) -> Message:
    """A message whose reasoning has the names that Transformers gives it, or those of its own that
    the template reads instead."""
    reasoning = next((message[name] for name in _REASONING if name in message), None)
    if reasoning is None:
        return message
    usual, words = ("thinking", "reasoning_content"), traits.template.vocabulary.words
    message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    if words.isdisjoint(usual):
        message = {name: reasoning for name in _OTHER_REASONING if name in words} | message
    return message


def _with_calls(message: Message, number: int, traits: Traits) -> Message:
    """A message whose calls are as the template takes them."""
    calls = message["tool_calls"]
    if not isinstance(calls, list | tuple) or not all(isinstance(it, Mapping) for it in calls):
        raise TemplateError(f"tool_calls of message {number} is no list of calls")
    message = {**message, "tool_calls": [_call(it, traits) for it in calls]}
    if message.get("content"):
        return message
    given = Content.EMPTY if "content" in message else Content.ABSENT
    wanted = (given, *Content)
    taken = (it for it in wanted if it in traits.call_contents)
    return next(taken, Content.EMPTY).written(message)  # a template that drops calls wants a text


def _call(given: Mapping[str, Any], traits: Traits) -> Message:
    call = dict(given)
    if traits.ids_are_short and isinstance(call.get("id"), str):
        call["id"] = _short_id(call["id"])
    function = call.get("function")
    if isinstance(function, Mapping):
        arguments = _arguments(function.get("arguments"), traits)
        call["function"] = {**function, "arguments": arguments}
    return call


def _arguments(given: Any, traits: Traits) -> Any:
    """Arguments in the template's form: JSON's text if they are no mapping."""
    if traits.arguments_are_text:
        return given if isinstance(given, str) else json.dumps(given or {}, ensure_ascii=False)
    if given is None or given == "":
        return {}
    if not isinstance(given, str):
        return given
    try:
        found = json.loads(given, parse_constant=_refuse_constant, parse_float=_finite)
        _require_plain(found, "arguments")
    except (ValueError, RecursionError, TemplateError):
        return given
    return found if isinstance(found, dict) else given


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} has no JSON once it is a number")
    return number


def _short_id(name: str) -> str:
    """The nine letters and digits that stand for an id: itself if it is such."""
    if len(name) == 9 and name.isascii() and name.isalnum():
        return name
    return hashlib.sha256(name.encode(errors="replace")).hexdigest()[:9]


# ---------------------------------------------------------------------- contents


def _with_content(message: Message, traits: Traits) -> Message:
    """A message whose content is text or parts, whichever the template takes."""
    content, role = message.get("content"), message["role"]
    if isinstance(content, str):
        if not content or traits.takes_text(role) or not traits.takes_parts(role):
            return message
        return {**message, "content": [{"type": "text", "text": content}]}
    if content is None:
        return message
    if traits.takes_parts(role):
        return {**message, "content": [_part(it) for it in content]}
    return {**message, "content": text_of(content)}


def text_of(content: Any) -> str:
    """The text of a content, parts on lines of their own; TemplateError for parts without text."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = [_part(it) for it in content]
    for part in parts:
        if part["type"] != "text":
            raise TemplateError(
                f"the model's chat template takes no parts of the type {str(part['type'])[:40]!r}"
            )
    return "\n".join(part["text"] for part in parts)


def _part(given: Any) -> Message:
    """A part of a content; those that are text are of the type `text`."""
    if isinstance(given, str):
        return {"type": "text", "text": given}
    if not isinstance(given, Mapping) or not isinstance(given.get("type"), str):
        raise TemplateError("a part of a content has no type")
    name = _TEXT_PARTS.get(given["type"])
    if name is None:
        return dict(given)
    if not isinstance(given.get(name), str):
        raise TemplateError(f"a part of the type {given['type']!r} has no {name}")
    return {**given, "type": "text", "text": given[name]}


# ---------------------------------------------------------------------- instructions


def _instructed(messages: list[Message], traits: Traits) -> list[Message]:
    """The messages, with each instruction where the template shows it."""
    if not any(it["role"] in INSTRUCTIONS for it in messages):
        return messages
    if not (traits.has_system or traits.has_developer):
        return _in_first_turn(messages, traits)
    made: list[Message] = []
    joined: list[Message] = []
    head = _length_of_head(messages)
    for number, given in enumerate(messages):
        role = _role(given["role"], traits)
        is_moved, message = role != given["role"], {**given, "role": role}
        if role not in INSTRUCTIONS or number == 0:
            made.append(message)
        elif number < head:
            keeps = traits.takes_second_instruction and not is_moved and made[-1]["role"] == role
            _append_or_join(made, joined, message, keeps)
        else:
            _append_or_join(made, joined, message, traits.takes_later_instruction)
    return _with_joined(made, joined)


def _length_of_head(messages: list[Message]) -> int:
    """How many instructions there are before anything else."""
    each = enumerate(messages)
    return next((n for n, it in each if it["role"] not in INSTRUCTIONS), len(messages))


def _role(role: str, traits: Traits) -> str:
    """What the template calls a role."""
    if role == "developer" and not traits.has_developer:
        return "system"
    if role == "system" and not traits.has_system:
        return "developer"
    return role


def _append_or_join(
    made: list[Message], joined: list[Message], message: Message, keeps: bool
) -> None:
    """Puts an instruction behind the others, or among those that join the first one."""
    if keeps:
        made.append(message)
    else:
        joined.append(message)


def _with_joined(made: list[Message], joined: list[Message]) -> list[Message]:
    """The messages with some instructions in the first one, or before it if that is none."""
    if joined and made[0]["role"] not in INSTRUCTIONS:
        made, joined = [joined[0], *made], joined[1:]
    if not joined:
        return made
    first, *rest = made
    texts = [text_of(it.get("content")) for it in (first, *joined)]
    return [{**first, "content": "\n\n".join(it for it in texts if it)}, *rest]


def _in_first_turn(messages: list[Message], traits: Traits) -> list[Message]:
    """The messages, with all instructions before what the user says first."""
    said = [text_of(it.get("content")) for it in messages if it["role"] in INSTRUCTIONS]
    text = "\n\n".join(it for it in said if it)
    rest = [it for it in messages if it["role"] not in INSTRUCTIONS]
    turn = next((n for n, it in enumerate(rest) if it["role"] == "user"), None)
    if turn is None:
        return [{"role": "user", "content": text}, *rest]
    content = rest[turn].get("content")
    if text and not isinstance(content, str) and traits.takes_parts("user"):
        content = [{"type": "text", "text": f"{text}\n\n"}, *(content or ())]
    else:
        content = "\n\n".join(it for it in (text, text_of(content)) if it)
    rest[turn] = {**rest[turn], "content": content}
    return rest


# ---------------------------------------------------------------------- warnings


def _warnings(asked: Conversation, messages: list[Message], traits: Traits) -> tuple[str, ...]:
    """Sentences about what the template leaves out."""
    found = []
    if asked.tools and traits.tools is Fate.DROPPED:
        found.append("The model's chat template leaves out tools: the model does not see them.")
    for role in _roles(messages):
        if traits.fate(role) is Fate.DROPPED:
            found.append(
                f"The model's chat template leaves out messages of the role {role[:40]!r}: the "
                "model does not see them."
            )
    calls = [it for it in messages if "tool_calls" in it]
    beside = any(it.get("content") for it in calls)
    is_dropped = calls and traits.calls is Fate.DROPPED
    if is_dropped:
        found.append("The model's chat template leaves out the calls of tools in past answers.")
    elif beside and traits.calls_beside_text is Fate.DROPPED:
        found.append(
            "The model's chat template leaves out the calls of tools in past answers that have "
            "text as well."
        )
    for name in asked.variables:
        if name not in traits.template.vocabulary.names:
            found.append(f"The model's chat template reads no variable {name!r}.")
    return tuple(found)


def _roles(messages: list[Message]) -> list[str]:
    """Roles to ask about: those of instructions are never left out."""
    known, others = [], []
    for role in dict.fromkeys(it["role"] for it in messages):
        if role in ("user", "assistant", "tool", "function"):
            known.append(role)
        elif role not in INSTRUCTIONS:
            others.append(role)
    return known + others[:_MAX_ROLES]
