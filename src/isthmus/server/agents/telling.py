"""Events of an agent's answer, and their ids, by which a client that was cut off comes back.

::

    begun   MESSAGE.0      of answers in the background
    delta   MESSAGE.N      N characters of the answer are told with it and before it
    done    MESSAGE.end

The id counts characters, not pieces: how an answer is cut into pieces is chance, its text is not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from isthmus.server.agents.replies import Begun, Told, told
from isthmus.server.http.errors import HttpError, not_found
from isthmus.server.http.events import event
from isthmus.server.storage.history import TEXT_CHARACTERS
from isthmus.server.storage.record import Record, Turn

HEADER = "Last-Event-ID"
_ID = re.compile("(m[a-z0-9]{12})[.]([0-9]{1,12}|end)")


@dataclass(frozen=True)
class Place:
    """How far somebody has heard an answer."""

    message: str
    at: int | None
    """Characters that were told; None for all of it, and its end."""

    @staticmethod
    def of(header: str) -> Place:
        """What the header says. HttpError 400."""
        found = _ID.fullmatch(header.strip())
        if found is None:
            said = f"{header[:60]!r} is no id of an event of an agent's answer"
            raise HttpError(400, said, code="last_event_id", param=HEADER)
        return Place(found[1], None if found[2] == "end" else int(found[2]))

    def rest_of(self, length: int) -> int:
        """Where the rest of an answer of that length begins. HttpError 400 if beyond its end."""
        at = length if self.at is None else self.at
        if at > length:
            said = f"the answer has {length} characters, and the last event is to have told {at}"
            raise HttpError(400, said, code="last_event_id", param=HEADER)
        return at


def begun(it: Begun) -> bytes:
    """The event that tells of a message which is kept."""
    return event(it, "begun", f"{it['message']}.0")


def delta(message: str, end: int, text: str) -> bytes:
    """The event of a piece after which `end` characters are told."""
    return event({"text": text}, "delta", f"{message}.{end}")


def done(it: Told) -> bytes:
    """The last event of an answer."""
    return event(it, "done", f"{it['message']}.end")


def rest_of(record: Record, turns: list[Turn], place: Place) -> list[bytes]:
    """The events of an answer that is done, after a place. HttpError 404 if no turn that is kept is
    of that message, 410 if its text was too long to be kept, 400."""
    turn = next((it for it in reversed(turns) if it.message == place.message), None)
    if turn is None:
        raise not_found(
            f"agent {record.id} has no message {place.message} that is done or under way: it has "
            f"not happened, and the agent is at {record.position}; send it again"
        )
    text = turn.output if turn.told is None else turn.told
    if turn.n_left_out and len(text) == TEXT_CHARACTERS and place.at is not None:
        said = f"the answer was longer than the {TEXT_CHARACTERS} characters that are kept of one"
        raise HttpError(410, said, code="not_kept", param=HEADER)
    at = place.rest_of(len(text))
    rest = [delta(turn.message, len(text), text[at:])] if at < len(text) else []
    return [*rest, done(told(record, turn))]
