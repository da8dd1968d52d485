"""Visits at every token of an answer, each at the same token in every run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from isthmus import Actor, Reply, Runtime
from isthmus.actor.message import Message
from isthmus.actor.visit import Visit
from isthmus.errors import AnswerPaused


def at_every_pause(
    runtime: Runtime,
    actor: Actor,
    text: str,
    work: Callable[[int], None],
    pieces: list[str] | None = None,
) -> tuple[list[str], Reply]:
    """Has `work(n)` done at the n-th pause, the first of which is before the prompt is computed,
    and at each one after that. The pieces of the answer, also in `pieces`, and the reply."""
    pieces = [] if pieces is None else pieces
    loop, held = runtime._platform.loop, threading.Event()
    loop._thread.post(held.wait)  # so that the message cannot begin before its first visit waits
    stream = actor.stream(text)
    message = actor._message
    assert message is not None

    def visit(n: int) -> None:
        work(n)
        _let_in(actor, message, partial(visit, n + 1))

    _let_in(actor, message, partial(visit, 0))
    held.set()
    pieces.extend(stream)
    return pieces, stream.reply


def _let_in(actor: Actor, message: Message, work: Callable[[], None]) -> None:
    message.visits.add(Visit(work))
    body = actor._keeper.body
    assert body is not None
    body.pauses.request()


def paused_at(runtime: Runtime, actor: Actor, at: int, message: str = "Tell me a story.") -> str:
    """Pauses an actor before its `at`-th decode step; what was said until then."""
    pieces: list[str] = []

    def work(n: int) -> None:
        if n + 1 == at:
            message = actor._message
            assert message is not None
            message.visits.add(Visit(lambda: None, ends=True))

    with pytest.raises(AnswerPaused, match=r"Actor\.resume\(\) goes on"):
        at_every_pause(runtime, actor, message, work, pieces)
    assert actor.is_paused
    return "".join(pieces)


def pause_before_prompt(runtime: Runtime, actor: Actor, message: str = "Tell me a story.") -> None:
    """Pauses an actor before it computes anything of a message."""
    loop, held = runtime._platform.loop, threading.Event()
    loop._thread.post(held.wait)
    stream = actor.stream(message)
    begun = actor._message
    assert begun is not None
    begun.visits.add(Visit(lambda: None, ends=True))
    held.set()
    with pytest.raises(AnswerPaused):
        list(stream)
    assert actor.is_paused


def saved_at(runtime: Runtime, actor: Actor, at: int, path: Path) -> Path:
    """A snapshot of an actor in the middle of an answer; `at` 0 is before its prompt."""
    if at:
        paused_at(runtime, actor, at)
    else:
        pause_before_prompt(runtime, actor)
    return actor.snapshot(path).path
