"""`/v1/models`, `/v1/chat/completions`, `/v1/completions`, as OpenAI has them."""

from __future__ import annotations

import asyncio
import re
import threading
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from isthmus.abi import GrammarKind
from isthmus.errors import Cancelled, SettingsError
from isthmus.model import Model
from isthmus.server.choices import ChatChoices, TextChoices
from isthmus.server.completion import Completer, End, Request, Token
from isthmus.server.endpoint import EVENTS, Endpoint, read_json
from isthmus.server.entry import current
from isthmus.server.errors import HttpError
from isthmus.server.events import DONE, event, respond, unless_left
from isthmus.server.fair import Threads
from isthmus.server.replies import ChatCompletion, ModelCard, ModelList, TextCompletion, Usage
from isthmus.server.requests import ChatRequest, Common, CompletionRequest, grammar_of
from isthmus.server.settings import ServerSettings
from isthmus.server.texts import Check, Texts, most_nbytes, require_room

_MOST_PROMPTS = 32
_TRIALS_AT_A_TIME = 2
"""Grammars that are tried out at the same time: seconds each, in a process of its own."""
_ID = re.compile(r"[0-9]{1,10}", re.ASCII)
_Served = TypeVar("_Served")


_chat_decoder = msgspec.json.Decoder(ChatRequest)
_completion_decoder = msgspec.json.Decoder(CompletionRequest)


class OpenAi:
    """The routes, over one completer for each model."""

    def __init__(
        self, completers: dict[str, Completer], settings: ServerSettings, texts: Texts
    ) -> None:
        self._completers = completers
        self._settings = settings
        self._created = int(time.time())
        self._texts = texts
        self._n_ctx = max((it.n_ctx for it in completers.values()), default=0)
        self._trials = Threads(_TRIALS_AT_A_TIME, "isthmus-trials", settings.waiting)

    def routes(self) -> list[Endpoint]:
        """For Starlette."""
        chat, text = (ChatCompletion, EVENTS), (TextCompletion, EVENTS)
        return [
            Endpoint("GET", "/v1/models", self.models, gives=(ModelList,)),
            Endpoint("GET", "/v1/models/{model:path}", self.model, gives=(ModelCard,)),
            Endpoint("POST", "/v1/chat/completions", self.chat, takes=ChatRequest, gives=chat),
            Endpoint("POST", "/v1/completions", self.complete, takes=CompletionRequest, gives=text),
        ]

    def close(self) -> None:
        """Waits for the threads, which use models."""
        self._trials.close()

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
        asked = await read_json(http, _chat_decoder, most=most_nbytes(self._n_ctx))
        completer = self._completer(asked.model)
        completer.require_room()
        request, forced = await self._texts.of(
            http, lambda check: self._chat_request(completer, asked, check)
        )
        await self._require_grammar(completer.model, request.grammar)
        answers = _Answers(asked, ChatChoices(completer.model, asked, forced))
        return await _respond(http, asked, completer, [request] * (asked.n or 1), answers)

    async def complete(self, http: HttpRequest) -> Response:
        """Text goes on."""
        most = most_nbytes(self._n_ctx * _MOST_PROMPTS)
        asked = await read_json(http, _completion_decoder, most=most)
        completer = self._completer(asked.model)
        completer.require_room()
        if asked.echo:
            raise SettingsError("echo is not supported")
        each = await self._texts.of(
            http, lambda check: self._text_requests(completer, asked, check)
        )
        if asked.grammar is not None:
            grammar = (GrammarKind.GBNF, asked.grammar)
            await self._require_grammar(completer.model, grammar)
            each = [replace(request, grammar=grammar) for request in each]
        requests = [request for request in each for _ in range(asked.n or 1)]
        answers = _Answers(asked, TextChoices(completer.model))
        return await _respond(http, asked, completer, requests, answers)

    async def _require_grammar(self, model: Model, grammar: tuple[GrammarKind, str] | None) -> None:
        """GrammarError, Overloaded. What one owner has tried keeps no other from trying."""
        if grammar is None:
            return
        gone = threading.Event()

        def check() -> None:
            if gone.is_set():
                raise Cancelled("the caller left")

        try:
            await self._trials.do(
                current().owner, partial(model.grammars.require, *grammar, check=check)
            )
        finally:
            gone.set()

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

    def _text_requests(
        self, completer: Completer, asked: CompletionRequest, check: Check
    ) -> list[Request]:
        """One for each prompt. In a thread."""
        model, n_ctx = completer.model, completer.n_ctx
        prompts = token_lists(model, asked.prompt, "prompt", _MOST_PROMPTS, n_ctx, check)
        return [
            self._request(asked, completer, prompt, asked.max_tokens or 16, asked.logprobs)
            for prompt in prompts
        ]

    def _chat_request(
        self, completer: Completer, asked: ChatRequest, check: Check
    ) -> tuple[Request, bool]:
        """The request, and whether the answer must be the call of a tool. In a thread."""
        model = completer.model
        require_room(len(asked.messages), completer.n_ctx)
        tools = None if asked.tool_choice == "none" else asked.tools
        prompt = model.chat_tokens(
            [message.as_dict() for message in asked.messages],
            tools=msgspec.to_builtins(tools) if tools else None,
            most=completer.n_ctx,
            check=check,
        )
        logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
        max_tokens = asked.max_completion_tokens or asked.max_tokens or self._settings.max_tokens
        request = self._request(asked, completer, prompt, max_tokens, logprobs)
        grammar, forced = grammar_of(asked)
        return replace(request, grammar=grammar), forced


def _bias(model: Model, given: dict[str, float]) -> tuple[tuple[int, float], ...]:
    """Token ids, which JSON has as texts, and what is added to their logits."""
    for text in given:
        if not _ID.fullmatch(text) or int(text) >= model.n_vocab:
            raise SettingsError(f"logit_bias: {text[:20]!r} is no id of {model.n_vocab} tokens")
    return tuple((int(text), number) for text, number in given.items())


def chosen(models: Mapping[str, _Served], name: str) -> _Served:
    """What serves the model that a request names."""
    if name not in models:
        said = f"there is no model {name!r}; there is {', '.join(models)}"
        raise HttpError(404, said, code="model_not_found", param="model")
    current().model = name
    return models[name]


def token_lists(
    model: Model, given: str | list[Any], param: str, most: int, n_ctx: int | None, check: Check
) -> list[list[int]]:
    """The ids of each of up to `most` texts: one text, one list of ids, or several of either.

    Control tokens in a text are text. ContextFull for one of more than `n_ctx` tokens.
    """
    if isinstance(given, str) or (given and all(isinstance(it, int) for it in given)):
        given = [given]
    if not 1 <= len(given) <= most or any(isinstance(it, int) for it in given):
        raise SettingsError(f"{param}: give a text, a list of ids, or 1 to {most} of them")
    encode = model.tokenizer.encode
    return [
        encode(it, add_special=True, most=n_ctx, check=check) if isinstance(it, str) else it
        for it in given
    ]


class _Answers:
    """All choices of one request, as one object or as a stream of chunks."""

    def __init__(self, asked: Common, kind: TextChoices | ChatChoices) -> None:
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
