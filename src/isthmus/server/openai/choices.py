"""Choices of an answer in the forms that OpenAI's API has: whole, or in parts as they come.

A choice is given each step of an answer, by `add` if it is told whole, by `parts` if it is
streamed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from isthmus.model import Model
from isthmus.model.forms import Arguments, CallBegins, CallEnds, Event, Reasoning, Text
from isthmus.model.tokens.tokenizer import Detokenizer
from isthmus.server.generation.prepared import Prepared, Step
from isthmus.server.generation.request import End
from isthmus.server.generation.tokens import Place, Token
from isthmus.server.http.ids import random_id
from isthmus.server.openai.replies import (
    AnsweredMessage,
    ChatAnswer,
    ChatLogprob,
    ChatLogprobs,
    TextAnswer,
    TextLogprobs,
    ToolCall,
    TopLogprob,
)

MAX_ECHO = 2048
"""Characters of a prompt that the event loop writes before an answer."""


class Echo(NamedTuple):
    """A prompt that is told before its answers."""

    text: str
    offsets: Sequence[int] = ()
    """Where its tokens begin in the text, if they are told."""

    @classmethod
    def of(cls, model: Model, ids: Sequence[int], text: str | None, *, with_offsets: bool) -> Echo:
        """The echo of a prompt, whose text may be known. Takes as long as its tokens are many."""
        if text is None:
            text = model.tokenizer.decode(ids, render_special=True).decode(errors="replace")
        return cls(text, _offsets(model, ids, text) if with_offsets else ())


def _offsets(model: Model, ids: Sequence[int], text: str) -> list[int]:
    """Where a prompt's tokens begin in its text. Tokens at its beginning that are not there, such
    as one that begins each text, begin at 0."""
    ends, detokenizer = [0], Detokenizer(model.tokenizer, frozenset(ids))
    for token in ids:
        ends.append(ends[-1] + len(detokenizer.push(token)))
    more = ends[-1] + len(detokenizer.finish()) - len(text)
    return [max(it - more, 0) for it in ends]


class TextChoice:
    """A choice of `/v1/completions`. `echo` is told first."""

    object = "text_completion"
    chunk = "text_completion"
    prefix = "cmpl-"
    n_thought = 0
    """Tokens of thoughts: there are none."""

    def __init__(
        self, prepared: Prepared, *, echo: Echo | None = None, tells_logprobs: bool = True
    ) -> None:
        self._model = prepared.completer.model
        self._echo, self._offsets = echo or Echo("")
        self._tells_logprobs = tells_logprobs
        self._text: list[str] = []
        self._tokens: list[Token] = []
        self._sum = 0.0
        self._n_tokens = 0
        self._n_scored = 0
        """Tokens of the prompt that came."""

    @property
    def is_long(self) -> bool:
        """Whether the whole choice may be too long for the event loop to write."""
        return self._tells_logprobs or len(self._echo) > MAX_ECHO

    @property
    def mean_logprob(self) -> float:
        """Of the answer's tokens."""
        return self._sum / self._n_tokens if self._n_tokens else 0.0

    def add(self, step: Step) -> None:
        """Takes one more step."""
        self._text.append(_text_of(step))
        for token in _told(step):
            self._tokens.append(token)
            if token.place is not Place.PROMPT:
                self._sum += -math.inf if token.logprob is None else token.logprob
                self._n_tokens += 1

    def whole(self, end: End) -> TextAnswer:
        """The choice at its end, without its index."""
        text, logprobs = self._echo + "".join(self._text), self._logprobs(self._tokens)
        return {"text": text, "finish_reason": end.reason, "logprobs": logprobs}

    def begins(self) -> list[dict[str, Any]]:
        """What is told before the first step."""
        return [_text_part(self._echo, None)] if self._echo else []

    def parts(self, step: Step) -> list[dict[str, Any]]:
        """What one more step adds."""
        text, told = _text_of(step), _told(step)
        return [_text_part(text, self._logprobs(told))] if text or told else []

    def ends(self, end: End) -> list[dict[str, Any]]:
        """What is told after the last step."""
        return [{"text": "", "finish_reason": end.reason, "logprobs": None}]

    def _logprobs(self, told: list[Token]) -> TextLogprobs | None:
        if not told or not self._tells_logprobs:
            return None
        return {
            "tokens": [_shown(self._model, token.id) for token in told],
            "token_logprobs": [token.logprob for token in told],
            "top_logprobs": [self._top(token) for token in told],
            "text_offset": [self._offset(token) for token in told],
        }

    def _top(self, token: Token) -> dict[str, float | None] | None:
        """The most probable tokens, and the one that is there, by their texts."""
        if token.logprob is None:
            return None
        found: dict[str, float | None] = {}
        for id_, logprob in (*token.top, (token.id, token.logprob)):
            found.setdefault(_shown(self._model, id_), logprob)
        return found

    def _offset(self, token: Token) -> int:
        """Where the token begins in the choice's text."""
        if token.place is not Place.PROMPT:
            return len(self._echo) + token.start
        at = self._offsets[self._n_scored]
        self._n_scored += 1
        return at


