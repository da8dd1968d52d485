"""Takes a model's answer apart while it comes: text, thoughts and calls of tools."""

from __future__ import annotations

from collections.abc import Iterable

from isthmus.model.forms.calls import Calls
from isthmus.model.forms.events import Event
from isthmus.model.forms.json_calls import JsonCalls
from isthmus.model.forms.out import Out
from isthmus.model.forms.tape import Reading, Stops, Tape
from isthmus.model.forms.thought import Thought
from isthmus.model.forms.tools import Tools

UNKNOWN = JsonCalls(opens=("<tool_call>",), closes="</tool_call>")
"""Calls that are read if a template tells no notation: more models were trained on these than on
others, and people describe them in their prompts."""
FORCED = JsonCalls(starts_bare=True)
"""Calls that a grammar forces if it cannot say the model's own form."""
FORCED_LIST = JsonCalls(starts_bare=True, listed=True)
"""Calls that a grammar forces in that case if there may be several."""


class Parser:
    """One answer. Made by `Form.parser`; used by one thread at a time.

    Takes time that grows with the answer's length alone, and never raises, whatever the text is. It
    holds back what may be the beginning of a marker, white space before one, and a call until its
    function is known.
    """

    def __init__(
        self,
        calls: Calls,
        thought: Thought | None,
        wraps: Iterable[tuple[str, str]],
        tools: Tools,
        *,
        in_thought: bool,
        forced: bool,
    ) -> None:
        """An answer in the form that `Form` describes with the same words."""
        in_thought = in_thought and thought is not None
        self._calls = calls if tools.any or calls.thinks else None
        self._thought = thought
        self._wraps = dict(wraps)
        self._forced = forced
        self._tape = Tape()
        self._out = Out(self._tape, tools, in_thought)
        self._stops = self._stops_with("")
        self._thought_stops = Stops([thought.ends] if thought else [])
        self._reading = self._read(in_thought)
        next(self._reading)

    def feed(self, piece: str) -> list[Event]:
        """Events of one more piece of the answer, of any length."""
        if piece:
            self._tape.feed(piece)
            next(self._reading, None)
        return self._out.drain()

    def end(self) -> list[Event]:
        """Events of what was held back, at the end of the answer. A call that was cut off ends with
        what came of it. Afterwards nothing more may come."""
        self._tape.ended = True
        next(self._reading, None)
        return self._out.drain()

    @property
    def n_looked_at(self) -> int:
        """Characters that were copied or searched until now: a measure of the time it takes."""
        return self._tape.n_looked_at

    # ------------------------------------------------------------------------------ reading

    def _read(self, in_thought: bool) -> Reading[None]:
        if in_thought:
            yield from self._think()
        at_beginning, stop = True, " "
        while stop:
            while at_beginning:
                at_beginning = yield from self._beginning()
            stop = yield from self._tape.until(self._stops, self._out.text)
            at_beginning = bool(stop) and (yield from self._marked(stop))
        self._out.end_text()

    def _beginning(self) -> Reading[bool]:
        """Reads what may stand at the beginning of an answer, and after a thought or a call only.
        Returns whether something did, so that more may come."""
        self._tape.mark()
        yield from self._tape.spaces()
        if self._thought and (yield from self._tape.take(self._thought.begins)):
            self._tape.unmark()
            yield from self._think()
            return True
        wrap = yield from self._tape.take_any(self._wraps)
        if wrap:
            self._tape.unmark()
            self._out.marker()
            self._stops = self._stops_with(self._wraps[wrap])
            return True
        calls = None
        if not (yield from self._tape.comes(self._stops.texts)):
            calls = self._bare((yield from self._tape.peek()))
        if calls:
            return (yield from self._call(calls))
        self._out.text(self._tape.unmark())
        return False

    def _bare(self, char: str) -> Calls | None:
        """The notation that may begin with a character, without a marker."""
        if self._calls and char and char in self._calls.bare:
            return self._calls
        return FORCED if self._forced and char and char in FORCED.bare else None

    def _marked(self, stop: str) -> Reading[bool]:
        """Reads what a marker begins. Returns whether the text is at a beginning again."""
        if stop in self._wraps.values():
            yield from self._tape.take(stop)
            self._out.marker()
            self._stops = self._stops_with("")
            return True
        if self._thought and stop == self._thought.begins:
            yield from self._tape.take(stop)
            yield from self._think()
            return True
        if self._calls is None:
            return False
        self._tape.mark()
        return (yield from self._call(self._calls))

    def _call(self, calls: Calls) -> Reading[bool]:
        """Reads a block of calls. Returns whether something was read and a call came last. If the
        text is cut off within a marker, that much of the marker is no text."""
        n_read = self._tape.n_read
        yield from calls.read(self._tape, self._out)
        if self._out.after_marker:
            self._tape.skip_end(calls.markers)
        return self._out.after_marker and self._tape.n_read > n_read

    def _think(self) -> Reading[None]:
        """Reads a thought, whose first marker was read."""
        stop = yield from self._tape.until(self._thought_stops, self._out.reasoning)
        yield from self._tape.take(stop)
        self._out.marker()

    def _stops_with(self, wrap: str) -> Stops:
        """The markers within a text, and the end of what is around it, if anything is."""
        found = [wrap] if wrap else []
        if self._calls:
            found += self._calls.begins
        if self._thought and self._thought.anywhere and not (self._calls and self._calls.thinks):
            found.append(self._thought.begins)
        return Stops(found)
