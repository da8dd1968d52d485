"""Tools of durable agents: those of the server's settings, and who may use each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypedDict

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from isthmus.errors import SettingsError
from isthmus.server.http.endpoint import Endpoint
from isthmus.server.http.entry import current
from isthmus.server.http.errors import HttpError
from isthmus.server.http.fair import Owner
from isthmus.server.storage.record import Record
from isthmus.tools import Tool
from isthmus.tools.spec import Toolbox


class ToolCard(TypedDict):
    """A tool that agents can be given."""

    id: str
    description: str
    parameters: dict[str, Any]


class ToolList(TypedDict):
    """All tools that whoever asks may give to agents."""

    object: Literal["list"]
    data: list[ToolCard]


class AgentTools:
    """See the module. Owns nothing: the toolbox is closed after the server."""

    def __init__(self, toolbox: Toolbox | None) -> None:
        self._tools = {} if toolbox is None else toolbox.tools
        self._keys = {} if toolbox is None else toolbox.keys

    def routes(self) -> list[Endpoint]:
        """For Starlette."""
        return [Endpoint("GET", "/v1/tools", self.list_all, gives=(ToolList,))]

    async def list_all(self, _request: Request) -> Response:
        """The tools that agents can be given."""
        data: list[ToolCard] = [
            {"id": name, "description": it.description, "parameters": dict(it.parameters)}
            for name, it in self._allowed(current().owner).items()
        ]
        listed: ToolList = {"object": "list", "data": data}
        return JSONResponse(listed)

    def require(self, names: Iterable[str]) -> None:
        """HttpError 400 for a tool that whoever asks may not use; it does not exist for them."""
        allowed = self._allowed(current().owner)
        for name in names:
            if name not in allowed:
                said = f"there is no tool {name}; there are {', '.join(allowed) or 'none'}"
                raise HttpError(400, said, code="tool_not_found", param="tools")

    def of(self, record: Record) -> dict[str, Tool]:
        """The tools of an agent. SettingsError for one that its owner may not use any more."""
        allowed = self._allowed(record.owner)
        for name in record.tools:
            if name not in allowed:
                raise SettingsError(
                    f"agent {record.id} needs the tool {name}, which this server does not have, or "
                    "not for the key that made it"
                )
        return {name: allowed[name] for name in record.tools}

    def _allowed(self, owner: Owner) -> dict[str, Tool]:
        keys = self._keys
        return {
            name: it
            for name, it in self._tools.items()
            if (of := keys[name]) is None or owner in of
        }
