"""Harmony: an answer as messages, each of which says in which channel it is and whom it is for.

https://github.com/openai/harmony/blob/main/docs/format.md
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from isthmus.model.forms.calls import Calls
from isthmus.model.forms.lark import Lark, WantedCalls
from isthmus.model.forms.out import Out
from isthmus.model.forms.tape import Reading, Stops, Tape
from isthmus.model.forms.values import JSON, read_value

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
END, CALL, RETURN, CONSTRAIN = "<|end|>", "<|call|>", "<|return|>", "<|constrain|>"
_ENDS = (END, CALL, RETURN)
_HEADER_STOPS = Stops([MESSAGE, *_ENDS])
_CONTENT_STOPS = Stops([START, CHANNEL, *_ENDS])
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")


@dataclass(frozen=True)
class Channels(Calls):
    """`<|start|>assistant<|channel|>CHANNEL to=functions.NAME <|constrain|>json<|message|>{…}`."""

    @property
    def begins(self) -> tuple[str, ...]:
        return (START, CHANNEL)

    @property
    def markers(self) -> tuple[str, ...]:
        return (*self.begins, MESSAGE, CONSTRAIN, *_ENDS)

    @property
    def bare(self) -> str:
        return "t"

    @property
    def thinks(self) -> bool:
        return True

    def read(self, tape: Tape, out: Out) -> Reading[None]:
        """Reads one message. Its header may begin with the recipient, after what a prompt said."""
        header: list[str] = []
        opened = yield from tape.take_any((*self.begins, "to="))
        header.append(opened)
        stop = (yield from tape.until(_HEADER_STOPS, header.append)) if opened else ""
        if stop != MESSAGE:
            out.fail()
            return
        yield from tape.take(MESSAGE)
        said = "".join(header)
        recipient, channel = _RECIPIENT.search(said), _CHANNEL.search(said)
        if recipient is not None:
            yield from self._call(tape, out, recipient.group(1))
            return
        tape.unmark()
        out.marker()
        thinks = channel is not None and channel.group(1) == "analysis"
        yield from tape.until(_CONTENT_STOPS, out.reasoning if thinks else out.text)
        yield from tape.take_any(_ENDS)
        out.marker()

    def _call(self, tape: Tape, out: Out, recipient: str) -> Reading[None]:
        yield from tape.spaces()
        if not (yield from tape.comes("{")):
            out.fail()
            return
        out.begin(recipient)
        if not (yield from read_value(tape, JSON, out.arguments)):
            out.fail()
            return
        out.end()
        tape.mark()
        yield from tape.spaces()
        yield from tape.take_any(_ENDS)
        out.leave()

    def grammar(self, lark: Lark, wanted: WantedCalls) -> str | None:
        head = f"{CHANNEL}commentary to=functions."
        calls = [
            f"{lark.text(f'{head}{it.name} {CONSTRAIN}json{MESSAGE}')} {lark.json(it)}"
            for it in wanted.functions
        ]
        call = lark.rule(" | ".join(calls))
        return lark.repeated(call, f"{CALL}{START}assistant", wanted.several)
