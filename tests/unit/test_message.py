"""A message: whether it goes on, what goes out, and what its failures mean."""

from __future__ import annotations

import time
from typing import Any

import pytest

from isthmus.abi import Errno
from isthmus.actor.message import STOP_GRACE_S, Message
from isthmus.actor.reply import Piece, Reply
from isthmus.actor.shares import Share
from isthmus.errors import (
    Cancelled,
    ContextFull,
    DeadlineExceeded,
    DeviceFailed,
    GuestFailed,
    GuestFault,
    IsthmusError,
    LimitExceeded,
    ModelNotFound,
    Overloaded,
)
from isthmus.units import MIB

REPLY = Reply(b"", 0, 0.0)


def message(**given: Any) -> Message:
    return Message(b"hello", "a guest", Share(), **given)


def listener() -> tuple[Message, list[Piece]]:
    heard: list[Piece] = []
    return message(tell=heard.append), heard


# ---------------------------------------------------------------------------------- going on

PAST, FUTURE = -1.0, 3600.0
LONG_AGO = -STOP_GRACE_S - 1.0


@pytest.mark.parametrize(
    ("deadline_s", "changed", "check", "going_on", "begin"),
    [
        (None, {}, None, None, None),
        (FUTURE, {}, None, None, None),
        (PAST, {}, DeadlineExceeded, DeadlineExceeded, DeadlineExceeded),
        (None, {"stopping": True}, None, GuestFault, Cancelled),
        (PAST, {"stopping": True}, DeadlineExceeded, DeadlineExceeded, Cancelled),
        (None, {"is_cut_off": True}, Cancelled, Cancelled, Cancelled),
        (PAST, {"is_cut_off": True}, Cancelled, Cancelled, Cancelled),
        (FUTURE, {"abandoned_s": 0.0, "stopping": True}, None, GuestFault, Cancelled),
        (FUTURE, {"abandoned_s": LONG_AGO, "stopping": True}, Cancelled, Cancelled, Cancelled),
    ],
)
def test_whether_it_goes_on(
    deadline_s: float | None, changed: dict[str, Any], check: Any, going_on: Any, begin: Any
) -> None:
    now = time.monotonic()
    it = message(deadline=None if deadline_s is None else now + deadline_s)
    if (since := changed.pop("abandoned_s", None)) is not None:
        it.abandoned_at = now + since
    for name, value in changed.items():
        setattr(it, name, value)
    for ask, kind in ((it.check, check), (it.check_going_on, going_on), (it.require_begin, begin)):
        if kind is None:
            ask()
            continue
        with pytest.raises(kind) as caught:
            ask()
        assert caught.type is kind


@pytest.mark.parametrize(
    ("deadline", "abandoned", "at"),
    [
        (None, None, None),
        (50.0, None, 50.0),
        (None, 7.0, 7.0 + STOP_GRACE_S),
        (50.0, 7.0, 7.0 + STOP_GRACE_S),
        (8.0, 7.0, 8.0),
    ],
)
def test_when_it_is_cut_off(
    deadline: float | None, abandoned: float | None, at: float | None
) -> None:
    it = message(deadline=deadline)
    it.abandoned_at = abandoned
    assert it.ends_at == at


def test_abandoning_it_twice_gives_no_more_time() -> None:
    it = message()
    it.abandon()
    first = it.abandoned_at
    time.sleep(0.001)
    it.abandon()
    assert it.abandoned_at == first
    assert it.stopping


def test_what_has_ended_is_not_abandoned() -> None:
    it = message()
    it.end(REPLY)
    it.deliver()
    it.abandon()
    assert it.abandoned_at is None
    assert not it.stopping


# ---------------------------------------------------------------------------------- what goes out


def test_pieces_of_one_turn_are_delivered_as_one() -> None:
    it, heard = listener()
    for data in (b"one ", b"two ", b"three"):
        it.emit(data)
    it.deliver()
    assert heard == ["one two three"]
    it.deliver()
    assert heard == ["one two three"]
    assert it.answer == b"one two three"


def test_long_pieces_are_not_joined() -> None:
    it, heard = listener()
    long = b"x" * 5000
    for _ in range(3):
        it.emit(long)
    it.deliver()
    assert heard == [long.decode()] * 3


@pytest.mark.parametrize(
    ("parts", "pieces"),
    [
        ([b"\xe2\x82", b"\xac"], ["", "\u20ac"]),
        ([b"a\xe2", b"\x82\xacb"], ["a", "\u20acb"]),
        ([b"\xff", b"a"], ["\ufffd", "a"]),
        ([b"a\xe2\x82"], ["a", "\ufffd"]),  # never finished
        ([b""], []),
    ],
)
def test_characters_are_never_cut(parts: list[bytes], pieces: list[str]) -> None:
    it, heard = listener()
    for part in parts:
        it.emit(part)
        it.deliver()
    it.finish()
    it.deliver()
    assert heard == [piece for piece in pieces if piece]
    assert it.answer == b"".join(parts)


def test_a_reply_is_the_answer_whatever_was_emitted() -> None:
    it = message()
    it.emit(b"thinking")
    it.reply = b"answer"
    assert it.answer == b"answer"
    it.reply = b""
    assert it.answer == b""


def test_much_output_is_kept_in_parts_and_whole() -> None:
    it = message()
    part = bytes(range(256)) * 1024
    for _ in range(20):
        it.emit(part)
    assert it.answer == part * 20
    assert max(map(len, it._emitted)) < 2 * MIB


