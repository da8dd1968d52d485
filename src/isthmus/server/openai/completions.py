"""`/v1/completions`: text goes on, without a conversation."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from isthmus.errors import SettingsError
from isthmus.model import Model
from isthmus.server.generation.completer import Completer
from isthmus.server.generation.infill import gap_prompt, require_infill
from isthmus.server.generation.prepared import Prepared
from isthmus.server.generation.request import Request
from isthmus.server.generation.wanted import Wanted
from isthmus.server.generation.writer import Writer
from isthmus.server.http.endpoint import Endpoint
from isthmus.server.http.entry import current
from isthmus.server.http.errors import HttpError
from isthmus.server.http.events import EVENTS
from isthmus.server.http.strict import read_wanted
from isthmus.server.http.texts import Check, most_nbytes
from isthmus.server.openai.answers import Answers, require_places
from isthmus.server.openai.choices import Echo, TextChoice
from isthmus.server.openai.fields import COMPLETION_TABLES, COMPLETIONS
from isthmus.server.openai.replies import TextCompletion
from isthmus.server.openai.requests import CompletionRequest
from isthmus.server.openai.translate import (
    grammar_of,
    require_sensible,
    sampling_of,
    stops_of,
)

_MAX_PROMPTS = 32
_MAX_TOKENS = 16
"""Tokens of an answer if the request does not say, as OpenAI has it."""
_decoder = msgspec.json.Decoder(CompletionRequest)


class _Endpoint(Endpoint):
    tables = MappingProxyType({CompletionRequest: COMPLETIONS})


class Completions:
    """The route."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def routes(self) -> list[Endpoint]:
        """For Starlette."""
        gives = (TextCompletion, EVENTS)
        path = "/v1/completions"
        return [_Endpoint("POST", path, self.complete, takes=CompletionRequest, gives=gives)]

    async def complete(self, http: HttpRequest) -> Response:
        """Text goes on."""
        writer = self._writer
        most = most_nbytes(writer.n_ctx * _MAX_PROMPTS)
        asked, order = await read_wanted(http, _decoder, COMPLETION_TABLES, _order_of, most)
        completer = await writer.completer(http, asked.model)
        completer.require_room()
        if asked.suffix:
            require_infill(completer.model, "suffix")
        prompts = await writer.texts.of(
            http, lambda check: _prompts(writer, completer, asked, order.wanted, check)
        )
        param = "n" if asked.best_of is None else "best_of"
        require_places(completer, len(prompts) * order.n_made, param)
        said = await writer.require_grammar(completer.model, order.wanted.grammar)
        current().warn(said)
        each: list[Prepared] = []
        choices: list[TextChoice] = []
        for prompt in prompts:
            prepared = Prepared(asked.model, completer, prompt.request, warnings=said)
            for index in range(order.n_made):
                each.append(prepared.numbered(index))
                tells = asked.logprobs is not None
                choices.append(TextChoice(each[-1], echo=prompt.echo, tells_logprobs=tells))
        answers = Answers(asked, each, choices, order.n_made, order.n_told)
        return await answers.respond(http)


class _Order(NamedTuple):
    """What a request wants, and how many answers of each prompt are made and told."""

    wanted: Wanted
    n_made: int
    n_told: int


class _Prompt(NamedTuple):
    request: Request
    echo: Echo | None


def _prompts(
    writer: Writer, completer: Completer, asked: CompletionRequest, wanted: Wanted, check: Check
) -> list[_Prompt]:
    """What is computed for each prompt, and what is told of it before the answer."""
    scores = bool(asked.echo) and asked.logprobs is not None
    found: list[_Prompt] = []
    for ids, text in _texts(completer, asked, check):
        check()
        request = replace(writer.request(completer, ids, wanted), scores_prompt=scores)
        echo = Echo.of(completer.model, ids, text, with_offsets=scores) if asked.echo else None
        found.append(_Prompt(request, echo))
    return found


def _texts(
    completer: Completer, asked: CompletionRequest, check: Check
) -> list[tuple[list[int], str | None]]:
    """The ids of each prompt, and its text if one was given; those of gaps if there is a suffix.
    An empty text becomes the token with which texts begin, or else end."""
    tokenizer = completer.model.tokenizer
    given = "" if asked.prompt is None else asked.prompt
    if asked.suffix:
        gaps = listed(given, "prompt", _MAX_PROMPTS)
        return [(gap_prompt(completer, it, asked.suffix, check), None) for it in gaps]
    lists = token_lists(completer.model, given, "prompt", _MAX_PROMPTS, completer.n_ctx, check)
    texts = [given] if isinstance(given, str) else given
    begin = [it for it in (tokenizer.bos, tokenizer.eos) if it >= 0][:1]
    if isinstance(texts[0], int):
        return [(lists[0], None)]
    return [
        (ids or begin, text) if isinstance(text, str) else (ids, None)
        for ids, text in zip(lists, texts, strict=True)
    ]


def _order_of(asked: CompletionRequest) -> _Order:
    """What a request wants. HttpError 400."""
    n_made, n_told = _numbers_of(asked)
    return _Order(_wanted_of(asked, is_ranked=n_made > n_told), n_made, n_told)


def _numbers_of(asked: CompletionRequest) -> tuple[int, int]:
    """How many answers each prompt has, and how many of them are told. HttpError 400."""
    require_sensible(asked)
    n = asked.n or 1
    n_made = n if asked.best_of is None else asked.best_of
    if n_made < n:
        raise HttpError(400, f"best_of: it is less than n, {n}", param="best_of")
    if n_made > n and asked.stream:
        said = "best_of: which answer is the best is known at the end: do not stream it"
        raise HttpError(400, said, param="best_of")
    return n_made, n


def _wanted_of(asked: CompletionRequest, *, is_ranked: bool) -> Wanted:
    logprobs = 0 if is_ranked and asked.logprobs is None else asked.logprobs
    return Wanted(
        messages=(),
        grammar=grammar_of(asked),
        sampling=sampling_of(asked),
        max_tokens=_MAX_TOKENS if asked.max_tokens is None else asked.max_tokens,
        stop=stops_of(asked),
        logprobs=logprobs,
    )


def listed(given: str | list[Any], param: str, most: int) -> list[str | list[int]]:
    """Up to `most` texts or lists of ids, of which one may be given by itself. SettingsError."""
    if isinstance(given, str) or (given and all(isinstance(it, int) for it in given)):
        given = [given]
    if not 1 <= len(given) <= most or any(isinstance(it, int) for it in given):
        raise SettingsError(f"{param}: give a text, a list of ids, or 1 to {most} of them")
    return given


def token_lists(
    model: Model, given: str | list[Any], param: str, most: int, n_ctx: int | None, check: Check
) -> list[list[int]]:
    """The ids of each of up to `most` texts: one text, one list of ids, or several of either.

    Control tokens in a text are text. ContextFull for one of more than `n_ctx` tokens.
    """
    encode = model.tokenizer.encode
    return [
        encode(it, add_special=True, most=n_ctx, check=check) if isinstance(it, str) else it
        for it in listed(given, param, most)
    ]
