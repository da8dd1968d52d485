"""One answer in the two forms that Anthropic's API has: whole, or as events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from isthmus.server.anthropic.blocks import Blocks
from isthmus.server.anthropic.replies import (
    AnsweredBlock,
    Message,
    MessageUsage,
    StopReason,
    StreamEvent,
)
from isthmus.server.generation.prepared import Prepared, Step
from isthmus.server.generation.request import Began, End
from isthmus.server.http.events import event, respond, unless_left
from isthmus.server.http.ids import random_id

_PING = event({"type": "ping"}, "ping")


class MessageAnswer:
    """See the module. `hides_thoughts` tells that the model thinks, and not what."""

    def __init__(self, prepared: Prepared, *, hides_thoughts: bool) -> None:
        self._prepared = prepared
        self._blocks = Blocks(hides_thoughts=hides_thoughts)
        self._id = random_id("msg_", 32)
        self._n_thought = 0
        """Tokens of thoughts."""

    async def respond(self, http: HttpRequest, *, stream: bool) -> Response:
        """The response, as the request wants it."""
        if stream:
            return await respond(http, self._stream(), goes_on=_PING)
        told = await unless_left(http, self._collect())
        return Response(msgspec.json.encode(told), media_type="application/json")

    async def _collect(self) -> Message:
        async with aclosing(self._prepared.steps()) as items:
            async for item in items:
                if isinstance(item, End):
                    return self._ended(item)
                self._take(item)
        raise AssertionError("an answer without an end")

    async def _stream(self) -> AsyncIterator[bytes]:
        """Events; the first two come with the first token, so that until then errors have a
        status."""
        begun = False
        async with aclosing(self._prepared.steps()) as items:
            async for item in items:
                if not begun:
                    begun = True
                    yield _told(self._begins(item))
                told = self._ends(item) if isinstance(item, End) else self._take(item)
                if told:
                    yield _told(told)

    # ------------------------------------------------------------------ parts

    def _begins(self, first: Step | End) -> list[StreamEvent]:
        known = first if isinstance(first, End) else first.began
        message = self._message([], None, None, self._usage(known, 0))
        return [{"type": "message_start", "message": message}, {"type": "ping"}]

    def _take(self, step: Step) -> list[StreamEvent]:
        told = self._blocks.take(step.events)
        self._n_thought += step.token is not None and self._blocks.is_thinking
        return list(told)

    def _ends(self, end: End) -> list[StreamEvent]:
        blocks = self._blocks.finish()
        reason, usage = self._reason(end), self._usage_of(end)
        return [
            *blocks,
            {
                "type": "message_delta",
                "delta": {"stop_reason": reason, "stop_sequence": end.stop},
                "usage": usage,
            },
            {"type": "message_stop"},
        ]

    def _ended(self, end: End) -> Message:
        self._blocks.finish()
        usage = self._usage_of(end)
        return self._message(self._blocks.content, self._reason(end), end.stop, usage)

    def _reason(self, end: End) -> StopReason:
        if end.reason == "length":
            full = end.n_tokens < self._prepared.request.max_tokens
            return "model_context_window_exceeded" if full else "max_tokens"
        if end.stop is not None:
            return "stop_sequence"
        return "tool_use" if self._blocks.calls else "end_turn"

    def _message(
        self,
        content: list[AnsweredBlock],
        reason: StopReason | None,
        stop: str | None,
        usage: MessageUsage,
    ) -> Message:
        found: Message = {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._prepared.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": stop,
            "usage": usage,
        }
        if self._prepared.warnings:
            found["warnings"] = list(self._prepared.warnings)
        return found

    def _usage_of(self, end: End) -> MessageUsage:
        return self._usage(end, end.n_tokens)

    def _usage(self, known: Began | End | None, n_out: int) -> MessageUsage:
        n_cached, n_media = (0, 0) if known is None else (known.n_cached, known.n_media)
        return {
            "input_tokens": len(self._prepared.request.prompt) + n_media - n_cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": n_cached,
            "output_tokens": n_out,
            "output_tokens_details": {"thinking_tokens": self._n_thought},
        }


def _told(events: Iterable[StreamEvent]) -> bytes:
    return b"".join(event(it, it["type"]) for it in events)
