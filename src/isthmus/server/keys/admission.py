"""Who may ask, judged by what the router sees and by nothing else.

A request's path is `scope["path"]`, from which the router chooses its route. The Host header says
where a client believes to be and never becomes part of a path: `request.url` is made of it, so
nothing here, or in a handler, reads `request.url`.

A browser's page from elsewhere may not ask: it could reach a server on the user's own machine. So
the Host must be ours if there are no keys, and an Origin must be the Host.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import Any

from isthmus.server.http.errors import HttpError
from isthmus.server.http.key import Key
from isthmus.server.keys.keys import Keys

OPEN = ("/healthz", "/health", "/v1/health", "/", "/openapi.json")
"""Paths that need no key."""
METRICS = "/metrics"
_SINGLE = (
    *(b"host", b"origin", b"authorization", b"x-api-key"),
    *(b"content-length", b"content-type"),
)
"""Headers that may come once: of two, a proxy might obey one and this server the other."""
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[^:\[\]]*)(:[0-9]{1,5})?")
_OURS = ("localhost", "127.0.0.1", "[::1]")
_MOST_DIGITS = 18
"""Digits of the longest Content-Length that is read."""


class Admission:
    """See the module. `host` is where the server listens; without keys everybody there may ask."""

    def __init__(self, host: str, keys: Keys | None) -> None:
        self._hosts = (*_OURS, host.lower(), f"[{host.lower()}]")
        self._keys = keys

    def admit(self, scope: MutableMapping[str, Any]) -> Key | None:
        """The key that a request has; None if it needs none. HttpError 400, 401, 403."""
        heads = _heads(scope)
        host, origin = heads.get(b"host", ""), heads.get(b"origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise HttpError(403, "pages of other sites may not use this server")
        if self._keys is None:
            found = _HOST.fullmatch(host)
            if found is None or found["name"].lower() not in self._hosts:
                raise HttpError(403, f"this server is not {host}")
            return None
        if scope["path"] in OPEN:
            return None
        key = _key(heads)
        known = None if key is None else self._keys.find(key)
        if known is None:
            raise HttpError(401, "give an API key of this server", code="invalid_api_key")
        if scope["path"] == METRICS and not known.limits.metrics:
            said = "this key may not read what is counted of all: only one of --limit metrics=1 may"
            raise HttpError(403, said, code="metrics")
        return known


def _key(heads: dict[bytes, str]) -> str | None:
    """The key of a request, as OpenAI's clients send it or as Anthropic's do.

    HttpError 400 for two that differ: a proxy might judge by the other one.
    """
    kind, _, bearer = heads.get(b"authorization", "").partition(" ")
    given = {
        bearer.strip() if kind.lower() == "bearer" else "",
        heads.get(b"x-api-key", "").strip(),
    }
    given.discard("")
    if len(given) > 1:
        said = "authorization and x-api-key have different keys: give one"
        raise HttpError(400, said, code="invalid_http")
    return next(iter(given), None)


def claimed_nbytes(scope: MutableMapping[str, Any]) -> int:
    """The Content-Length, in bytes; 0 if there is none."""
    length = dict(scope["headers"]).get(b"content-length", b"0")
    if not length.isdigit():
        raise HttpError(400, "the Content-Length is no number", code="invalid_http")
    return int(length.lstrip(b"0")[: _MOST_DIGITS + 1] or b"0")


def _heads(scope: MutableMapping[str, Any]) -> dict[bytes, str]:
    """Headers by name. HttpError 400 if one came twice that may not, or two say how long it is."""
    names = [name for name, _ in scope["headers"]]
    for name in _SINGLE:
        if names.count(name) > 1:
            raise HttpError(400, f"{name.decode()} is given twice", code="invalid_http")
    if b"content-length" in names and b"transfer-encoding" in names:
        said = "give content-length or transfer-encoding: not both"
        raise HttpError(400, said, code="invalid_http")
    return {name: value.decode("latin-1") for name, value in scope["headers"]}
