"""Events of a parser: parts of a model's answer, in the order in which they came."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Text:
    """Part of what the model says to the user; never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Part of what the model thinks; never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegins:
    """The beginning of a call."""

    index: int
    """Number of the call in this answer, from 0."""
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """Part of a call's arguments. All parts of a whole call, joined, are one JSON object."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnds:
    """The end of a call."""

    index: int
    whole: bool = True
    """False if the arguments were cut off or are no JSON: what came of them is all there is."""


Event = Text | Reasoning | CallBegins | Arguments | CallEnds


def joined(events: Iterable[Event]) -> list[Event]:
    """Events, with neighbours of one kind as one event."""
    runs: list[tuple[Event, list[str]]] = []
    for event in events:
        if isinstance(event, (CallBegins, CallEnds)):
            runs.append((event, []))
        elif runs and _same_run(runs[-1][0], event):
            runs[-1][1].append(event.text)
        else:
            runs.append((event, [event.text]))
    return [_with_text(event, texts) for event, texts in runs]


def _same_run(first: Event, event: Event) -> bool:
    if isinstance(first, Arguments) and isinstance(event, Arguments):
        return first.index == event.index
    return type(first) is type(event)


def _with_text(event: Event, texts: list[str]) -> Event:
    if isinstance(event, (CallBegins, CallEnds)):
        return event
    return replace(event, text="".join(texts))
