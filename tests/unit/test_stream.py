"""The answer to one message, piece by piece."""

from __future__ import annotations

import gc
import queue

import pytest

from isthmus.actor import stream as streams
from isthmus.actor.message import Message
from isthmus.actor.reply import Piece, Reply
from isthmus.actor.shares import Share
from isthmus.actor.stream import Stream
from isthmus.errors import ActorBusy, Cancelled, GuestTrapped

REPLY = Reply(b"answer", 3, 0.5)


class Source:
    """A stream, and what a loop would do with its message."""

    def __init__(self) -> None:
        self.pieces: queue.SimpleQueue[Piece] = queue.SimpleQueue()
        self.message = Message(b"", "a guest", Share(), tell=self.pieces.put)
        self.looked: list[tuple[bool, bool]] = []
        """Whether the message was stopping, and was cut off, when the loop was to look at it."""
        self.ends_when = (True, False)
        self.is_elsewhere = True

    def stream(self) -> Stream:
        made = Stream(self.message, self.pieces, self._look_at, self._require_elsewhere)
        made.abandon_if_dropped()
        return made

    def end(self, outcome: Reply | BaseException = REPLY) -> None:
        self.message.end(outcome)
        self.message.deliver()

    def _look_at(self, message: Message) -> None:
        self.looked.append((message.stopping, message.is_cut_off))
        if self.looked[-1] == self.ends_when:
            self.end(Cancelled("stopped"))

    def _require_elsewhere(self) -> None:
        if not self.is_elsewhere:
            raise ActorBusy("on the loop")


def test_pieces_then_the_reply() -> None:
    source = Source()
    stream = source.stream()
    for text in ("one", "two"):
        source.message.pieces.append(text)
        source.message.deliver()
    assert next(stream) == "one"
    assert not stream.ended
    with pytest.raises(RuntimeError, match="not complete"):
        stream.reply  # noqa: B018
    source.end()
    assert stream.ended
    assert list(stream) == ["two"]
    assert stream.reply is REPLY
    assert list(stream) == []


def test_pieces_then_the_error_once() -> None:
    source = Source()
    stream = source.stream()
    source.message.pieces.append("one")
    source.end(GuestTrapped("it trapped"))
    assert next(stream) == "one"
    with pytest.raises(GuestTrapped):
        next(stream)
    assert list(stream) == []
    with pytest.raises(RuntimeError, match="not complete"):
        stream.reply  # noqa: B018


def test_closing_it_asks_the_guest_to_stop() -> None:
    source = Source()
    stream = source.stream()
    stream.close()
    assert source.looked == [(True, False)]
    with pytest.raises(Cancelled):
        next(stream)
    stream.close()
    assert len(source.looked) == 1


def test_a_guest_that_does_not_stop_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "STOP_GRACE_S", 0.01)
    source = Source()
    source.ends_when = (True, True)
    stream = source.stream()
    stream.close()
    assert source.looked == [(True, False), (True, True)]
    assert stream.ended


def test_it_closes_when_a_block_is_left() -> None:
    source = Source()
    with pytest.raises(KeyError), source.stream():
        raise KeyError("x")
    assert source.message.stopping
    assert source.message.ended.is_set()


def test_ctrl_c_closes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def get(self) -> Piece:
            raise KeyboardInterrupt

    source = Source()
    stream = source.stream()
    monkeypatch.setattr(stream, "_pieces", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert source.message.ended.is_set()


def test_one_that_is_dropped_waits_for_nothing() -> None:
    source = Source()
    source.ends_when = (False, False)
    stream = source.stream()
    del stream
    gc.collect()
    assert source.looked == [(True, False)]
    assert source.message.abandoned_at is not None
    assert not source.message.ended.is_set()


def test_one_that_is_dropped_after_its_end_asks_for_nothing() -> None:
    source = Source()
    stream = source.stream()
    source.end()
    del stream
    gc.collect()
    assert source.looked == []


def test_nobody_waits_for_it_on_the_loop() -> None:
    source = Source()
    stream = source.stream()
    source.is_elsewhere = False
    for wait in (stream.close, lambda: next(stream)):
        with pytest.raises(ActorBusy):
            wait()
    assert not source.message.stopping
    source.end()
    stream.close()  # has nothing to wait for
    source.is_elsewhere = True
    assert list(stream) == []
