"""`/v1/models`, `/v1/chat/completions`, `/v1/completions`, as OpenAI has them.

What a client sends and is not known here is ignored, as OpenAI's own server does with old clients.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from isthmus.abi import GrammarKind
from isthmus.errors import SettingsError
from isthmus.model import Model
from isthmus.server.completion import Completer, End, Request, Token
from isthmus.server.endpoint import EVENTS, Endpoint
from isthmus.server.entry import current
from isthmus.server.errors import HttpError
from isthmus.server.events import DONE, event, respond, unless_left
from isthmus.server.replies import (
    AnsweredMessage,
    CalledFunction,
    ChatAnswer,
    ChatCompletion,
    ChatLogprobs,
    ModelCard,
    ModelList,
    TextAnswer,
    TextCompletion,
    TextLogprobs,
    ToolCall,
    TopLogprob,
    Usage,
)
from isthmus.server.settings import ServerSettings

_Bias = Annotated[float, Meta(ge=-100, le=100)]
_Temperature = Annotated[float, Meta(ge=0, le=100)]
_Share = Annotated[float, Meta(gt=0, le=1)]
_Choices = Annotated[int, Meta(ge=1, le=32)]
_MaxTokens = Annotated[int, Meta(ge=1, le=2**31 - 1)]
_TopLogprobs = Annotated[int, Meta(ge=0, le=20)]
_Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_TOOL_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)
_MOST_PROMPTS = 32
_Served = TypeVar("_Served")
_NO_ARGUMENTS = {"type": "object", "properties": {}}


class StreamOptions(Struct):
    """`stream_options`."""

    include_usage: bool = False


class Common(Struct, kw_only=True):
    """What both kinds of completion take."""

    model: str
    max_tokens: _MaxTokens | None = None
    temperature: _Temperature | None = None
    top_p: _Share | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    logit_bias: Annotated[dict[str, _Bias], Meta(max_length=300)] | None = None
    ignore_eos: bool = False
    grammar: str | None = None
    n: _Choices | None = None
    seed: _Seed | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class TextPart(Struct, tag="text", tag_field="type"):
    """Part of a message's content."""

    text: str


class ChatMessage(Struct, kw_only=True):
    """One turn."""

    role: str
    content: str | list[TextPart] | None = None
    name: str | UnsetType = UNSET
    tool_calls: list[dict[str, Any]] | UnsetType = UNSET
    tool_call_id: str | UnsetType = UNSET

    def as_dict(self) -> dict[str, Any]:
        """As a chat template takes it."""
        content = self.content
        text = content if isinstance(content, str) else "".join(it.text for it in content or ())
        found = {"role": self.role, "content": text}
        for name in ("name", "tool_calls", "tool_call_id"):
            if getattr(self, name) is not UNSET:
                found[name] = getattr(self, name)
        return found


class JsonSchema(Struct, kw_only=True):
    """`response_format.json_schema`."""

    name: str = ""
    schema: dict[str, Any] = {}


