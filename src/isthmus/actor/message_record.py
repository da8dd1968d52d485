"""A message between two tokens, as a snapshot has it."""

from __future__ import annotations

from array import array
from dataclasses import asdict

from isthmus.actor.paused import Paused
from isthmus.actor.reading import ReadState
from isthmus.actor.reply import ToolCall
from isthmus.snapshot import Snapshot
from isthmus.snapshot.records import (
    EMITTED_PART,
    MESSAGE_PART,
    READ_PART,
    REPLY_PART,
    TOLD_PART,
    TOOL_RESULT_PART,
    UNREAD_PART,
    AnswerRecord,
    Dtype,
    MessageRecord,
    ToolCallRecord,
)
from isthmus.wasm.pausing import PendingCall


def record_of(it: Paused) -> MessageRecord:
    """What the manifest says of it."""
    read = it.answer
    return MessageRecord(
        pending=it.pending.name,
        arguments=it.pending.arguments,
        room=it.pending.room,
        n_outputs=it.n_outputs,
        output_nbytes=it.output_nbytes,
        tokens_in=it.tokens_in,
        tokens_out=it.tokens_out,
        fuel=it.fuel,
        seconds=it.seconds,
        seconds_left=it.seconds_left,
        has_reply=it.reply is not None,
        has_tool_result=it.tool_result is not None,
        limits_reached=it.limits_reached,
        last_limit=it.last_limit,
        last_warning=it.last_warning.replace("\0", ""),
        tool_calls=tuple(_call_record(call) for call in it.tool_calls),
        answer=_answer_record(read) if read else None,
    )


def parts_of(it: Paused) -> dict[str, tuple[Dtype, bytes]]:
    """Its parts, by name."""
    parts: dict[str, tuple[Dtype, bytes]]
    parts = {MESSAGE_PART: ("U8", it.data), EMITTED_PART: ("U8", it.emitted)}
    if it.reply is not None:
        parts[REPLY_PART] = ("U8", it.reply)
    if it.tool_result is not None:
        parts[TOOL_RESULT_PART] = ("U8", it.tool_result)
    if it.answer is not None:
        parts[READ_PART] = ("I32", it.answer.tokens.tobytes())
        parts[TOLD_PART] = ("U8", it.answer.tools)
        parts[UNREAD_PART] = ("U8", it.answer.pending)
    return parts


def paused_in(snapshot: Snapshot) -> Paused | None:
    """The message in whose middle a snapshot is; None if it is between two."""
    it = snapshot.manifest.actor.message
    if it is None:
        return None
    return Paused(
        pending=PendingCall(it.pending, it.arguments, it.room),
        data=snapshot.part(MESSAGE_PART),
        emitted=snapshot.part(EMITTED_PART),
        reply=snapshot.part(REPLY_PART) if it.has_reply else None,
        n_outputs=it.n_outputs,
        output_nbytes=it.output_nbytes,
        tokens_in=it.tokens_in,
        tokens_out=it.tokens_out,
        fuel=it.fuel,
        seconds=it.seconds,
        seconds_left=it.seconds_left,
        limits_reached=it.limits_reached,
        last_limit=it.last_limit,
        last_warning=it.last_warning,
        tool_result=snapshot.part(TOOL_RESULT_PART) if it.has_tool_result else None,
        tool_calls=tuple(ToolCall(c.name, c.seconds, c.nbytes, c.error) for c in it.tool_calls),
        answer=_read_state(snapshot, it.answer) if it.answer else None,
    )


def _call_record(call: ToolCall) -> ToolCallRecord:
    return ToolCallRecord(**{**asdict(call), "error": call.error.replace("\0", "")})


def _answer_record(read: ReadState) -> AnswerRecord:
    return AnswerRecord(
        read.model, read.in_thought, read.forced, read.ended, len(read.tokens), read.ids
    )


def _read_state(snapshot: Snapshot, it: AnswerRecord) -> ReadState:
    snapshot.manifest.model(it.model)
    tokens = array("i", snapshot.part(READ_PART))
    told, unread = snapshot.part(TOLD_PART), snapshot.part(UNREAD_PART)
    return ReadState(it.model, told, it.in_thought, it.forced, tokens, unread, it.ended, it.ids)
