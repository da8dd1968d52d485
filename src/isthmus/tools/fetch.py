"""Pages of the web as a tool, from hosts on a list.

1. The URL's host and port have to be on the list (`hosts.py`); so does each that it redirects to.
2. The name is resolved once. Each address must be public, or on the list by itself.
3. The connection goes to an address that was checked: no second answer of the DNS counts.
4. The page may be as long as the tool's result, and all of it may take as long as the tool.

Nothing but GET is sent: no cookies, no credentials, through no proxy.
"""

from __future__ import annotations

import codecs
import contextlib
import http.client
import json
import socket
import ssl
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar
from urllib.parse import SplitResult, urljoin, urlsplit

import msgspec

from isthmus.errors import ToolFailed
from isthmus.tools.hosts import AllowedHosts
from isthmus.tools.tool import Check, Tool, ToolLimits, require_short, too_late
from isthmus.tools.waiting import Waiting
from isthmus.units import KIB

_Socket = TypeVar("_Socket", bound=socket.socket)
_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_PORTS = {"http": 80, "https": 443}
_PART_NBYTES = 64 * KIB
_MAX_URL = 8000
"""Characters of a URL: what RFC 9110 asks everybody to take."""
_NO_CHARSETS = frozenset(("idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape"))
"""Codecs of Python that no page is written in. Some take a time that grows with the square."""
_HEADERS = {"User-Agent": "isthmus", "Accept": "*/*", "Accept-Encoding": "identity"}
_PARAMETERS = {
    "type": "object",
    "properties": {"url": {"type": "string", "description": "https://… or http://…"}},
    "required": ["url"],
    "additionalProperties": False,
}


class _Arguments(msgspec.Struct, forbid_unknown_fields=True):
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchTool(Tool):
    """See the module. `fetch_tool` makes one."""

    hosts: AllowedHosts
    context: ssl.SSLContext = field(default_factory=ssl.create_default_context)
    """By which servers prove who they are."""

    def run(self, arguments: bytes, check: Check) -> bytes:
        """The page's text as UTF-8, or its bytes if it is no text. ToolFailed for any status but
        200."""
        try:
            url = msgspec.json.decode(arguments, type=_Arguments).url
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise ToolFailed(f"its arguments are wrong: {error}") from None
        with contextlib.closing(_Fetch(self.hosts, self.context, self.limits)) as fetch:
            page: bytes = Waiting(partial(fetch.page, url)).result(self.limits, check)
            return page


def fetch_tool(
    hosts: AllowedHosts, *, description: str = "", limits: ToolLimits | None = None
) -> FetchTool:
    """A tool that fetches pages from hosts on a list."""
    said = f"Fetches a page of the web by GET, from these hosts: {hosts}."
    return FetchTool(
        description=description or said,
        parameters=_PARAMETERS,
        limits=limits or ToolLimits(),
        hosts=hosts,
    )


