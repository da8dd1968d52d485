"""Ids of responses and items, which say where these are kept.

::

    resp_ AGENT(12) WORD(8) POSITION      a response
    msg_  AGENT(12) WORD(8) POSITION _ N  an item of its output
    msg_  AGENT(12) WORD(8) POSITION i N  an item of its input
    msg_  32 hexadecimal digits           an item of a response that is not kept

A position of an agent becomes a response once it is saved. Before that its id was told to whoever
streams it; if it never is saved, another response may get the position. The word tells them apart,
and makes ids that nobody can guess.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

from isthmus.server.http.ids import random_id

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_PLACE = re.compile(r"(?P<agent>[a-z0-9]{12})(?P<word>[a-z0-9]{8})(?P<position>[1-9][0-9]{0,14})")
_RESPONSE = re.compile(rf"resp_{_PLACE.pattern}", re.ASCII)
_ITEM = re.compile(rf"[a-z]{{2,8}}_{_PLACE.pattern}[_i][0-9]{{1,6}}", re.ASCII)
_CONVERSATION = re.compile(r"conv_(?P<agent>[a-z0-9]{12})", re.ASCII)
PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "reasoning": "rs",
    "additional_tools": "at",
}
"""What the id of an item begins with, by its type."""


@dataclass(frozen=True)
class Place:
    """Where a response is kept: an agent's position."""

    agent: str
    position: int
    word: str

    @staticmethod
    def at(agent: str, position: int) -> Place:
        """A place with a word of its own."""
        return Place(agent, position, "".join(secrets.choice(_LETTERS) for _ in range(8)))

    @property
    def _text(self) -> str:
        return f"{self.agent}{self.word}{self.position}"

    @property
    def response(self) -> str:
        """The id of the response."""
        return f"resp_{self._text}"

    def output(self, kind: str, n: int) -> str:
        """The id of an item of its output, the n-th from 0."""
        return f"{PREFIXES[kind]}_{self._text}_{n}"

    def input(self, kind: str, n: int) -> str:
        """The id of an item of its input, the n-th from 0."""
        return f"{PREFIXES[kind]}_{self._text}i{n}"


class Nowhere:
    """Ids of a response that is not kept."""

    def __init__(self) -> None:
        self.response = random_id("resp_", 48)

    def output(self, kind: str, _n: int) -> str:
        """The id of an item of its output."""
        return random_id(f"{PREFIXES[kind]}_", 32)

    input = output


def place_of_response(id_: str) -> Place | None:
    """Where a response of that id would be; None if no response has such an id."""
    return _place(_RESPONSE, id_)


def place_of_item(id_: str) -> Place | None:
    """Where the item of that id would be; None if no item that is kept has such an id."""
    return _place(_ITEM, id_)


def agent_of_conversation(id_: str) -> str | None:
    """The agent that a conversation is; None if no conversation has such an id."""
    found = _CONVERSATION.fullmatch(id_)
    return None if found is None else found["agent"]


def conversation_of(agent: str) -> str:
    """The id of the conversation that an agent is."""
    return f"conv_{agent}"


def _place(pattern: re.Pattern[str], id_: str) -> Place | None:
    found = pattern.fullmatch(id_)
    return None if found is None else Place(found["agent"], int(found["position"]), found["word"])
