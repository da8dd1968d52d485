"""Choices of an answer in the forms that OpenAI's API has: whole, or in parts as they come.

A choice is given each step of an answer, by `add` if it is told whole, by `parts` if it is
streamed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from isthmus.model import Model
from isthmus.model.forms import Arguments, CallBegins, CallEnds, Event, Reasoning, Text
from isthmus.server.generation.prepared import Prepared, Step
from isthmus.server.generation.request import End, Token
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


class TextChoice:
    """A choice of `/v1/completions`."""

    object = "text_completion"
    chunk = "text_completion"
    prefix = "cmpl-"

    def __init__(self, prepared: Prepared) -> None:
        self._model = prepared.completer.model
        self._text: list[str] = []
        self._tokens: list[Token] = []

    def add(self, step: Step) -> None:
        """Takes one more step."""
        self._text.append(_text_of(step))
        self._tokens += _told(step)

    def whole(self, end: End) -> TextAnswer:
        """The choice at its end, without its index."""
        text, logprobs = "".join(self._text), self._logprobs(self._tokens)
        return {"text": text, "finish_reason": end.reason, "logprobs": logprobs}

    def begins(self) -> list[dict[str, Any]]:
        """What is told before the first step."""
        return []

    def parts(self, step: Step) -> list[dict[str, Any]]:
        """What one more step adds."""
        text, told = _text_of(step), _told(step)
        if not text and not told:
            return []
        return [{"text": text, "finish_reason": None, "logprobs": self._logprobs(told)}]

    def ends(self, end: End) -> list[dict[str, Any]]:
        """What is told after the last step."""
        return [{"text": "", "finish_reason": end.reason, "logprobs": None}]

    def _logprobs(self, told: list[Token]) -> TextLogprobs | None:
        if not told:
            return None
        return {
            "tokens": [_shown(self._model, token.id) for token in told],
            "token_logprobs": [token.logprob for token in told],
            "top_logprobs": [{_shown(self._model, a): b for a, b in token.top} for token in told],
            "text_offset": [],
        }


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

    def add(self, step: Step) -> None:
        """Takes one more step."""
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
        return {"content": [logprob_of(self._model, token) for token in told]}


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
    return [step.token] if step.token is not None and step.token.logprob is not None else []


def _shown(model: Model, token: int) -> str:
    return model.tokenizer.decode([token], render_special=True).decode(errors="replace")
