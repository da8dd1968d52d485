"""Answers of chat completions and completions: all choices as one object, or as a stream."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from isthmus.server.generation.prepared import Prepared
from isthmus.server.generation.request import End
from isthmus.server.generation.together import gathered, merged
from isthmus.server.http.events import DONE, event, respond, unless_left
from isthmus.server.http.ids import random_id
from isthmus.server.openai.choices import ChatChoice, TextChoice
from isthmus.server.openai.replies import Usage
from isthmus.server.openai.requests import Common


class Answers:
    """One request's answers, each by one Prepared and told as one kind of choice."""

    def __init__(
        self,
        asked: Common,
        each: Sequence[Prepared],
        kind: type[TextChoice] | type[ChatChoice],
    ) -> None:
        self._asked = asked
        self._each = each
        self._kind = kind
        self._id = random_id(kind.prefix, 32)
        self._head = {"created": int(time.time()), "model": asked.model, "system_fingerprint": None}
        self._warnings = list(dict.fromkeys(said for it in each for said in it.warnings))

    async def respond(self, http: HttpRequest) -> Response:
        """The response, as the request wants it."""
        if self._asked.stream:
            return await respond(http, self._stream())
        works = [self._collect(index, it) for index, it in enumerate(self._each)]
        done = await unless_left(http, gathered(works))
        usage = self._usage({index: end for index, (_, end) in enumerate(done)})
        return JSONResponse(self._told(self._kind.object, [choice for choice, _ in done], usage))

    def _told(self, kind: str, choices: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
        told = {"id": self._id, "object": kind, **self._head, "choices": choices, "usage": usage}
        return {**told, "warnings": self._warnings} if self._warnings else told

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        head = {"id": self._id, "object": self._kind.chunk, **self._head}
        return event({**head, "choices": choices, **more})

    async def _collect(self, index: int, prepared: Prepared) -> tuple[dict[str, Any], End]:
        choice = self._kind(prepared)
        async with aclosing(prepared.steps()) as items:
            async for item in items:
                if isinstance(item, End):
                    return {"index": index, **choice.whole(item)}, item
                choice.add(item)
        raise AssertionError("an answer without an end")

    async def _stream(self) -> AsyncIterator[bytes]:
        """Events of all choices as they come."""
        choices = [self._kind(prepared) for prepared in self._each]
        ends: dict[int, End] = {}
        more: dict[str, Any] = {"warnings": self._warnings} if self._warnings else {}
        async for index, item in merged(self._each):
            choice = choices[index]
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
        if self._asked.stream_options is not None and self._asked.stream_options.include_usage:
            yield self._chunk([], usage=self._usage(ends))
        yield DONE

    def _usage(self, ends: dict[int, End]) -> Usage:
        """Tokens of all choices; a prompt that several choices have in common counts once."""
        prompts = {id(it.request.prompt): len(it.request.prompt) for it in self._each}
        n_prompt = sum(prompts.values())
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
        }
