"""Answers of chat completions and completions: all choices as one object, or as a stream."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from isthmus.server.generation.completer import Completer
from isthmus.server.generation.prepared import Prepared
from isthmus.server.generation.request import End
from isthmus.server.generation.together import gathered, merged
from isthmus.server.http.endpoint import encoded, written
from isthmus.server.http.errors import HttpError
from isthmus.server.http.events import DONE, event, respond, unless_left
from isthmus.server.http.ids import random_id
from isthmus.server.openai.choices import ChatChoice, TextChoice
from isthmus.server.openai.replies import Usage
from isthmus.server.openai.requests import Common


class Answers:
    """One request's answers, each by one Prepared and told as one choice."""

    def __init__(
        self,
        asked: Common,
        each: Sequence[Prepared],
        choices: Sequence[TextChoice | ChatChoice],
        n_made: int = 1,
        n_told: int = 1,
    ) -> None:
        self._asked = asked
        self._each = each
        self._choices = choices
        self._kind = type(choices[0])
        self._n_made, self._n_told = n_made, n_told
        """Of each `n_made` choices the best `n_told` are told. In a stream all are."""
        self._id = random_id(self._kind.prefix, 32)
        self._head = {"created": int(time.time()), "model": asked.model, "system_fingerprint": None}
        self._warnings = list(dict.fromkeys(said for it in each for said in it.warnings))

    async def respond(self, http: HttpRequest) -> Response:
        """The response, as the request wants it."""
        if self._asked.stream:
            return await respond(http, self._stream())
        pairs = zip(self._each, self._choices, strict=True)
        works = [_collect(prepared, choice) for prepared, choice in pairs]
        ends = dict(enumerate(await unless_left(http, gathered(works))))
        return await written(
            lambda: self._whole(ends), is_long=any(it.is_long for it in self._choices)
        )

    def _whole(self, ends: Mapping[int, End]) -> dict[str, Any]:
        """All choices as one object; in a thread if they may be long."""
        choices = [
            encoded({"index": place, **self._choices[index].whole(ends[index])})
            for place, index in enumerate(self._best())
        ]
        return self._told(self._kind.object, choices, self._usage(ends))

    def _best(self) -> list[int]:
        """Which choices are told: of each prompt's the most probable, for each token."""
        if self._n_told == self._n_made:
            return [*range(len(self._each))]
        found = []
        for first in range(0, len(self._each), self._n_made):
            group = range(first, first + self._n_made)
            ranked = sorted(group, key=lambda it: self._choices[it].mean_logprob, reverse=True)
            found += ranked[: self._n_told]
        return found

    def _told(self, kind: str, choices: Sequence[object], usage: Usage) -> dict[str, Any]:
        told = {"id": self._id, "object": kind, **self._head, "choices": choices, "usage": usage}
        return {**told, "warnings": self._warnings} if self._warnings else told

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        head = {"id": self._id, "object": self._kind.chunk, **self._head}
        usage: dict[str, Any] = {"usage": None} if self._tells_usage else {}
        return event({**head, "choices": choices, **usage, **more})

    @property
    def _tells_usage(self) -> bool:
        """Whether a stream ends with the tokens of all choices."""
        options = self._asked.stream_options
        return options is not None and bool(options.include_usage)

    async def _stream(self) -> AsyncIterator[bytes]:
        """Events of all choices as they come."""
        ends: dict[int, End] = {}
        more: dict[str, Any] = {"warnings": self._warnings} if self._warnings else {}
        async for index, item in merged(self._each):
            choice = self._choices[index]
            if item is None:
                parts = choice.begins()
            elif isinstance(item, End):
                ends[index] = item
                parts = choice.ends(item)
            else:
                parts = choice.parts(item)
            for part in parts:
                yield self._chunk([{"index": index, **part}], **more)
                more = {}
        if self._tells_usage:
            yield self._chunk([], usage=self._usage(ends))
        yield DONE

    def _usage(self, ends: Mapping[int, End]) -> Usage:
        """Tokens of all choices; a prompt that several choices have in common counts once."""
        prompts = {id(it.request.prompt): len(it.request.prompt) for it in self._each}
        n_prompt = sum(prompts.values()) + max((it.n_media for it in ends.values()), default=0)
        n_answer = sum(end.n_tokens for end in ends.values())
        cached: dict[int, int] = {}
        for index, end in ends.items():
            prompt = id(self._each[index].request.prompt)
            cached[prompt] = min(cached.get(prompt, end.n_cached), end.n_cached)
        return {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_answer,
            "total_tokens": n_prompt + n_answer,
            "prompt_tokens_details": {"cached_tokens": sum(cached.values())},
            "completion_tokens_details": {
                "reasoning_tokens": sum(it.n_thought for it in self._choices)
            },
        }


def require_places(completer: Completer, n_answers: int, param: str) -> None:
    """HttpError 400 for more answers than could be computed and wait together."""
    most = completer.most_answers
    if n_answers > most:
        said = f"{param}: the request wants {n_answers} answers; the server has room for {most}"
        raise HttpError(400, said, param=param)


async def _collect(prepared: Prepared, choice: TextChoice | ChatChoice) -> End:
    """Has the choice take all steps."""
    async with aclosing(prepared.steps()) as items:
        async for item in items:
            if isinstance(item, End):
                return item
            choice.add(item)
    raise AssertionError("an answer without an end")