class ResponseFormat(Struct, kw_only=True):
    """`response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Function(Struct, kw_only=True):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Struct, kw_only=True):
    """`tools`."""

    type: Literal["function"]
    function: Function


class FunctionName(Struct):
    """Of the tool that must be called."""

    name: str


class ToolChoice(Struct, kw_only=True):
    """`tool_choice` that names one."""

    type: Literal["function"] = "function"
    function: FunctionName


class ChatRequest(Common, kw_only=True):
    """`/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: _MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: _TopLogprobs | None = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None


class CompletionRequest(Common, kw_only=True):
    """`/v1/completions`."""

    prompt: str | list[str | int | list[int]]
    logprobs: _TopLogprobs | None = None
    echo: bool | None = None


_chat_decoder = msgspec.json.Decoder(ChatRequest)
_completion_decoder = msgspec.json.Decoder(CompletionRequest)


class OpenAi:
    """The routes, over one completer for each model."""

    def __init__(self, completers: dict[str, Completer], settings: ServerSettings) -> None:
        self._completers = completers
        self._settings = settings
        self._created = int(time.time())

    def routes(self) -> list[Endpoint]:
        """For Starlette."""
        chat, text = (ChatCompletion, EVENTS), (TextCompletion, EVENTS)
        return [
            Endpoint("GET", "/v1/models", self.models, gives=(ModelList,)),
            Endpoint("GET", "/v1/models/{model:path}", self.model, gives=(ModelCard,)),
            Endpoint("POST", "/v1/chat/completions", self.chat, takes=ChatRequest, gives=chat),
            Endpoint("POST", "/v1/completions", self.complete, takes=CompletionRequest, gives=text),
        ]

    # ------------------------------------------------------------------ models

    async def models(self, _request: HttpRequest) -> Response:
        """The models that requests may name."""
        cards = [self._card(it) for it in self._completers]
        listed: ModelList = {"object": "list", "data": cards}
        return JSONResponse(listed)

    async def model(self, request: HttpRequest) -> Response:
        """One of them."""
        chosen(self._completers, request.path_params["model"])
        return JSONResponse(self._card(request.path_params["model"]))

    def _card(self, name: str) -> ModelCard:
        completer = self._completers[name]
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "isthmus",
            "n_ctx": completer.n_ctx,
            "makes_text": completer.model.generates,
            "n_embd": completer.model.hparams.n_embd if completer.model.embeds else None,
        }

    def _completer(self, name: str) -> Completer:
        completer = chosen(self._completers, name)
        if not completer.model.generates:
            said = f"the model {name} makes embeddings and no text: POST /v1/embeddings"
            raise HttpError(400, said, code="unsupported", param="model")
        return completer

    # ------------------------------------------------------------------ completions

    async def chat(self, http: HttpRequest) -> Response:
        """A conversation goes on."""
        asked = _chat_decoder.decode(await http.body())
        completer = self._completer(asked.model)
        completer.require_room()
        request, forced = await asyncio.to_thread(self._chat_request, completer, asked)
        answers = _Answers(asked, _Chat(completer.model, asked, forced))
        return await _respond(http, asked, completer, [request] * (asked.n or 1), answers)

    async def complete(self, http: HttpRequest) -> Response:
        """Text goes on."""
        asked = _completion_decoder.decode(await http.body())
        completer = self._completer(asked.model)
        prompts = token_lists(completer.model, asked.prompt, "prompt", _MOST_PROMPTS)
        if asked.echo:
            raise SettingsError("echo is not supported")
        each = [
            self._request(asked, completer, prompt, asked.max_tokens or 16, asked.logprobs)
            for prompt in prompts
        ]
        if asked.grammar is not None:
            grammar = (GrammarKind.GBNF, asked.grammar)
            await asyncio.to_thread(completer.model.grammars.require, *grammar)
            each = [replace(request, grammar=grammar) for request in each]
        requests = [request for request in each for _ in range(asked.n or 1)]
        answers = _Answers(asked, _Text(completer.model))
        return await _respond(http, asked, completer, requests, answers)

    def _request(
        self,
        asked: Common,
        completer: Completer,
        prompt: list[int],
        max_tokens: int,
        logprobs: int | None,
    ) -> Request:
        for token in (min(prompt), max(prompt)) if prompt else ():
            completer.model.require_token(token)
        if not prompt:
            raise SettingsError("the prompt is empty")
        stop = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
        if len(stop) > 16 or not all(stop):
            raise SettingsError("stop: give at most 16 texts, none of them empty")
        return Request(
            prompt=prompt,
            max_tokens=max_tokens,
            temperature=1.0 if asked.temperature is None else asked.temperature,
            top_k=asked.top_k or 0,
            top_p=asked.top_p or 1.0,
            min_p=asked.min_p or 0.0,
            repeat_penalty=asked.repeat_penalty or 1.0,
            seed=asked.seed,
            logprobs=logprobs,
            stop=stop,
            bias=_bias(completer.model, asked.logit_bias or {}),
            ignore_eos=asked.ignore_eos,
        )

    def _chat_request(self, completer: Completer, asked: ChatRequest) -> tuple[Request, bool]:
        """The request, and whether the answer must be the call of a tool. In a thread: it takes
        milliseconds to write and tokenize a long conversation."""
        model = completer.model
        tools = None if asked.tool_choice == "none" else asked.tools
        text = model.format_chat(
            [message.as_dict() for message in asked.messages],
            tools=msgspec.to_builtins(tools) if tools else None,
        )
        prompt = model.tokenizer.encode(text, add_special=True, parse_special=True)
        if len(prompt) > 1 and prompt[0] == prompt[1] == model.tokenizer.bos:
            del prompt[0]  # the template wrote it too
        logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
        max_tokens = asked.max_completion_tokens or asked.max_tokens or self._settings.max_tokens
        request = self._request(asked, completer, prompt, max_tokens, logprobs)
        grammar, forced = _grammar_of(asked)
        if grammar is not None:
            model.grammars.require(*grammar)
        return replace(request, grammar=grammar), forced


def _bias(model: Model, given: dict[str, float]) -> tuple[tuple[int, float], ...]:
    """Token ids, which JSON has as texts, and what is added to their logits."""
    for text in given:
        if not text.isdecimal() or int(text) >= model.n_vocab:
            raise SettingsError(f"logit_bias: {text!r} is no id of {model.n_vocab} tokens")
    return tuple((int(text), number) for text, number in given.items())


def chosen(models: Mapping[str, _Served], name: str) -> _Served:
    """What serves the model that a request names."""
    if name not in models:
        said = f"there is no model {name!r}; there is {', '.join(models)}"
        raise HttpError(404, said, code="model_not_found", param="model")
    current().model = name
    return models[name]


def token_lists(model: Model, given: str | list[Any], param: str, most: int) -> list[list[int]]:
    """The ids of each of up to `most` texts: one text, one list of ids, or several of either."""
    if isinstance(given, str) or (given and all(isinstance(it, int) for it in given)):
        given = [given]
    if not 1 <= len(given) <= most or any(isinstance(it, int) for it in given):
        raise SettingsError(f"{param}: give a text, a list of ids, or 1 to {most} of them")
    encode = model.tokenizer.encode
    return [encode(it, add_special=True) if isinstance(it, str) else it for it in given]


def _grammar_of(asked: ChatRequest) -> tuple[tuple[GrammarKind, str] | None, bool]:
    """What the answer follows, if anything, and whether that is the call of a tool."""
    schema = _schema_of_tools(asked)
    forced = schema is not None
    if schema is None and asked.response_format is not None:
        schema = _schema_of_format(asked.response_format)
    if asked.grammar is not None:
        if schema is not None:
            raise SettingsError("give grammar, or response_format, or tool_choice: not several")
        return (GrammarKind.GBNF, asked.grammar), False
    return (None if schema is None else (GrammarKind.JSON_SCHEMA, json.dumps(schema))), forced


def _schema_of_format(it: ResponseFormat) -> dict[str, Any] | None:
    if it.type == "text":
        return None
    if it.type == "json_schema" and it.json_schema is None:
        raise SettingsError("response_format of json_schema needs json_schema")
    return it.json_schema.schema if it.json_schema else {"type": "object"}


def _schema_of_tools(asked: ChatRequest) -> dict[str, Any] | None:
    """Of the call, where one must be made."""
    choice = asked.tool_choice
    if choice in (None, "none", "auto"):
        return None
    name = choice.function.name if isinstance(choice, ToolChoice) else None
    tools = [it.function for it in asked.tools or () if name in (None, it.function.name)]
    if not tools:
        raise SettingsError("tool_choice wants a tool that is not among tools")
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": it.name},
                "arguments": {"additionalProperties": False, **(it.parameters or _NO_ARGUMENTS)},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for it in tools
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


# ---------------------------------------------------------------------------------- answers


class _Text:
    """Choices of `/v1/completions`."""

    object = "text_completion"
    chunk = "text_completion"
    prefix = "cmpl-"

    def __init__(self, model: Model) -> None:
        self._model = model

    def whole(self, tokens: list[Token], reason: str) -> TextAnswer:
        """A choice at its end."""
        text = "".join(token.text for token in tokens)
        return {"text": text, "finish_reason": reason, "logprobs": self.logprobs(tokens)}

    def begins(self) -> dict[str, Any] | None:
        """What comes before the first token."""
        return None

    def part(self, token: Token) -> dict[str, Any] | None:
        """What one more token adds."""
        return {"text": token.text, "finish_reason": None, "logprobs": self.logprobs([token])}

    def ends(self, _tokens: list[Token], reason: str) -> list[dict[str, Any]]:
        """What comes after the last token."""
        return [{"text": "", "finish_reason": reason, "logprobs": None}]

    def logprobs(self, tokens: list[Token]) -> TextLogprobs | None:
        """In the form that this endpoint has."""
        told = [token for token in tokens if token.logprob is not None]
        if not told:
            return None
        return {
            "tokens": [_text(self._model, token.id) for token in told],
            "token_logprobs": [token.logprob for token in told],
            "top_logprobs": [{_text(self._model, a): b for a, b in token.top} for token in told],
            "text_offset": [],
        }


class _Chat:
    """Choices of `/v1/chat/completions`."""

    object = "chat.completion"
    chunk = "chat.completion.chunk"
    prefix = "chatcmpl-"

    def __init__(self, model: Model, asked: ChatRequest, forced: bool) -> None:
        self._model = model
        self._forced = forced
        self._tools = bool(asked.tools) and asked.tool_choice != "none"
        self._held: dict[int, str] = {}

    def whole(self, tokens: list[Token], reason: str) -> ChatAnswer:
        """A choice at its end."""
        text, calls = self._calls("".join(token.text for token in tokens))
        message: AnsweredMessage = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message["tool_calls"] = calls
            reason = "tool_calls"
        return {"message": message, "finish_reason": reason, "logprobs": self.logprobs(tokens)}

    def begins(self) -> dict[str, Any] | None:
        """What comes before the first token."""
        return {"delta": {"role": "assistant", "content": ""}, "finish_reason": None}

    def part(self, token: Token) -> dict[str, Any] | None:
        """What one more token adds; with tools everything is told at the end, when it is known."""
        if self._tools or self._forced:
            return None
        return {
            "delta": {"content": token.text},
            "finish_reason": None,
            "logprobs": self.logprobs([token]),
        }

    def ends(self, tokens: list[Token], reason: str) -> list[dict[str, Any]]:
        """What comes after the last token."""
        parts: list[dict[str, Any]] = []
        if self._tools or self._forced:
            text, calls = self._calls("".join(token.text for token in tokens))
            if text:
                parts.append({"delta": {"content": text}, "finish_reason": None})
            if calls:
                numbered = [{"index": index, **call} for index, call in enumerate(calls)]
                parts.append({"delta": {"tool_calls": numbered}, "finish_reason": None})
                reason = "tool_calls"
        return [*parts, {"delta": {}, "finish_reason": reason}]

    def logprobs(self, tokens: list[Token]) -> ChatLogprobs | None:
        """In the form that this endpoint has."""
        told = [token for token in tokens if token.logprob is not None]
        if not told:
            return None
        return {
            "content": [
                {
                    **self._logprob(token.id, token.logprob),
                    "top_logprobs": [self._logprob(a, b) for a, b in token.top],
                }
                for token in told
            ]
        }

    def _logprob(self, token: int, logprob: float | None) -> TopLogprob:
        data = self._model.tokenizer.decode([token], render_special=True)
        return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}

    def _calls(self, text: str) -> tuple[str | None, list[ToolCall]]:
        """The text without the calls of tools in it, and those: in the form of Hermes and Qwen,
        `<tool_call>{"name": …, "arguments": …}</tool_call>`, or all of it where one must be.
        """
        if not (self._tools or self._forced):
            return text, []
        found = [text] if self._forced else _TOOL_CALL.findall(text)
        calls = [call for call in map(_call, found) if call is not None]
        if not calls:
            return text, []
        return (None if self._forced else _TOOL_CALL.sub("", text).strip() or None), calls


def _call(text: str) -> ToolCall | None:
    try:
        said = json.loads(text)
        arguments = json.dumps(said["arguments"], ensure_ascii=False)
        function: CalledFunction = {"name": str(said["name"]), "arguments": arguments}
    except (ValueError, KeyError, TypeError):
        return None
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _text(model: Model, token: int) -> str:
    return model.tokenizer.decode([token], render_special=True).decode(errors="replace")


class _Answers:
    """All choices of one request, as one object or as a stream of chunks."""

    def __init__(self, asked: Common, kind: _Text | _Chat) -> None:
        self.kind = kind
        self._head = {"created": int(time.time()), "model": asked.model, "system_fingerprint": None}
        self._id = kind.prefix + uuid.uuid4().hex

    def whole(self, choices: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
        """The whole answer."""
        return {
            "id": self._id,
            "object": self.kind.object,
            **self._head,
            "choices": choices,
            "usage": usage,
        }

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        """An event."""
        return event(
            {"id": self._id, "object": self.kind.chunk, **self._head, "choices": choices, **more}
        )


async def _respond(
    http: HttpRequest,
    asked: Common,
    completer: Completer,
    requests: list[Request],
    answers: _Answers,
) -> Response:
    if asked.stream:
        return await respond(http, _stream(asked, completer, requests, answers))
    done = await unless_left(http, _gather([_collect(completer, request) for request in requests]))
    choices = [
        {"index": index, **answers.kind.whole(tokens, end.reason)}
        for index, (tokens, end) in enumerate(done)
    ]
    return JSONResponse(answers.whole(choices, _usage(requests, [end for _, end in done])))


async def _collect(completer: Completer, request: Request) -> tuple[list[Token], End]:
    tokens: list[Token] = []
    async with aclosing(completer.complete(request)) as items:
        async for item in items:
            if isinstance(item, End):
                return tokens, item
            tokens.append(item)
    raise AssertionError("an answer without an end")


async def _gather(works: list[Any]) -> list[Any]:
    """All results; where one fails the others are ended."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def _stream(
    asked: Common, completer: Completer, requests: list[Request], answers: _Answers
) -> AsyncIterator[bytes]:
    """Events of all choices as they come; with several of them, in the order of their tokens."""
    ends: list[End] = []
    async for index, item, tokens in _merged(completer, requests):
        if item is None:
            begins = answers.kind.begins()
            if begins is not None:
                yield answers.chunk([{"index": index, **begins}])
        elif isinstance(item, Token):
            part = answers.kind.part(item)
            if part is not None and (item.text or item.logprob is not None):
                yield answers.chunk([{"index": index, **part}])
        else:
            ends.append(item)
            for part in answers.kind.ends(tokens, item.reason):
                yield answers.chunk([{"index": index, **part}])
    if asked.stream_options is not None and asked.stream_options.include_usage:
        yield answers.chunk([], usage=_usage(requests, ends))
    yield DONE


async def _merged(
    completer: Completer, requests: list[Request]
) -> AsyncGenerator[tuple[int, Token | End | None, list[Token]]]:
    """What all requests give, as it comes: None first, then tokens, then the end of each."""
    if len(requests) == 1:
        async with aclosing(_numbered(completer, 0, requests[0])) as items:
            async for item in items:
                yield item
        return
    queue: asyncio.Queue[tuple[int, Token | End | None, list[Token]] | Exception] = asyncio.Queue()

    async def feed(index: int, request: Request) -> None:
        try:
            async with aclosing(_numbered(completer, index, request)) as items:
                async for item in items:
                    queue.put_nowait(item)
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.ensure_future(feed(i, request)) for i, request in enumerate(requests)]
    left = len(tasks)
    try:
        while left:
            came = await queue.get()
            if isinstance(came, Exception):
                raise came
            left -= isinstance(came[1], End)
            yield came
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _numbered(
    completer: Completer, index: int, request: Request
) -> AsyncGenerator[tuple[int, Token | End | None, list[Token]]]:
    """What one request gives, with its number and its tokens until then."""
    mine: list[Token] = []
    begun = False
    async with aclosing(completer.complete(request)) as items:
        async for item in items:
            if not begun:
                yield index, None, mine
                begun = True
            if isinstance(item, Token):
                mine.append(item)
            yield index, item, mine


def _usage(requests: list[Request], ends: list[End]) -> Usage:
    n_in = sum({id(it.prompt): len(it.prompt) for it in requests}.values())
    n_out = sum(end.n_tokens for end in ends)
    n_cached = sum(end.n_cached for end in ends)
    return {
        "prompt_tokens": n_in,
        "completion_tokens": n_out,
        "total_tokens": n_in + n_out,
        "prompt_tokens_details": {"cached_tokens": n_cached},
    }
