"""Items of an answer while it comes, and the events that tell of them.

An event here is its type and its fields; whoever tells it numbers it. Items come one after another:
a thought, what the model says, its calls.

======================  =========================================================================
item                    events between `response.output_item.added` and `.done`
======================  =========================================================================
message                 content_part.added, output_text.delta …, output_text.done,
                        content_part.done
reasoning               the same with reasoning_text; if it is told as its summary,
                        reasoning_summary_part.added, reasoning_summary_text.delta …, .done,
                        reasoning_summary_part.done
function_call           function_call_arguments.delta …, function_call_arguments.done
custom_tool_call        custom_tool_call_input.delta …, custom_tool_call_input.done
======================  =========================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from isthmus.model.forms import Arguments, CallBegins, CallEnds, Event, Reasoning, Text
from isthmus.server.generation.prepared import Step
from isthmus.server.generation.request import End
from isthmus.server.generation.tokens import Token
from isthmus.server.http.ids import random_id
from isthmus.server.openai.replies import ChatLogprob
from isthmus.server.responses.arguments import InputReader
from isthmus.server.responses.items import Item
from isthmus.server.responses.sealing import seal
from isthmus.server.responses.tools import Offer, Origin

Told: TypeAlias = "tuple[str, dict[str, Any]]"
"""An event: its type without `response.`, and its fields."""


@dataclass(frozen=True)
class Telling:
    """How an answer is told."""

    make_id: Callable[[str, int], str]
    """From an item's type and number to its id."""
    offer: Offer = field(default_factory=Offer)
    input_of: Origin | None = None
    """The custom tool whose input all text of the answer is."""
    in_summary: bool = False
    """Whether thoughts are told as their summaries."""
    sealed: bool = False
    """Whether thoughts are told as `encrypted_content` too."""
    in_thought: bool = False
    """Whether the prompt ends inside a thought."""
    logprob: Callable[[Token], ChatLogprob] | None = None
    """How a token's logarithm of the probability is told."""


class _Open(Protocol):
    """An item to which something may be added."""

    item: Item

    def begin(self) -> Iterator[Told]:
        """Events before anything is added."""

    def add(self, text: str, logprobs: list[ChatLogprob]) -> Iterator[Told]:
        """Events of more text."""

    def end(self, status: str) -> Iterator[Told]:
        """Events after which nothing is added any more."""


class Output:
    """See the module. `feed` each step, then `end` once."""

    def __init__(self, telling: Telling) -> None:
        self.items: list[Item] = []
        """All items, the one that is not complete too."""
        self.n_thought = 0
        """Tokens of thoughts."""
        self._telling = telling
        self._open: _Open | None = None
        self._thinks = telling.in_thought
        self._blank = ""
        """White space that has come since an item ended: it begins a message if text follows."""
        self._logprobs: list[ChatLogprob] = []
        """Logarithms of the probability of tokens whose text has not been told."""

    def feed(self, step: Step) -> Iterator[Told]:
        """Events of one step."""
        if step.token is not None:
            thinks = any(isinstance(it, Reasoning) for it in step.events)
            self.n_thought += thinks or (self._thinks and not step.events)
            self._note_logprob(step.token)
        for event in step.events:
            yield from self._take(event)

    def end(self, end: End) -> Iterator[Told]:
        """Events of the end of the answer."""
        if self._blank and not self.items:
            yield from self._say("")
        if self._telling.input_of is not None and self._is_free(_Call):
            yield from self._begin(_Call(self._telling.input_of))
        yield from self._close("completed" if end.reason == "stop" else "incomplete")

    def _take(self, event: Event) -> Iterator[Told]:
        match event:
            case Text(text):
                yield from self._text(text)
            case Reasoning(text):
                self._thinks = True
                yield from self._think(text)
            case CallBegins(_, name):
                self._thinks = False
                yield from self._begin(_call_of(self._telling.offer.origin(name)))
            case Arguments(_, text):
                yield from self._add(text, [])
            case CallEnds(_, whole):
                yield from self._close("completed" if whole else "incomplete")

    def _text(self, text: str) -> Iterator[Told]:
        self._thinks = False
        if self._telling.input_of is not None:
            if self._is_free(_Call):
                yield from self._begin(_Call(self._telling.input_of))
            yield from self._add(text, [])
        elif self._is_free(_Message) and not text.strip():
            self._blank += text
        else:
            yield from self._say(text)

    def _say(self, text: str) -> Iterator[Told]:
        text, self._blank = self._blank + text, ""
        if self._is_free(_Message):
            logprobs = self._logprobs
            yield from self._begin(_Message())
            self._logprobs = logprobs
        yield from self._add(text, self._logprobs)
        self._logprobs = []

    def _think(self, text: str) -> Iterator[Told]:
        if self._is_free(_Thought):
            yield from self._begin(_Thought(self._telling))
        yield from self._add(text, [])
        self._logprobs = []

    def _add(self, text: str, logprobs: list[ChatLogprob]) -> Iterator[Told]:
        """Events of more text of the item that is open."""
        if self._open is not None:
            yield from self._placed(self._open.add(text, logprobs))

    def _is_free(self, kind: type) -> bool:
        return not isinstance(self._open, kind)

    def _begin(self, item: _Open) -> Iterator[Told]:
        yield from self._close("completed")
        self._blank, self._logprobs = "", []
        n, kind = len(self.items), item.item["type"]
        item.item["id"] = self._telling.make_id(kind, n)
        self._open = item
        self.items.append(item.item)
        yield "output_item.added", {"output_index": n, "item": dict(item.item)}
        yield from self._placed(item.begin())

    def _close(self, status: str) -> Iterator[Told]:
        item, self._open = self._open, None
        if item is None:
            return
        yield from self._placed(item.end(status))
        item.item["status"] = status
        yield "output_item.done", {"output_index": len(self.items) - 1, "item": dict(item.item)}

    def _placed(self, events: Iterator[Told]) -> Iterator[Told]:
        """Events of the item that came last, which say so."""
        n, id_ = len(self.items) - 1, self.items[-1]["id"]
        for type_, fields in events:
            yield type_, {"item_id": id_, "output_index": n, **fields}

    def _note_logprob(self, token: Token) -> None:
        if self._telling.logprob is not None and token.logprob is not None:
            self._logprobs.append(self._telling.logprob(token))


