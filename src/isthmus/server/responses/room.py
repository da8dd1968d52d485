"""The whole room: responses, conversations and how long they are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from isthmus.server.agents.shelf import Shelf
from isthmus.server.generation.writer import Writer
from isthmus.server.http.endpoint import Endpoint
from isthmus.server.http.entry import Entry
from isthmus.server.responses.archive import Archive
from isthmus.server.responses.bounds import Bounds
from isthmus.server.responses.conversations import Conversations
from isthmus.server.responses.creating import Creating
from isthmus.server.responses.draft import Drafts
from isthmus.server.responses.routes import Responses
from isthmus.server.settings import ServerSettings


@dataclass(frozen=True)
class Room:
    """See the module. Used by one event loop."""

    responses: Responses
    conversations: Conversations
    creating: Creating
    bounds: Bounds

    def routes(self) -> list[Endpoint]:
        """For Starlette."""
        return [*self.responses.routes(), *self.conversations.routes()]

    async def keep(self) -> None:
        """Removes what is too much or too old, until it is cancelled."""
        await self.bounds.keep()

    async def close(self) -> None:
        """Ends what runs in the background."""
        await self.creating.jobs.close()


def open_responses(
    writer: Writer, shelf: Shelf, settings: ServerSettings, charge: Callable[[Entry], None]
) -> Room:
    """Responses over a shelf. `charge` counts the tokens of those that run in the background."""
    archive, bounds = Archive(shelf), Bounds(shelf, settings)
    drafts = Drafts(shelf, settings.live, settings.share_beginnings)
    creating = Creating(writer, archive, drafts, settings, charge, bounds.note)
    responses = Responses(writer, archive, creating)
    return Room(responses, Conversations(writer, archive, bounds), creating, bounds)
