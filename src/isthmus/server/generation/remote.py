"""Pictures that a request names by their URLs: fetched from the hosts that the server allows.

`tools/fetch.py` says what is asked and what is not. All files of a request together are as large as
a body may be.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import msgspec

from isthmus.errors import Cancelled, ToolFailed
from isthmus.server.generation.media import RemoteFile
from isthmus.server.generation.wanted import Wanted
from isthmus.server.http.entry import current
from isthmus.server.http.errors import HttpError
from isthmus.server.http.fair import Threads
from isthmus.server.settings import ServerSettings
from isthmus.tools.fetch import fetch_tool
from isthmus.tools.hosts import AllowedHosts
from isthmus.tools.tool import MAX_OUTPUT_NBYTES, Check, ToolLimits

_AT_A_TIME = 4
"""Requests whose files are fetched at the same time."""
_DEADLINE_S = 20.0
"""Seconds that one file may take."""


class RemoteFiles:
    """See the module. Owns the threads that wait for other servers. Used by one event loop."""

    def __init__(self, settings: ServerSettings) -> None:
        self._hosts = AllowedHosts(settings.media_hosts) if settings.media_hosts else None
        self._most_nbytes = min(settings.json_nbytes, MAX_OUTPUT_NBYTES)
        self._threads = Threads(_AT_A_TIME, "isthmus-media", settings.waiting)

    def close(self) -> None:
        """Waits for the threads."""
        self._threads.close()

    async def fetched(self, wanted: Wanted) -> Wanted:
        """What is wanted with the files that its URLs name. HttpError 400, Overloaded."""
        if not wanted.remote:
            return wanted
        if self._hosts is None:
            raise _refused(
                wanted.remote[0],
                "this server fetches no URLs (media_hosts). Send the file itself, as "
                "data:image/png;base64,…",
            )
        gone = threading.Event()

        def check() -> None:
            if gone.is_set():
                raise Cancelled("the caller left")

        fetch = partial(self._fetch, self._hosts, wanted.remote, check)
        try:
            files = await self._threads.do(current().owner, fetch)
        finally:
            gone.set()
        media = list(wanted.media)
        for it, file in zip(wanted.remote, files, strict=True):
            media[it.number] = file
        return replace(wanted, media=tuple(media), remote=())

    def _fetch(
        self, hosts: AllowedHosts, remote: Sequence[RemoteFile], check: Check
    ) -> list[bytes]:
        """In a thread."""
        files: list[bytes] = []
        for it in remote:
            left = self._most_nbytes - sum(map(len, files))
            tool = fetch_tool(hosts, limits=ToolLimits(_DEADLINE_S, max(left, 1)))
            try:
                files.append(tool.run(msgspec.json.encode({"url": it.url}), check))
            except ToolFailed as error:
                raise _refused(it, str(error)) from None
            if not files[-1]:
                raise _refused(it, "the file is empty")
        return files


def _refused(it: RemoteFile, why: str) -> HttpError:
    return HttpError(400, f"{it.where}: {why}", param=it.where)
