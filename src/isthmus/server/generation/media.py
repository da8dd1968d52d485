"""Pictures and sounds of a conversation, as every API writes them: base64, alone or in a data URI,
or the URL of a file.

Their bytes are decoded by the agent that reads them, in its sandbox. Here only base64 is. What URLs
name is fetched later (`remote.py`).
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from isthmus.server.http.errors import HttpError

_MAX_FILES = 64
"""Pictures and sounds of one conversation."""
_SHOWN = 40
"""Characters of a URL that an error shows."""


@dataclass(frozen=True)
class RemoteFile:
    """A file that is still to be fetched."""

    number: int
    """The file's in its conversation; until then an empty one has its place."""
    url: str
    where: str
    """The field of the request that names it."""


class MediaFiles:
    """The files of one conversation, in its order."""

    def __init__(self) -> None:
        self._files: list[bytes] = []
        self._remote: list[RemoteFile] = []

    @property
    def files(self) -> tuple[bytes, ...]:
        """All of them; empty ones where `remote` has more to say."""
        return tuple(self._files)

    @property
    def remote(self) -> tuple[RemoteFile, ...]:
        """Those that are to be fetched."""
        return tuple(self._remote)

    def add_uri(self, uri: str, where: str) -> dict[str, Any]:
        """The part that stands for a URI which is at `where` in the request. HttpError 400."""
        if uri.startswith(("http://", "https://")):
            part = self._add(b"", where)
            self._remote.append(RemoteFile(part["number"], uri, where))
            return part
        head, comma, data = uri.partition(",")
        if not head.startswith("data:"):
            raise HttpError(
                400,
                f"{where} is {uri[:_SHOWN]!r}: it is no data URI. Send the file itself, as "
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
        return self._add(file, where)

    def _add(self, file: bytes, where: str) -> dict[str, Any]:
        if len(self._files) >= _MAX_FILES:
            said = f"the conversation has more than {_MAX_FILES} pictures and sounds"
            raise HttpError(400, said, param=where)
        self._files.append(file)
        return {"type": "media", "number": len(self._files) - 1}
