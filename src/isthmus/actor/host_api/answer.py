"""The host functions of the group `answer` in `abi/host.toml`, in its order."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import msgspec

from isthmus.abi import AnswerFlag, AnswerPart, Errno
from isthmus.actor.ask import Aside
from isthmus.actor.host_api.context import Context, flags_of, signed
from isthmus.actor.host_api.tool import described
from isthmus.actor.reading import MAX_NBYTES, Call, ReadAnswer
from isthmus.errors import GuestFault
from isthmus.model import Model
from isthmus.units import MIB

_MAX_MESSAGES_NBYTES = 4 * MIB
_EPOCH = datetime(1970, 1, 1)
_ID_NBYTES = 6
"""Random bytes of a call's id."""
_messages = msgspec.json.Decoder(list[dict[str, Any]])
_OF_CALLS: dict[int, Callable[[Call], str]] = {
    AnswerPart.CALL_ID.value: lambda it: it.id,
    AnswerPart.CALL_NAME.value: lambda it: it.name,
    AnswerPart.CALL_ARGUMENTS.value: lambda it: it.text,
}


class AnswerFunctions:
    """See the module. One for each actor."""

    def __init__(self, context: Context) -> None:
        self._c = context
        self._told: set[str] = set()
        """Warnings about conversations that the log has."""

    async def chat_tokens(
        self,
        model: int,
        messages_ptr: int,
        messages_nbytes: int,
        flags: int,
        tokens_ptr: int,
        tokens_cap: int,
    ) -> int:
        c = self._c
        opened = c.model(model)
        wanted = flags_of(AnswerFlag, flags)
        tools = described(c) if AnswerFlag.TOOLS in wanted else []
        forced = AnswerFlag.CALL in wanted
        if messages_nbytes > _MAX_MESSAGES_NBYTES or (forced and not tools):
            raise GuestFault(Errno.EINVAL)
        c.memory.check(messages_ptr, messages_nbytes)
        c.memory.check_aligned(tokens_ptr, 4 * tokens_cap, 4)
        name = c.handles.model_of(model)
        now = _EPOCH + timedelta(microseconds=c.clock.now_ns // 1000)

        def write() -> int:
            messages = self._read(messages_ptr, messages_nbytes)
            check = c.message.check_going_on
            chat = opened.render_chat(messages, tools=tools or None, now=now, check=check)
            for said in chat.warnings:
                self._warn(opened, said)
            c.message.answer_in = ReadAnswer(
                opened, tools, in_thought=chat.opens_thought, forced=forced, name=name
            )
            if len(chat.ids) <= tokens_cap:
                c.memory.write(tokens_ptr, array("i", chat.ids).tobytes())
            return len(chat.ids)

        return await Aside(c.message, write)

    async def answer_grammar(self, ptr: int, cap: int) -> int:
        c, answer = self._c, self._answer()
        if not answer.has_tools:
            raise GuestFault(Errno.EINVAL)
        c.memory.check(ptr, cap)
        check = c.message.check_going_on
        source = await Aside(c.message, lambda: answer.grammar(check))
        return c.fill(ptr, cap, source.encode())

    def answer_feed(self, token: int) -> int:
        answer = self._answer()
        if answer.ended:
            raise GuestFault(Errno.EINVAL)
        if answer.nbytes > MAX_NBYTES:
            raise GuestFault(Errno.ELIMIT)
        return answer.feed(signed(token))

    def answer_end(self) -> int:
        answer = self._answer()
        n_calls = answer.end()
        for name in answer.cut_off:
            text = f"a call of the tool {name!r} was cut off or is no JSON, and is not made"
            self._c.log(logging.WARNING, text)
        for call in answer.calls:
            call.id = call.id or f"call_{self._c.random.draw(_ID_NBYTES).hex()}"
        return n_calls

    def answer_read(self, part: int, index: int, ptr: int, cap: int) -> int | Aside[int]:
        c, answer = self._c, self._answer()
        if part == AnswerPart.TEXT and index == 0:
            nbytes = c.fill(ptr, cap, bytes(answer.pending))
            if nbytes <= cap:
                answer.pending.clear()
            return nbytes
        if not answer.ended:
            raise GuestFault(Errno.EINVAL)
        if part == AnswerPart.MESSAGE and index == 0:
            return c.fill_soon(ptr, cap, answer.message())
        if part not in _OF_CALLS or index >= len(answer.calls):
            raise GuestFault(Errno.EINVAL)
        return c.fill_soon(ptr, cap, _OF_CALLS[part](answer.calls[index]).encode())

    # ------------------------------------------------------------------ parts

    def _answer(self) -> ReadAnswer:
        """The answer that was begun; GuestFault(EINVAL)."""
        answer = self._c.message.answer_in
        if answer is None:
            raise GuestFault(Errno.EINVAL)
        return answer

    def _read(self, ptr: int, nbytes: int) -> list[dict[str, Any]]:
        try:
            return _messages.decode(self._c.memory.read(ptr, nbytes))
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            raise GuestFault(Errno.EINVAL) from None

    def _warn(self, model: Model, said: str) -> None:
        """Logs what a template leaves out, the first time that it does."""
        text = f"{model.name}: {said}"
        if text not in self._told:
            self._told.add(text)
            self._c.log(logging.WARNING, text)
