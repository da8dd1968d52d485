"""Who may ask, judged by what the router sees and by nothing else.

A request's path is `scope["path"]`, from which the router chooses its route. The Host header says
where a client believes to be and never becomes part of a path: `request.url` is made of it, so
nothing here, or in a handler, reads `request.url`.

A page from elsewhere may not ask unless the setting `origins` names its origin: it could reach a
server on the user's own machine. A stranger's name that resolves to that machine (DNS rebinding)
would make his page one of ours. So the Host must be one of ours: without keys always, with keys if
the setting `hosts` says which those are. Programs set an Origin too; with a key they may.
"""

from __future__ import annotations

import hmac
import logging
import re
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import unquote

from isthmus.server.http.errors import HttpError
from isthmus.server.http.key import Key
from isthmus.server.http.origins import Origins, is_preflight
from isthmus.server.keys.keys import Keys
from isthmus.server.settings import ServerSettings

_log = logging.getLogger("isthmus.server")

OPEN = ("/healthz", "/readyz", "/health", "/v1/health", "/", "/openapi.json")
"""Paths that need no key."""
PAGE = "/page/"
"""What begins so needs none either: the script and style of the page."""
METRICS = "/metrics"
ACTIVITY = "/v1/activity"
"""What a page asks while agents work."""
TOKEN, KEY = b"x-isthmus-peer", b"x-isthmus-key"
"""Headers by which a server passes on a request that it has checked: this server's token, and the
name of the key."""
_SINGLE = (
    *(b"host", b"origin", b"authorization", b"x-api-key"),
    *(b"content-length", b"content-type"),
    *(TOKEN, KEY),
)
"""Headers that may come once: of two, a proxy might obey one and this server the other."""
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[^:\[\]]*)(:[0-9]{1,5})?")
_OURS = ("localhost", "127.0.0.1", "[::1]")
_SITE = b"sec-fetch-site"
"""A header that browsers add, and no page can."""
_SHOWN = 200
"""Characters of a header that an error tells."""
_MAX_DIGITS = 18
"""Digits of the longest Content-Length that is read."""


class Admission:
    """See the module. Without keys everybody may ask who reaches the server."""

    def __init__(
        self, settings: ServerSettings, keys: Keys | None, token: str | None = None
    ) -> None:
        """`token` is what other servers of the same store show; None where there are none."""
        self._token = token
        host = settings.host.lower()
        self._names = {*_OURS, host, f"[{host}]", *settings.hosts}
        self._any_host = "*" in settings.hosts or (keys is not None and not settings.hosts)
        self._origins = Origins(settings.origins)
        self._keys = keys
        self._hinted = False
        """Whether the log has said how a page of another origin is let in."""

    def admit(self, scope: MutableMapping[str, Any]) -> Key | None:
        """The key that a request has; None if it needs none. HttpError 400, 401, 403, 421."""
        heads = _heads(scope)
        if TOKEN in heads:
            return self._passed_on(heads, scope["path"])
        self._require_host(heads.get(b"host", ""))
        preflight = is_preflight(scope)
        self._require_origin(heads, preflight=preflight)
        if self._keys is None or preflight or is_open(scope["path"]):
            return None
        key = _key(heads)
        known = None if key is None else self._keys.find(key)
        if known is None:
            raise HttpError(401, "give an API key of this server", code="invalid_api_key")
        if scope["path"] == METRICS and not known.limits.metrics:
            said = "this key may not read what is counted of all: only one of --limit metrics=1 may"
            raise HttpError(403, said, code="metrics")
        return known

    def _passed_on(self, heads: dict[bytes, str], path: str) -> Key | None:
        """The key of a request that another server has checked. HttpError 421 for one that means
        another server, 403 if this server does not know the key."""
        if self._token is None or not hmac.compare_digest(
            heads[TOKEN].encode(), self._token.encode()
        ):
            said = "this request was passed on to another server than this one"
            raise HttpError(421, said, code="elsewhere")
        name = unquote(heads.get(KEY, ""))
        key = self._keys.named(name) if self._keys is not None and name else None
        if key is None and not is_open(path) and (name or self._keys is not None):
            said = (
                "servers with the same agents need the same keys: this one lacks a key of another"
            )
            raise HttpError(403, said, code="keys")
        return key

    def _require_host(self, host: str) -> None:
        """HttpError 403 for a name that is none of ours."""
        if self._any_host:
            return
        found = _HOST.fullmatch(host)
        name = "" if found is None else found["name"].lower()
        if name not in self._names and not any(
            it.startswith("*.") and name.endswith(it[1:]) for it in self._names
        ):
            said = f"this server is not {host[:_SHOWN]}: the setting hosts says which names it has"
            raise HttpError(403, said, code="host")

    def _require_origin(self, heads: dict[bytes, str], *, preflight: bool) -> None:
        """HttpError 403 for a page of another origin that is not named."""
        origin = heads.get(b"origin")
        if origin is None or self._origins.allows(origin):
            return
        is_own = origin.partition("://")[2] == heads.get(b"host", "") and not preflight
        by_program = self._keys is not None and _SITE not in heads and not preflight
        if is_own or by_program:
            return
        if not self._hinted:
            self._hinted = True
            _log.warning(
                "a page of another origin was turned away: the setting origins names those whose "
                "pages may use this server"
            )
        said = f"pages of {origin[:_SHOWN]} may not use this server: name it in the setting origins"
        raise HttpError(403, said, code="origin")


def is_open(path: str) -> bool:
    """Whether a path needs no key."""
    return path in OPEN or path.startswith(PAGE)


def is_passed_on(scope: MutableMapping[str, Any]) -> bool:
    """Whether a request that was admitted came by way of another server."""
    return any(name == TOKEN for name, _ in scope["headers"])


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
    """The Content-Length, in bytes; 0 if there is none. Raises HttpError if it is no number."""
    length = dict(scope["headers"]).get(b"content-length", b"0")
    if not length.isdigit():
        raise HttpError(400, "the Content-Length is no number", code="invalid_http")
    return int(length.lstrip(b"0")[: _MAX_DIGITS + 1] or b"0")


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