class _Fetch:
    """One page, from its URL to its text. `close`, from any thread, ends what is under way."""

    def __init__(self, hosts: AllowedHosts, context: ssl.SSLContext, limits: ToolLimits) -> None:
        self._hosts = hosts
        self._context = context
        self._limits = limits
        self._sockets: list[socket.socket] = []
        self._closed = False

    def page(self, url: str) -> bytes:
        """What is at the URL, or at the end of its redirects."""
        for _ in range(_MAX_REDIRECTS + 1):
            parts, port = _checked(url)
            try:
                found = self._get(parts, port)
            except TimeoutError:  # a connection's, which comes when the deadline does
                raise too_late(self._limits) from None
            except (OSError, http.client.HTTPException, ValueError) as error:
                said = getattr(error, "strerror", None) or error or type(error).__name__
                raise ToolFailed(f"{parts.hostname}: {said}") from None
            if isinstance(found, bytes):
                return found
            to = _joined(url, found)
            if parts.scheme == "https" and not to.startswith("https:"):
                raise ToolFailed(f"{parts.hostname} leads to {to}, which is no https")
            url = to
        raise ToolFailed(f"{parts.hostname} leads on more than {_MAX_REDIRECTS} times")

    def close(self) -> None:
        """Ends it."""
        self._closed = True
        for it in self._sockets:
            with contextlib.suppress(OSError):
                it.shutdown(socket.SHUT_RDWR)

    def _get(self, parts: SplitResult, port: int) -> bytes | str:
        """The page, or where it leads."""
        host = _ascii(parts.hostname or "")
        self._hosts.require(host, port)
        connection = _connection(parts.scheme, host, port)
        connection.sock = self._connect(host, port, is_secure=parts.scheme == "https")
        with contextlib.closing(connection):
            path = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
            connection.request(
                "GET", path if path.startswith("/") else f"/{path}", headers=_HEADERS
            )
            with contextlib.closing(connection.getresponse()) as response:
                location = response.getheader("Location")
                if response.status in _REDIRECTS and location:
                    return location
                if response.status != http.client.OK:
                    raise ToolFailed(f"{host} answers {response.status} {response.reason}")
                return self._read(response)

    def _connect(self, host: str, port: int, *, is_secure: bool) -> socket.socket:
        """A connection to an address that was checked."""
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(it[4][0]) for it in found))
        for address in addresses:
            self._hosts.require_address(host, address)
        error: OSError | None = None
        for address in addresses:
            try:
                plain = self._opened(
                    socket.create_connection((address, port), self._limits.deadline_s)
                )
            except OSError as why:
                error = why
                continue
            if not is_secure:
                return plain
            secure = self._context.wrap_socket(
                plain, server_hostname=host, do_handshake_on_connect=False
            )
            self._opened(secure).do_handshake()
            return secure
        raise error or ToolFailed(f"{host} cannot be reached")

    def _opened(self, connection: _Socket) -> _Socket:
        """A connection, which `close` ends. ToolFailed if it was called meanwhile."""
        self._sockets.append(connection)
        if self._closed:
            connection.close()
            raise ToolFailed("nobody waits for the page any more")
        return connection

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        if response.getheader("Content-Encoding", "identity").lower() != "identity":
            raise ToolFailed("the page comes packed, though nobody asked for that")
        data = bytearray()
        while part := response.read(_PART_NBYTES):
            data += part
            require_short(len(data), self._limits)
        charset = response.headers.get_content_charset()
        if charset is None or not _is_charset(charset):
            return bytes(data)
        return bytes(data).decode(charset, errors="replace").encode(errors="replace")


def _is_charset(name: str) -> bool:
    """Whether a page may be written in a codec of Python's, and is not UTF-8 already."""
    try:
        b"".decode(name)
        return codecs.lookup(name).name.replace("_", "-") not in _NO_CHARSETS | {"utf-8"}
    except (LookupError, ValueError):
        return False


def _joined(url: str, to: str) -> str:
    """Where a redirect leads. ToolFailed if that is no URL."""
    try:
        return urljoin(url, to)
    except ValueError as error:
        raise ToolFailed(f"it leads to what is no URL: {error}") from None


def _checked(url: str) -> tuple[SplitResult, int]:
    """The parts of a URL and its port. ToolFailed for what is not to be asked."""
    if len(url) > _MAX_URL:
        raise ToolFailed(f"a URL has up to {_MAX_URL} characters, and not {len(url)}")
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError as error:
        raise ToolFailed(f"that is no URL: {error}") from None
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ToolFailed(f"{json.dumps(url[:200])} is no URL of http or https")
    if parts.username is not None or parts.password is not None:
        raise ToolFailed("a URL with a user or a password is not asked")
    return parts, port


def _ascii(host: str) -> str:
    """A host as the DNS knows it."""
    plain = host.rstrip(".")
    return plain if plain.isascii() else plain.encode("idna").decode()


def _connection(scheme: str, host: str, port: int) -> http.client.HTTPConnection:
    """A connection whose socket is given to it: it makes none."""
    kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
    connection = kind(host, port)
    connection.auto_open = 0
    return connection
