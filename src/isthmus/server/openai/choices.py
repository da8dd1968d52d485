"""Choices of an answer in the two forms that OpenAI's API has: whole, or in parts as they come."""

from __future__ import annotations

import json
import uuid
from typing import Any

from isthmus.model import Model
from isthmus.server.generation.completion import Token
from isthmus.server.openai.replies import (
    AnsweredMessage,
    CalledFunction,
    ChatAnswer,
    ChatLogprobs,
    TextAnswer,
    TextLogprobs,
    ToolCall,
    TopLogprob,
)
from isthmus.server.openai.requests import ChatRequest

_CALL_BEGINS, _CALL_ENDS = "<tool_call>", "</tool_call>"


class TextChoices:
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


class ChatChoices:
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
        rest, found = ("", [text]) if self._forced else _without_calls(text)
        calls = [call for call in map(_call, found) if call is not None]
        if not calls:
            return text, []
        return rest.strip() or None, calls


def _without_calls(text: str) -> tuple[str, list[str]]:
    """The text without the objects that it calls tools with, and those, in one pass."""
    rest, found, at = [], [], 0
    while (begin := text.find(_CALL_BEGINS, at)) >= 0:
        end = text.find(_CALL_ENDS, begin)
        if end < 0:
            break
        inside = text[begin + len(_CALL_BEGINS) : end].strip()
        behind = end + len(_CALL_ENDS)
        if inside.startswith("{") and inside.endswith("}"):
            found.append(inside)
            rest.append(text[at:begin])
        else:
            rest.append(text[at:behind])
        at = behind
    return "".join([*rest, text[at:]]), found


def _call(text: str) -> ToolCall | None:
    try:
        said = json.loads(text)
        arguments = json.dumps(said["arguments"], ensure_ascii=False)
        function: CalledFunction = {"name": str(said["name"]), "arguments": arguments}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _text(model: Model, token: int) -> str:
    return model.tokenizer.decode([token], render_special=True).decode(errors="replace")