# ---------------------------------------------------------------------------------- kinds of item


class _Message:
    """What the model says."""

    def __init__(self) -> None:
        self.item: Item = {
            "id": "",
            "type": "message",
            "role": "assistant",
            "status": "in_progress",
            "content": [],
        }
        self._texts: list[str] = []
        self._logprobs: list[ChatLogprob] = []

    def begin(self) -> Iterator[Told]:
        yield "content_part.added", {"content_index": 0, "part": _said("", [])}

    def add(self, text: str, logprobs: list[ChatLogprob]) -> Iterator[Told]:
        self._texts.append(text)
        self._logprobs += logprobs
        yield "output_text.delta", {"content_index": 0, "delta": text, "logprobs": logprobs}

    def end(self, status: str) -> Iterator[Told]:
        text = "".join(self._texts)
        part = _said(text, self._logprobs)
        self.item["content"] = [part]
        done = {"content_index": 0, "text": text, "logprobs": self._logprobs}
        yield "output_text.done", done
        yield "content_part.done", {"content_index": 0, "part": part}


def _said(text: str, logprobs: list[ChatLogprob]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


class _Thought:
    """What the model thinks."""

    def __init__(self, telling: Telling) -> None:
        self.item: Item = {"id": "", "type": "reasoning", "status": "in_progress", "summary": []}
        self._kind = "reasoning_summary" if telling.in_summary else "reasoning"
        self._part = "reasoning_summary_part" if telling.in_summary else "content_part"
        self._place = {"summary_index" if telling.in_summary else "content_index": 0}
        self._type = "summary_text" if telling.in_summary else "reasoning_text"
        self._sealed = telling.sealed
        self._texts: list[str] = []

    def begin(self) -> Iterator[Told]:
        yield f"{self._part}.added", {**self._place, "part": {"type": self._type, "text": ""}}

    def add(self, text: str, logprobs: list[ChatLogprob]) -> Iterator[Told]:
        self._texts.append(text)
        yield f"{self._kind}_text.delta", {**self._place, "delta": text}

    def end(self, status: str) -> Iterator[Told]:
        text = "".join(self._texts)
        part = {"type": self._type, "text": text}
        self.item["summary" if self._type == "summary_text" else "content"] = [part]
        if self._sealed:
            self.item["encrypted_content"] = seal(text)
        yield f"{self._kind}_text.done", {**self._place, "text": text}
        yield f"{self._part}.done", {**self._place, "part": part}


class _Call:
    """The call of a tool. With `reader` its input is read out of arguments."""

    def __init__(self, origin: Origin, reader: InputReader | None = None) -> None:
        self._key = "input" if origin.is_custom else "arguments"
        self._kind = "custom_tool_call_input" if origin.is_custom else "function_call_arguments"
        self._reader = reader
        self._texts: list[str] = []
        self.item: Item = {
            "id": "",
            "type": origin.kind,
            "call_id": random_id("call_"),
            "name": origin.name,
            self._key: "",
            "status": "in_progress",
        }
        if origin.namespace is not None:
            self.item["namespace"] = origin.namespace

    def begin(self) -> Iterator[Told]:
        yield from ()

    def add(self, text: str, logprobs: list[ChatLogprob]) -> Iterator[Told]:
        text = text if self._reader is None else self._reader.feed(text)
        if text:
            self._texts.append(text)
            yield f"{self._kind}.delta", {"delta": text}

    def end(self, status: str) -> Iterator[Told]:
        whole = "".join(self._texts)
        if self._reader is not None:
            whole, rest = self._reader.end()
            if rest:
                yield f"{self._kind}.delta", {"delta": rest}
        self.item[self._key] = whole
        yield f"{self._kind}.done", {self._key: whole}


def _call_of(origin: Origin) -> _Call:
    return _Call(origin, InputReader() if origin.is_custom else None)