@pytest.mark.parametrize("outcome", [REPLY, GuestFailed(5, "")])
def test_the_outcome_comes_last_and_once(outcome: Reply | BaseException) -> None:
    it, heard = listener()
    it.emit(b"text")
    it.end(outcome)
    assert not it.ended.is_set()  # nobody knows yet
    it.deliver()
    it.deliver()
    assert heard == ["text", outcome]
    assert it.ended.is_set()


def test_it_has_ended_before_whoever_sent_it_hears_so() -> None:
    states = []
    it = message(tell=lambda piece: states.append(it.ended.is_set()))
    it.end(REPLY)
    it.deliver()
    assert states == [True]


def test_what_it_held_is_let_go_of_at_its_end() -> None:
    it = message()
    it.emit(b"text")
    it.reply, it.tool_result = b"answer", b"result"
    explained(it)
    refused(it)
    it.end(REPLY)
    assert (it.data, it.reply, it.tool_result, it.answer) == (b"", None, None, b"")
    assert (it.explained, it.refusal) == ({}, None)


def test_its_outcome_is_let_go_of_once_it_is_told() -> None:
    """An error keeps the body of the guest that it came from."""
    it = message()
    it.end(GuestFailed(5, ""))
    it.deliver()
    assert it.outcome is None


def test_a_listener_that_raises_has_the_rest_later() -> None:
    heard: list[Piece] = []

    def tell(piece: Piece) -> None:
        heard.append(piece)
        if len(heard) == 1:
            raise ValueError("its own fault")

    it = message(tell=tell)
    it.emit(b"x" * 5000)
    it.emit(b"rest")
    with pytest.raises(ValueError, match="its own fault"):
        it.deliver()
    it.end(REPLY)
    it.deliver()
    assert heard == ["x" * 5000, "rest", REPLY]


def test_a_listener_that_always_raises_has_the_outcome_all_the_same() -> None:
    heard: list[Piece] = []

    def tell(piece: Piece) -> None:
        heard.append(piece)
        raise ValueError("its own fault")

    it = message(tell=tell)
    for _ in range(3):
        it.emit(b"x" * 5000)
    it.end(REPLY)
    with pytest.raises(ValueError, match="its own fault"):
        it.deliver()
    assert heard == ["x" * 5000, REPLY]
    assert it.ended.is_set()


def test_a_guest_that_goes_on_talking_is_not_listened_to_for_ever() -> None:
    """What is emitted while pieces are delivered, in the slow lane, is for the next time."""
    heard: list[Piece] = []

    def tell(piece: Piece) -> None:
        heard.append(piece)
        it.emit(b"y" * 5000)

    it = message(tell=tell)
    it.emit(b"x" * 5000)
    it.deliver()
    assert heard == ["x" * 5000]
    it.deliver()
    assert heard[1:] == ["y" * 5000]


# ---------------------------------------------------------------------------------- failures


def explained(it: Message) -> None:
    it.explained[Errno.ENOENT] = ModelNotFound("no such model")


def failed(it: Message) -> None:
    async def work() -> None:
        pass

    it.work = work()
    it.resume(None, DeviceFailed("the card fell off the bus"))


def limited(it: Message) -> None:
    it.reached("sessions", 1)
    it.reached("kv_nbytes", 2 * MIB)


def refused(it: Message) -> None:
    limited(it)
    it.refusal = Overloaded("no memory is left")


def warned(it: Message) -> None:
    it.last_warning = "the file is torn"


@pytest.mark.parametrize(
    ("before", "code", "kind", "text"),
    [
        (explained, Errno.ENOENT, ModelNotFound, "no such model"),
        (explained, Errno.EINVAL, GuestFailed, "EINVAL"),
        (failed, Errno.EIO, DeviceFailed, "fell off the bus"),
        (failed, Errno.EINVAL, GuestFailed, "EINVAL"),
        (limited, Errno.ECONTEXT, ContextFull, "no room"),
        (limited, Errno.ECANCELED, Cancelled, "stopped"),
        (limited, Errno.ELIMIT, LimitExceeded, r"kv_nbytes, 2.0 MiB"),
        (limited, Errno.ENOMEM, LimitExceeded, "kv_nbytes"),
        (limited, Errno.EIO, GuestFailed, "EIO"),
        (refused, Errno.ENOMEM, Overloaded, "no memory is left"),
        (refused, Errno.ELIMIT, Overloaded, "no memory is left"),
        (refused, Errno.EIO, GuestFailed, "EIO"),
        (warned, 77, GuestFailed, "the file is torn"),
    ],
)
def test_what_an_errno_means_to_the_caller(
    before: Any, code: int, kind: type[IsthmusError], text: str
) -> None:
    it = message()
    before(it)
    error = it.failure(code)
    assert type(error) is kind
    with pytest.raises(kind, match=text):
        raise error


def test_limits_are_counted_by_name() -> None:
    it = message()
    for _ in range(3):
        it.reached("tokens", 5)
    assert it.limits_reached == {"tokens": 3}
    assert it.last_limit == "tokens, 5 for prompt and answer together"


def test_a_limit_that_ended_it_is_counted_once() -> None:
    it = message()
    it.note_outcome(LimitExceeded("out of fuel", "fuel"))
    it.note_outcome(LimitExceeded("out of fuel", "fuel"))
    it.note_outcome(REPLY)
    it.note_outcome(ValueError())
    assert it.limits_reached == {"fuel": 1}
