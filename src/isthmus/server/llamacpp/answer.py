"""Answers as llama.cpp's server tells them: objects, or events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from isthmus.model import Model
from isthmus.model.forms import Text
from isthmus.server.generation.prepared import Prepared, Step
from isthmus.server.generation.request import End
from isthmus.server.generation.together import gathered, merged
from isthmus.server.generation.tokens import Token
from isthmus.server.http.endpoint import encoded, written
from isthmus.server.http.events import event, respond, unless_left
from isthmus.server.llamacpp.replies import CompletionReply, Prob, Timings, TokenProb
from isthmus.server.llamacpp.requests import Sampled
from isthmus.server.llamacpp.translate import settings_of

_NO_SLOT = -1
_MAX_TOKENS = 2048
"""Tokens of prompts that the event loop turns into text again: in a millisecond."""


@dataclass(frozen=True)
class Telling:
    """How the answers of one request are told, beside what they are."""

    asked: Sampled
    warnings: tuple[str, ...] = ()
    is_cut: bool = False
    """Whether something around a gap was left out."""

    def fields(self, told: CompletionReply) -> dict[str, Any]:
        """The fields that are wanted; of `a/b` the field `b` of `a`, if there is one."""
        if not self.asked.response_fields:
            return {**told}
        found: dict[str, Any] = {}
        for name in self.asked.response_fields:
            value: Any = told
            *_, last = parts = name.split("/")
            for part in parts:
                if not isinstance(value, dict) or part not in value:
                    break
                value = value[part]
            else:
                found[last] = value
        return found


@dataclass
class _One:
    """One answer, as it comes."""

    index: int
    prepared: Prepared
    telling: Telling
    began: float = field(default_factory=time.perf_counter)
    first: float | None = None
    """When the first token came."""
    text: list[str] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)

    def take(self, step: Step) -> str:
        """Takes one more step. What it adds to the text."""
        if self.first is None:
            self.first = time.perf_counter()
        added = "".join(it.text for it in step.events if isinstance(it, Text))
        self.text.append(added)
        if step.token is not None and step.token.id >= 0:
            self.tokens.append(step.token)
        return added

    def part(self, step: Step) -> CompletionReply | None:
        """What a stream tells of one more step; None if that is nothing."""
        before = len(self.tokens)
        added = self.take(step)
        new = self.tokens[before:]
        if not added and not new:
            return None
        told = self._head(added, new)
        told["stop"] = False
        return told

    def whole(self, end: End, *, streamed: bool) -> CompletionReply:
        """The answer at its end. Its text and tokens are told already if it is streamed."""
        told = self._head("" if streamed else "".join(self.text), [] if streamed else self.tokens)
        if not streamed and not self.telling.asked.return_tokens:
            told["tokens"] = []
        request, model = self.prepared.request, self.prepared.completer.model
        data = model.tokenizer.decode(request.prompt, render_special=True)
        stop_type = "word" if end.stop is not None else "eos" if end.reason == "stop" else "limit"
        told |= {
            "id_slot": _NO_SLOT,
            "stop": True,
            "model": self.prepared.model,
            "generation_settings": self._settings(),
            "prompt": data.decode(errors="replace"),
            "has_new_line": any("\n" in it for it in self.text),
            "truncated": self.telling.is_cut or self._is_full(end),
            "stop_type": stop_type,  # type: ignore[typeddict-item]
            "stopping_word": end.stop or "",
            "tokens_cached": end.n_cached,
            "timings": self._timings(end),
        }
        if self.telling.warnings:
            told["warnings"] = [*self.telling.warnings]
        return told

    def _head(self, text: str, tokens: Sequence[Token]) -> CompletionReply:
        told: CompletionReply = {
            "index": self.index,
            "content": text,
            "tokens": [it.id for it in tokens],
            "tokens_predicted": len(self.tokens),
            "tokens_evaluated": len(self.prepared.request.prompt),
        }
        if self.telling.asked.n_probs and tokens:
            model = self.prepared.completer.model
            told["completion_probabilities"] = [_probabilities(model, it) for it in tokens]
        return told

    def _is_full(self, end: End) -> bool:
        used = len(self.prepared.request.prompt) + end.n_tokens
        return end.reason == "length" and used >= self.prepared.completer.n_ctx

    def _settings(self) -> dict[str, Any]:
        request, asked = self.prepared.request, self.telling.asked
        most = min(request.max_tokens, self.prepared.completer.n_ctx)
        return {
            **settings_of(request.sampling),
            "n_predict": most,
            "max_tokens": most,
            "stop": [*request.stop],
            "stream": bool(asked.stream),
            "n_probs": asked.n_probs or 0,
            "grammar": asked.grammar or "",
        }

    def _timings(self, end: End) -> Timings:
        now = time.perf_counter()
        first = self.first or now
        prompt_ms, predicted_ms = 1000 * (first - self.began), 1000 * (now - first)
        n_prompt = len(self.prepared.request.prompt) - end.n_cached
        return {
            "cache_n": end.n_cached,
            "prompt_n": n_prompt,
            "prompt_ms": prompt_ms,
            "prompt_per_token_ms": _per(prompt_ms, n_prompt),
            "prompt_per_second": _per(1000.0 * n_prompt, prompt_ms),
            "predicted_n": end.n_tokens,
            "predicted_ms": predicted_ms,
            "predicted_per_token_ms": _per(predicted_ms, end.n_tokens),
            "predicted_per_second": _per(1000.0 * end.n_tokens, predicted_ms),
        }


class Answers:
    """One request's answers, each by one Prepared."""

    def __init__(self, each: Sequence[Prepared], telling: Telling) -> None:
        self._each = each
        self._telling = telling

    async def respond(self, http: HttpRequest) -> Response:
        """The response, as the request wants it: a list if there are several answers."""
        if self._telling.asked.stream:
            return await respond(http, self._stream())
        ones = self._ones()
        ends = await unless_left(http, gathered([self._collect(one) for one in ones]))

        def told() -> object:
            pairs = zip(ones, ends, strict=True)
            each = [
                encoded(self._telling.fields(one.whole(end, streamed=False))) for one, end in pairs
            ]
            return each if len(each) > 1 else each[0]

        return await written(told, is_long=self._is_long)

    @property
    def _is_long(self) -> bool:
        """Whether the end of an answer, which has the prompt, may take the event loop long."""
        n_tokens = sum(len(it.request.prompt) for it in self._each)
        return bool(self._telling.asked.n_probs) or n_tokens > _MAX_TOKENS

    def _ones(self) -> list[_One]:
        return [_One(index, it, self._telling) for index, it in enumerate(self._each)]

    async def _collect(self, one: _One) -> End:
        """Has the answer take all steps."""
        async with aclosing(one.prepared.steps()) as items:
            async for item in items:
                if isinstance(item, End):
                    return item
                one.take(item)
        raise AssertionError("an answer without an end")

    async def _stream(self) -> AsyncIterator[bytes]:
        """Events of all answers as they come."""
        ones = self._ones()
        async with aclosing(merged(self._each)) as items:
            async for index, item in items:
                if isinstance(item, End):
                    whole = partial(ones[index].whole, item, streamed=True)
                    last = await asyncio.to_thread(whole) if self._is_long else whole()
                    yield event(self._telling.fields(last))
                elif item is not None and (told := ones[index].part(item)) is not None:
                    yield event(self._telling.fields(told))


def _per(amount: float, of: float) -> float:
    return amount / of if of else 0.0


def _probabilities(model: Model, token: Token) -> TokenProb:
    top = [_prob(model, id_, logprob) for id_, logprob in token.top]
    return {**_prob(model, token.id, token.logprob), "top_logprobs": top}


def _prob(model: Model, token: int, logprob: float | None) -> Prob:
    data = model.tokenizer.decode([token], render_special=True)
    text = data.decode(errors="replace")
    return {"id": token, "token": text, "bytes": list(data), "logprob": logprob}
