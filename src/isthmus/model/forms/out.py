"""Events that readers find in a model's text, and the white space around them.

White space between a text, a thought and calls belongs to the form, not to the answer: at the end
of a text it is held until something else comes, and dropped if that is a thought or a call.
"""

from __future__ import annotations

from isthmus.model.forms.events import (
    Arguments,
    CallBegins,
    CallEnds,
    Event,
    Reasoning,
    Text,
    joined,
)
from isthmus.model.forms.tape import SPACES, Tape
from isthmus.model.forms.tools import Tools


class Out:
    """Events until now, and the call that is being read.

    What is read since `tape.mark()` comes out as text if it turns out to be no call.
    """

    def __init__(self, tape: Tape, tools: Tools, in_thought: bool) -> None:
        self.tools = tools
        self.name: str | None = None
        """The function that is being called; None outside of calls that are known."""
        self._tape = tape
        self._events: list[Event] = []
        self._n_calls = 0
        self._kind: type[Text] | type[Reasoning] = Reasoning if in_thought else Text
        self.after_marker = in_thought
        """Whether nothing but white space came after a thought or a call."""
        self._spaces: list[str] = []

    def drain(self) -> list[Event]:
        """Events since it was last asked, joined."""
        events, self._events = self._events, []
        return joined(events)

    def text(self, piece: str) -> None:
        """Part of the answer's text."""
        self._write(Text, piece)

    def reasoning(self, piece: str) -> None:
        """Part of a thought."""
        self._write(Reasoning, piece)

    def _write(self, kind: type[Text] | type[Reasoning], piece: str) -> None:
        if kind is not self._kind:
            self.marker()
            self._kind = kind
        if self.after_marker:
            piece = piece.lstrip(SPACES)
        said = piece.rstrip(SPACES)
        if said:
            self.after_marker = False
            self._events.append(kind("".join([*self._spaces, said])))
            self._spaces = []
        if len(said) < len(piece):
            self._spaces.append(piece[len(said) :])

    def marker(self) -> None:
        """Drops the white space on both sides: what is here is no text."""
        self._spaces = []
        self.after_marker = True

    def end_text(self) -> None:
        """Says what is held of a text, at its end."""
        if self._spaces and self._kind is Text:
            self._events.append(Text("".join(self._spaces)))
        self._spaces = []

    # ------------------------------------------------------------------------------ calls

    def begin(self, name: str) -> bool:
        """Begins a call of a function, if it is known. Otherwise arguments go nowhere, and `end`
        or `fail` gives as text what was read since the mark."""
        self.name = self.tools.known(name)
        if self.name is None:
            return False
        self._tape.unmark()
        self.marker()
        self._events.append(CallBegins(self._n_calls, self.name))
        return True

    def arguments(self, piece: str) -> None:
        """Part of the call's arguments, as JSON."""
        if self.name is not None and piece:
            self._events.append(Arguments(self._n_calls, piece))

    def end(self, whole: bool = True) -> bool:
        """Ends the call, or says as text what was none. Returns whether it was a call."""
        if self.name is None:
            self.text(self._tape.unmark())
            return False
        self._events.append(CallEnds(self._n_calls, whole))
        self._n_calls += 1
        self.name = None
        return True

    def leave(self) -> None:
        """Ends a block. What was read since the mark is a part of the form if a call came before
        it, and a part of the text otherwise."""
        kept = self._tape.unmark()
        if not self.after_marker:
            self.text(kept)

    def fail(self) -> None:
        """Ends what is broken or cut off."""
        self.end(whole=False)
