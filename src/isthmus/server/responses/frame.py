"""A response apart from its output: what was asked, told again, and what became of it."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from isthmus.errors import Overloaded
from isthmus.server.http.errors import body_of
from isthmus.server.responses.replies import ModelResponse, ResponseFailure, ResponseUsage
from isthmus.server.responses.requests import ConversationId, Reasoning, ResponseRequest


def frame_of(asked: ResponseRequest, id_: str, warnings: tuple[str, ...]) -> ModelResponse:
    """A response that has just begun."""
    reasoning = asked.reasoning or Reasoning()
    found: ModelResponse = {
        "id": id_,
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "background": asked.background is True,
        "error": None,
        "incomplete_details": None,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "max_tool_calls": asked.max_tool_calls,
        "metadata": asked.metadata or {},
        "model": asked.model,
        "output": [],
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "previous_response_id": asked.previous_response_id,
        "prompt_cache_key": asked.prompt_cache_key,
        "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary},
        "safety_identifier": asked.safety_identifier,
        "service_tier": "default",
        "store": asked.store is not False,
        "temperature": 1.0 if asked.temperature is None else asked.temperature,
        "text": _text_of(asked),
        "tool_choice": asked.tool_choice or "auto",
        "tools": asked.tools or [],
        "top_logprobs": asked.top_logprobs or 0,
        "top_p": 1.0 if asked.top_p is None else asked.top_p,
        "truncation": asked.truncation or "disabled",
        "usage": None,
        "user": asked.user,
    }
    if asked.conversation is not None:
        found["conversation"] = {"id": conversation_id(asked.conversation)}
    if warnings:
        found["warnings"] = list(warnings)
    return found


def _text_of(asked: ResponseRequest) -> dict[str, Any]:
    given: dict[str, Any] = {} if asked.text is None else msgspec.to_builtins(asked.text)
    said = {name: it for name, it in given.items() if it is not None}
    return {"format": {"type": "text"}, **said}


def conversation_id(given: str | ConversationId) -> str:
    """The id of a conversation, however it is given."""
    return given if isinstance(given, str) else given.id


def said(
    frame: ModelResponse, output: list[Any], usage: ResponseUsage, reason: str
) -> ModelResponse:
    """The response at its end: `reason` is that of the answer, `stop` or `length`."""
    done: ModelResponse = {
        **frame,
        "status": "completed",
        "completed_at": int(time.time()),
        "output": output,
        "usage": usage,
    }
    if reason == "length":
        done["status"] = "incomplete"
        done["incomplete_details"] = {"reason": "max_output_tokens"}
    return done


def failed(frame: ModelResponse, error: BaseException) -> ModelResponse:
    """The response that an error has ended."""
    return {**frame, "status": "failed", "error": failure_of(error)}


def failure_of(error: BaseException) -> ResponseFailure:
    """An error as a response tells it."""
    _, body = body_of(error)
    code = body["error"]["code"] or "server_error"
    if isinstance(error, Overloaded):
        code = "rate_limit_exceeded"
    return {"code": code, "message": body["error"]["message"]}


def usage_of(n_prompt: int, n_cached: int, n_answer: int, n_thought: int) -> ResponseUsage:
    """Tokens of a response."""
    return {
        "input_tokens": n_prompt,
        "input_tokens_details": {"cached_tokens": n_cached, "cache_write_tokens": 0},
        "output_tokens": n_answer,
        "output_tokens_details": {"reasoning_tokens": n_thought},
        "total_tokens": n_prompt + n_answer,
    }
