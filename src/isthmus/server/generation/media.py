"""Pictures and sounds of a conversation, as every API writes them: base64, alone or in a data URI.

Their bytes are decoded by the agent that reads them, in its sandbox. Here only base64 is. Nothing
is fetched: a URL of another kind is refused.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from isthmus.server.http.errors import HttpError

_MOST_FILES = 64
"""Pictures and sounds of one conversation."""
_SHOWN = 40
"""Characters of a URL that an error shows."""


class MediaFiles:
    """The files of one conversation, in its order."""

    def __init__(self) -> None:
        self._files: list[bytes] = []

    @property
    def files(self) -> tuple[bytes, ...]:
        """All of them."""
        return tuple(self._files)

    def add_uri(self, uri: str, where: str) -> dict[str, Any]:
        """The part that stands for a data URI which is at `where` in the request. HttpError 400."""
        head, comma, data = uri.partition(",")
        if not head.startswith("data:"):
            kind = "this server fetches no URLs" if "://" in head else "it is no data URI"
            raise HttpError(
                400,
                f"{where} is {uri[:_SHOWN]!r}: {kind}. Send the file itself, as "
                "data:image/png;base64,…",
                param=where,
            )
        if not comma or not head.endswith(";base64"):
            raise HttpError(400, f"{where} is a data URI without ;base64,", param=where)
        return self.add_base64(data, where)

    def add_base64(self, data: str, where: str) -> dict[str, Any]:
        """The part that stands for a file in base64. HttpError 400."""
        try:
            file = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            raise HttpError(400, f"{where} is no base64", param=where) from None
        if not file:
            raise HttpError(400, f"{where} is an empty file", param=where)
        if len(self._files) >= _MOST_FILES:
            said = f"the conversation has more than {_MOST_FILES} pictures and sounds"
            raise HttpError(400, said, param=where)
        self._files.append(file)
        return {"type": "media", "number": len(self._files) - 1}
