"""What requests of OpenAI's chat completions and completions want of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn, Protocol

import msgspec

from isthmus.abi import GrammarKind
from isthmus.server.generation.media import MediaFiles
from isthmus.server.generation.wanted import (
    Sampling,
    Tool,
    ToolChoice,
    Wanted,
    schema_grammar,
    thinking_variables,
)
from isthmus.server.http.errors import HttpError
from isthmus.server.openai.requests import (
    AllowedTools,
    AudioPart,
    ChatMessage,
    ChatRequest,
    Common,
    ContentPart,
    ImagePart,
    NamedTool,
    ResponseFormat,
    TextPart,
)

_ALL = 2**31 - 1
"""`Sampling.repeat_last_n` for all tokens."""


def wanted_of(asked: ChatRequest) -> Wanted:
    """What a chat completion wants. HttpError 400, or SettingsError, if its parts contradict each
    other."""
    require_sensible(asked)
    if asked.top_logprobs and not asked.logprobs:
        _refuse("top_logprobs", "logprobs must be true for it")
    if None not in (most := {asked.max_completion_tokens, asked.max_tokens}) and len(most) > 1:
        _refuse("max_tokens", "it is another number than max_completion_tokens: give one")
    choice, files = _choice_of(asked), MediaFiles()
    messages = [message_of(it, files, f"messages[{i}]") for i, it in enumerate(asked.messages)]
    return Wanted(
        messages=tuple(messages),
        media=files.files,
        remote=files.remote,
        tools=choice.tools,
        tool_choice=choice.how,
        tool=choice.name,
        parallel=asked.parallel_tool_calls is not False,
        grammar=grammar_of(asked, response_format=_format_grammar(asked.response_format)),
        strict=_is_strict(asked.response_format),
        sampling=sampling_of(asked),
        max_tokens=asked.max_completion_tokens or asked.max_tokens,
        stop=stops_of(asked),
        logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
        variables=variables_of(asked.reasoning_effort, asked.chat_template_kwargs),
        thinking=asked.thinking_budget,
    )


def require_sensible(asked: Common) -> None:
    """HttpError 400 for wishes that cannot be had together."""
    if asked.stream_options is not None and not asked.stream:
        _refuse("stream_options", "stream must be true for it")
    if asked.repetition_penalty is not None and asked.repeat_penalty is not None:
        _refuse("repetition_penalty", "give repeat_penalty or repetition_penalty: not both")


def message_of(message: ChatMessage, files: MediaFiles, where: str) -> Mapping[str, Any]:
    """A turn with what was given of it, null included; `files` takes its pictures and sounds.

    HttpError 400, which says where in the request something is wrong.
    """
    names = ("role", "name", "tool_calls", "tool_call_id", "reasoning_content")
    given = {name: getattr(message, name) for name in names}
    found = {name: it for name, it in given.items() if it is not msgspec.UNSET}
    if message.reasoning is not None:
        found.setdefault("reasoning_content", message.reasoning)
    if isinstance(message.content, list):
        places = (f"{where}.content[{i}]" for i in range(len(message.content)))
        found["content"] = [
            _part_of(it, files, place) for it, place in zip(message.content, places, strict=True)
        ]
    elif not message.content and message.refusal is not None:
        found["content"] = message.refusal
    elif message.content is not msgspec.UNSET:
        found["content"] = message.content
    return found


def _part_of(part: ContentPart, files: MediaFiles, where: str) -> dict[str, Any]:
    if isinstance(part, ImagePart):
        return files.add_uri(part.image_url.url, f"{where}.image_url.url")
    if isinstance(part, AudioPart):
        return files.add_base64(part.input_audio.data, f"{where}.input_audio.data")
    return {"type": "text", "text": part.text if isinstance(part, TextPart) else part.refusal}


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
    def presence_penalty(self) -> float | None: ...
    @property
    def frequency_penalty(self) -> float | None: ...
    @property
    def seed(self) -> int | None: ...
    @property
    def logit_bias(self) -> dict[str, float] | None: ...
    @property
    def ignore_eos(self) -> bool | None: ...


def sampling_of(asked: Sampled) -> Sampling:
    """How tokens are chosen."""
    return Sampling(
        temperature=1.0 if asked.temperature is None else asked.temperature,
        top_k=max(asked.top_k or 0, 0),
        top_p=1.0 if asked.top_p is None else asked.top_p,
        min_p=asked.min_p or 0.0,
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        seed=asked.seed,
        bias=asked.logit_bias or {},
        ignore_eos=bool(asked.ignore_eos),
        **_repeating(asked),
    )


def stops_of(asked: Common) -> tuple[str, ...]:
    """Texts before which the answer ends."""
    return (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())


def grammar_of(
    asked: Common, **others: tuple[GrammarKind, str] | None
) -> tuple[GrammarKind, str] | None:
    """What the answer follows: what one of the fields says, `others` among them. HttpError 400 if
    several do."""
    schemas = {"json_schema": asked.json_schema, "guided_json": asked.guided_json}
    texts = {
        "grammar": (GrammarKind.GBNF, asked.grammar),
        "guided_regex": (GrammarKind.REGEX, asked.guided_regex),
    }
    given = {name: it for name, it in others.items() if it is not None}
    given |= {name: schema_grammar(it) for name, it in schemas.items() if it is not None}
    given |= {name: (kind, it) for name, (kind, it) in texts.items() if it is not None}
    if len(given) > 1:
        first, second = [*given][:2]
        _refuse(second, f"give {first} or {second}: not both")
    return next(iter(given.values()), None)


def variables_of(effort: str | None, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Variables of the chat template: those of an effort, and over them what a request gives."""
    thinks = None if effort is None else effort != "none"
    return {**thinking_variables(thinks=thinks, effort=effort), **(given or {})}


