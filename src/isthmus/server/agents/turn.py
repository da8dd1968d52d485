"""A turn, made of a message and its answer, and why the answer ended."""

from __future__ import annotations

import re
import time

import msgspec

from isthmus.actor import Restoration
from isthmus.server.generation.answering import Answer
from isthmus.server.http.entry import current
from isthmus.server.storage.record import Midway, Record, Turn

_NUMBER = re.compile("[0-9]{1,9}")


def turn_of(record: Record, sent: Midway, answer: Answer, told: str, *, full: bool) -> Turn:
    """The next turn of an agent, before it is saved. `told` is what was told of the answer while it
    came; `full` if its context is full."""
    reply = answer.reply
    return Turn(
        position=record.position + 1,
        at=time.time(),
        input=sent.input,
        n_files=sent.n_files,
        output=reply.text,
        n_tokens=reply.n_tokens,
        seconds=reply.seconds,
        tool_calls=reply.tool_calls,
        nbytes_written=0,
        n_decoded=reply.n_decoded,
        ended="n_ctx" if full else _ended(record, answer, reply.n_decoded),
        exit_status=answer.exit_status,
        message=sent.message,
        told=None if told == reply.text else told,
    )


def with_level(turn: Turn, restored: Restoration | None) -> Turn:
    """The turn of an agent that was brought back for it. The answer warns if that was not exact."""
    if restored is None or restored.level == "exact":
        return turn
    current().warn([f"the agent came back {restored.level}: {'; '.join(restored.reasons)}"])
    return msgspec.structs.replace(turn, restored=restored.level)


def _ended(record: Record, answer: Answer, n_decoded: int) -> str:
    """See `Turn.ended`. Guests do not tell that `max_tokens` ended an answer, so it is counted."""
    if answer.stopped:
        return "stopped"
    if answer.exit_status:
        return "exit"
    most = record.args.get("max_tokens", "")
    if _NUMBER.fullmatch(most) and n_decoded >= int(most):
        return "max_tokens"
    return next(iter(answer.reply.limits_reached), "end")
