"""What the routes of agents take: bodies and queries."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from isthmus.actor.content import with_files
from isthmus.server.generation.media import MediaFiles
from isthmus.server.http.errors import HttpError

Position = Annotated[int, Meta(ge=0, le=2**53)]
Name = Meta(max_length=200)
_Texts = Annotated[dict[str, str], Meta(max_length=256)]
_Option = str | bool | int | float | list[Any] | dict[str, Any] | None
_Options = Annotated[dict[str, _Option], Meta(max_length=256)]


class NewAgent(Struct, kw_only=True, forbid_unknown_fields=True):
    """What makes an agent."""

    name: Annotated[str, Name] = ""
    guest: str = "chat"
    model: str | None = None
    """For guests that ask for one, named default."""
    models: _Texts = {}
    """For guests that ask for several: the server's by the guest's names."""
    args: _Options = {}
    """Options for the guest; a command's variables."""
    argv: Annotated[list[str], Meta(max_length=256)] = []
    """A command's arguments."""
    limits: Annotated[dict[str, float | int | str | None], Meta(max_length=64)] = {}
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    tools: Annotated[list[str], Meta(max_length=256)] = []
    """Names of the server's tools (`GET /v1/tools`)."""
    require: Literal["exact", "state-exact"] = "state-exact"
    """How exactly it must be brought back, on this server or another."""


class NewMessage(Struct, kw_only=True, forbid_unknown_fields=True):
    """What an agent is told."""

    input: str
    files: Annotated[list[str], Meta(max_length=64)] = []
    """Pictures and sounds before it, as data URIs, for guests that take them such as `chat`."""
    previous: Position | None = None
    """The position that the agent must be at; 409 otherwise."""
    stream: bool = False
    background: bool = False
    """Whether the answer goes on if its caller leaves: it is kept before it is begun."""

    def message(self) -> str | bytes:
        """As the guest reads it. HttpError 400 for what is no file."""
        if not self.files:
            return self.input
        files = MediaFiles()
        for number, uri in enumerate(self.files):
            files.add_uri(uri, f"files[{number}]")
        for it in files.remote:
            raise HttpError(400, f"{it.where} is a URL: send the file itself", param=it.where)
        return with_files(self.input, *files.files)


class NewFork(Struct, kw_only=True, forbid_unknown_fields=True):
    """What makes a fork."""

    name: Annotated[str, Name] = ""
    position: Position | None = None
    """By default where the agent is now."""
    require: Literal["exact", "state-exact"] | None = None
    """As that of a new agent; by default that of the agent which is forked."""
    model: str | None = None
    """Another model for `default`: the tokens until then are computed anew."""
    args: _Options = {}
    """Options that replace those of the same names; null takes one away. `n_ctx` and `model` hold
    from an agent's first message on."""


class NewName(Struct, kw_only=True, forbid_unknown_fields=True):
    """What an agent is called from now on."""

    name: Annotated[str, Name]


class NewGuest(Struct, kw_only=True):
    """What stands behind the `?` of a guest that is brought."""

    name: Annotated[str, Name] = ""
    """What it is called in lists. The body of `agent.js` and `agent.py` is a script."""


class Which(Struct, kw_only=True):
    """Which snapshot of an agent: the last, or that of a position."""

    at: Position | None = None