class _Choice(NamedTuple):
    tools: tuple[Tool, ...]
    how: ToolChoice
    name: str | None = None
    """The tool that must be called."""


def _choice_of(asked: ChatRequest) -> _Choice:
    tools = tuple(
        Tool(
            it.function.name,
            it.function.description,
            it.function.parameters,
            it.function.strict is True,
        )
        for it in asked.tools or ()
    )
    choice = asked.tool_choice
    if isinstance(choice, NamedTool):
        return _Choice(tools, ToolChoice.REQUIRED, choice.function.name)
    if isinstance(choice, AllowedTools):
        allowed = {it.function.name for it in choice.allowed_tools.tools}
        if unknown := sorted(allowed - {it.name for it in tools}):
            said = f"{unknown[0][:80]!r} is not among tools"
            _refuse("tool_choice.allowed_tools.tools", said)
        kept = tuple(it for it in tools if it.name in allowed)
        return _Choice(kept, ToolChoice(choice.allowed_tools.mode))
    return _Choice(tools, ToolChoice(choice or "auto"))


def _is_strict(it: ResponseFormat | None) -> bool:
    return it is not None and it.json_schema is not None and it.json_schema.strict is True


def _format_grammar(it: ResponseFormat | None) -> tuple[GrammarKind, str] | None:
    if it is None or it.type == "text":
        return None
    if it.type == "json_schema" and it.json_schema is None:
        _refuse("response_format.json_schema", "a format of json_schema needs it")
    schema = None if it.json_schema is None else it.json_schema.schema
    if it.type == "json_object":
        return schema_grammar({"type": "object"} if schema is None else schema)
    return schema_grammar(schema or {})


def _repeating(asked: Sampled) -> dict[str, Any]:
    """The parts of `Sampling` about recent tokens that come again."""
    found: dict[str, Any] = {"repeat_penalty": asked.repeat_penalty or 1.0}
    if not isinstance(asked, Common):
        return found
    if asked.repetition_penalty is not None:
        return {"repeat_penalty": asked.repetition_penalty, "repeat_last_n": _ALL}
    n = asked.repeat_last_n
    return found if n is None else {**found, "repeat_last_n": _ALL if n < 0 else n}


def _refuse(param: str, said: str) -> NoReturn:
    raise HttpError(400, f"{param}: {said}", param=param)
