"""Which agent a request names: in its path, or in the body of a response to make."""

from __future__ import annotations

import re

import msgspec
from msgspec import Struct

from isthmus.server.responses.ids import agent_of_conversation, place_of_response

_PATH = re.compile(r"/v1/(?P<kind>agents|responses|conversations)/(?P<id>[^/]+)(/.*)?")
_AGENT = re.compile(r"[a-z0-9]{12}")
_MAKING = ("/v1/responses", "/v1/responses/input_tokens")


class _Conversation(Struct):
    id: str


class _Making(Struct):
    previous_response_id: str | None = None
    conversation: str | _Conversation | None = None


class _Message(Struct):
    previous: int | None = None


_making = msgspec.json.Decoder(_Making)
_message = msgspec.json.Decoder(_Message)


def agent_of_path(path: str) -> str | None:
    """The agent that a path is about; None if it is about none."""
    found = _PATH.fullmatch(path)
    if found is None:
        return None
    kind, id_ = found["kind"], found["id"]
    if kind == "responses":
        return _agent_of_response(id_)
    if kind == "conversations":
        return agent_of_conversation(id_)
    return id_ if _AGENT.fullmatch(id_) else None


def is_told_by_body(method: str, path: str) -> bool:
    """Whether the body may name an agent."""
    return method == "POST" and path in _MAKING


def agent_of_body(body: bytes) -> str | None:
    """The agent that a response goes on from; None if there is none, or the body is no JSON."""
    try:
        asked = _making.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None  # whoever answers the request says what is wrong
    if asked.previous_response_id is not None:
        return _agent_of_response(asked.previous_response_id)
    said = asked.conversation
    id_ = said.id if isinstance(said, _Conversation) else said
    return None if id_ is None else agent_of_conversation(id_)


def names_position(body: bytes) -> bool:
    """Whether a message says after which position it comes, so that it is done once."""
    try:
        return _message.decode(body).previous is not None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False


def _agent_of_response(id_: str) -> str | None:
    place = place_of_response(id_)
    return None if place is None else place.agent
