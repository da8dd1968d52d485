"""A client of agents' streams that comes back with Last-Event-ID, as EventSource does."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.patience import PATIENCE_S
from tests.server.conftest import Serving

LONG = {"n_ctx": 2048, "max_tokens": 200, "regex": "[a-z ]{3000}", "temperature": 1}
"""Options of `chat` with which a tiny model's answer has 200 tokens, whatever it says."""


@dataclass
class Event:
    """One event of a stream."""

    kind: str
    data: dict[str, Any]
    id: str


def events_of(lines: Iterator[str]) -> Iterator[Event]:
    """The events of a stream, without comments."""
    kind, data, id_ = "message", "", ""
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "id":
            id_ = value
        elif name == "data":
            data = value
        elif not line and data:
            yield Event(kind, json.loads(data), id_)
            kind, data, id_ = "message", "", ""


@dataclass
class Listener:
    """Hears one answer of an agent, through as many connections as that takes."""

    agent: str
    last_id: str = ""
    text: str = ""
    done: dict[str, Any] | None = None
    n_connections: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)

    def send(
        self,
        client: httpx.Client,
        body: dict[str, Any],
        most: int | None = None,
        each: Callable[[Event], object] = lambda _: None,
    ) -> None:
        """Sends the message, and hears at most so many events of the answer. `each` is called after
        each of them."""
        path = f"/v1/agents/{self.agent}/messages"
        with client.stream("POST", path, json={"stream": True, **body}) as stream:
            self.hear(stream, most, each)

    def come_back(
        self,
        client: httpx.Client,
        most: int | None = None,
        each: Callable[[Event], object] = lambda _: None,
    ) -> int:
        """Goes on where it was cut off; the status."""
        headers = {"Last-Event-ID": self.last_id}
        path = f"/v1/agents/{self.agent}/messages"
        with client.stream("GET", path, headers=headers) as stream:
            self.hear(stream, most, each)
            return stream.status_code

    def hear_out(self, serving: Serving) -> None:
        """Comes back until all is told, whatever becomes of the server meanwhile."""
        end = time.monotonic() + PATIENCE_S
        while self.done is None:
            assert time.monotonic() < end, (self.failures, len(self.text))
            with contextlib.suppress(httpx.TransportError), httpx.Client(timeout=60) as client:
                client.base_url = serving.url
                self.come_back(client)
            time.sleep(0.02)

    def hear(
        self,
        stream: httpx.Response,
        most: int | None = None,
        each: Callable[[Event], object] = lambda _: None,
    ) -> None:
        """Hears a stream, or so many of its events."""
        self.n_connections += 1
        if stream.status_code != 200:
            self.failures.append(json.loads(stream.read())["error"])
            return
        for n, event in enumerate(events_of(stream.iter_lines()), 1):
            if event.kind == "error":
                self.failures.append(event.data["error"])
                return
            self.last_id = event.id
            self.text += event.data.get("text", "")
            if event.kind == "done":
                assert self.done is None, "an answer was told as done twice"
                self.done = event.data
            each(event)
            if n == most:
                return