class ChatChoice:
    """A choice of `/v1/chat/completions`."""

    object = "chat.completion"
    chunk = "chat.completion.chunk"
    prefix = "chatcmpl-"

    def __init__(self, prepared: Prepared) -> None:
        self._model = prepared.completer.model
        self._text: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[ToolCall] = []
        self._tokens: list[Token] = []
        self.n_thought = 0
        """Tokens of thoughts."""

    @property
    def is_long(self) -> bool:
        """Whether the whole choice may be too long for the event loop to write."""
        return bool(self._tokens)

    @property
    def mean_logprob(self) -> float:
        """Of the answer's tokens, if they are told."""
        told = [it.logprob for it in self._tokens if it.logprob is not None]
        return sum(told) / len(told) if told else 0.0

    def add(self, step: Step) -> None:
        """Takes one more step."""
        self.n_thought += step.is_thought
        self._tokens += _told(step)
        for event in step.events:
            self._note(event)

    def whole(self, end: End) -> ChatAnswer:
        """The choice at its end, without its index."""
        text = "".join(self._text)
        message: AnsweredMessage = {
            "role": "assistant",
            "content": text if text or not self._calls else None,
            "refusal": None,
        }
        if self._thoughts:
            message["reasoning_content"] = "".join(self._thoughts)
        if self._calls:
            message["tool_calls"] = self._calls
        logprobs = self._logprobs(self._tokens)
        return {"message": message, "finish_reason": self._reason(end), "logprobs": logprobs}

    def begins(self) -> list[dict[str, Any]]:
        """What is told before the first step."""
        return [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]

    def parts(self, step: Step) -> list[dict[str, Any]]:
        """What one more step adds."""
        self.n_thought += step.is_thought
        deltas, told = [*self._deltas(step)], _told(step)
        if told and not deltas:
            deltas = [{"content": ""}]
        parts: list[dict[str, Any]] = [{"delta": it, "finish_reason": None} for it in deltas]
        if told:
            parts[0]["logprobs"] = self._logprobs(told)
        return parts

    def ends(self, end: End) -> list[dict[str, Any]]:
        """What is told after the last step."""
        return [{"delta": {}, "finish_reason": self._reason(end)}]

    def _reason(self, end: End) -> str:
        """A call that a limit has cut off is none that could be made."""
        return "tool_calls" if self._calls and end.reason == "stop" else end.reason

    def _note(self, event: Event) -> None:
        """Keeps what an event says."""
        match event:
            case Text(text):
                self._text.append(text)
            case Reasoning(text):
                self._thoughts.append(text)
            case CallBegins(_, name):
                self._calls.append(_call(name))
            case Arguments(index, text):
                self._calls[index]["function"]["arguments"] += text

    def _deltas(self, step: Step) -> Iterator[dict[str, Any]]:
        for event in step.events:
            match event:
                case Text(text):
                    yield {"content": text}
                case Reasoning(text):
                    yield {"reasoning_content": text}
                case CallBegins(index, name):
                    call = _call(name)
                    self._calls.append(call)
                    yield {"tool_calls": [{"index": index, **call}]}
                case Arguments(index, text):
                    yield {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
                case CallEnds():
                    pass

    def _logprobs(self, told: list[Token]) -> ChatLogprobs | None:
        if not told:
            return None
        return {"content": [logprob_of(self._model, token) for token in told], "refusal": None}


def logprob_of(model: Model, token: Token) -> ChatLogprob:
    """A token and what else might have come, with the logarithms of their probabilities."""
    top = [_logprob(model, id_, logprob) for id_, logprob in token.top]
    return {**_logprob(model, token.id, token.logprob), "top_logprobs": top}


def _logprob(model: Model, token: int, logprob: float | None) -> TopLogprob:
    data = model.tokenizer.decode([token], render_special=True)
    return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}


def _call(name: str) -> ToolCall:
    return {
        "id": random_id("call_"),
        "type": "function",
        "function": {"name": name, "arguments": ""},
    }


def _text_of(step: Step) -> str:
    return "".join(event.text for event in step.events if isinstance(event, Text))


def _told(step: Step) -> list[Token]:
    """The step's token, if its logarithm of the probability is wanted."""
    token = step.token
    if token is None or (token.logprob is None and token.place is not Place.PROMPT):
        return []
    return [token]


def _text_part(text: str, logprobs: TextLogprobs | None) -> dict[str, Any]:
    return {"text": text, "finish_reason": None, "logprobs": logprobs}


def _shown(model: Model, token: int) -> str:
    """The text of a token; its bytes if they are no characters, so that no two look alike."""
    data = model.tokenizer.decode([token], render_special=True)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{it:02x}" for it in data)
