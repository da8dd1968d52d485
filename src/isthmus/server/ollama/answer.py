"""One answer as Ollama tells it: a JSON object, or a line of JSON for each piece."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from datetime import datetime, timezone
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from isthmus.model.forms import Arguments, CallBegins, CallEnds, Event, Reasoning, Text
from isthmus.server.generation.called import arguments_of
from isthmus.server.generation.prepared import Prepared
from isthmus.server.generation.request import End
from isthmus.server.http.events import LINES, line, respond, unless_left
from isthmus.server.http.ids import random_id

Tell = Callable[[str, str, list[dict[str, Any]]], dict[str, Any]]
"""Text, thought and calls as the body of a chat or of a generated text."""


class Reading:
    """Takes an answer's events; calls are told when they are whole."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._arguments: dict[int, list[str]] = {}

    def take(self, events: Sequence[Event]) -> tuple[str, str, list[dict[str, Any]]]:
        """Text, thought and whole calls of these events."""
        text, thought, calls = [], [], []
        for event in events:
            match event:
                case Text(said):
                    text.append(said)
                case Reasoning(said):
                    thought.append(said)
                case CallBegins(index, name):
                    self._names[index], self._arguments[index] = name, []
                case Arguments(index, said):
                    self._arguments[index].append(said)
                case CallEnds(index, whole):
                    calls += self._call(index) if whole else []
        return "".join(text), "".join(thought), calls

    def _call(self, index: int) -> list[dict[str, Any]]:
        """The call; none if its arguments cannot be told."""
        arguments = arguments_of("".join(self._arguments.pop(index)))
        if arguments is None:
            return []
        function = {"name": self._names[index], "arguments": arguments}
        return [{"id": random_id("call_"), "function": function}]


class OllamaAnswer:
    """See the module. `tell` writes what came into the body; `load_ns` are the nanoseconds until
    the model was in memory."""

    def __init__(self, prepared: Prepared, tell: Tell, load_ns: int) -> None:
        self._prepared = prepared
        self._tell = tell
        self._load_ns = load_ns
        self._began = time.perf_counter_ns()
        self._first: int | None = None
        """When the first token came."""

    async def respond(self, http: HttpRequest, *, stream: bool) -> Response:
        """The response, as the request wants it."""
        if stream:
            return await respond(http, self._stream(), LINES)
        return JSONResponse(await unless_left(http, self._collect()))

    async def _collect(self) -> dict[str, Any]:
        said: tuple[list[str], list[str], list[dict[str, Any]]] = ([], [], [])
        async for item in self._items():
            if isinstance(item, End):
                texts = "".join(said[0]), "".join(said[1])
                return {**self._body(*texts, said[2]), **self._ended(item)}
            said[0].append(item[0])
            said[1].append(item[1])
            said[2].extend(item[2])
        raise AssertionError("an answer without an end")

    async def _stream(self) -> AsyncIterator[bytes]:
        async for item in self._items():
            if isinstance(item, End):
                yield line({**self._body("", "", []), **self._ended(item)})
            elif any(item):
                yield line({**self._body(*item), "done": False})

    async def _items(self) -> AsyncIterator[End | tuple[str, str, list[dict[str, Any]]]]:
        reading = Reading()
        async with aclosing(self._prepared.steps()) as items:
            async for item in items:
                if self._first is None:
                    self._first = time.perf_counter_ns()
                yield item if isinstance(item, End) else reading.take(item.events)

    def _body(self, text: str, thought: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"model": self._prepared.model, "created_at": timestamp(time.time())}
        return {**head, **self._tell(text, thought, calls)}

    def _ended(self, end: End) -> dict[str, Any]:
        now = time.perf_counter_ns()
        first = self._first or now
        found = {
            "done": True,
            "done_reason": end.reason,
            "total_duration": self._load_ns + now - self._began,
            "load_duration": self._load_ns,
            "prompt_eval_count": len(self._prepared.request.prompt) + end.n_media,
            "prompt_eval_duration": first - self._began,
            "eval_count": end.n_tokens,
            "eval_duration": now - first,
        }
        warnings = self._prepared.warnings
        return {**found, "warnings": list(warnings)} if warnings else found


def as_message(text: str, thought: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    """The body of `/api/chat`."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    message |= {"thinking": thought} if thought else {}
    message |= {"tool_calls": calls} if calls else {}
    return {"message": message}


def as_response(text: str, thought: str, _calls: list[dict[str, Any]]) -> dict[str, Any]:
    """The body of `/api/generate`, whose answers call nothing."""
    return {"response": text, "thinking": thought} if thought else {"response": text}


def timestamp(seconds: float) -> str:
    """A time in seconds since 1970, as RFC 3339 writes it, in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")
