"""Pages of other origins: which may use the server, and what browsers are told of that (CORS).

=================================  ===============================================================
an Origin                          what its answers carry
=================================  ===============================================================
that the setting names             itself, and that it may send credentials
of any page, where `*` is named    `*`, with which browsers send no credentials
any other                          nothing: the browser keeps the answer from the page
=================================  ===============================================================

An answer to a preflight says which methods and headers may follow. The Fetch standard:
https://fetch.spec.whatwg.org/#http-cors-protocol
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

from starlette.responses import Response

from isthmus.server.http.errors import HttpError

METHODS = "DELETE, GET, HEAD, PATCH, POST"
"""Methods that any route takes."""
_PREFLIGHT_S = 7200
"""Seconds for which a browser may remember a preflight; Chromium's most."""
_NAMES = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+(\s*,\s*[!#$%&'*+.^_`|~0-9A-Za-z-]+)*")
"""Names of headers, with commas between them."""
_READABLE = {
    *("cache-control", "content-language", "content-length", "content-type", "expires"),
    *("last-modified", "pragma", "vary"),
}
"""Headers of an answer that a page may read anyway, or that are no page's business."""
_ORIGIN_LINE = re.compile(rb"^origin:[ \t]*([!-~]+)[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)


class Origins:
    """See the module. `named` are the setting's."""

    def __init__(self, named: Iterable[str]) -> None:
        named = tuple(named)
        self._any = "*" in named
        self._patterns = tuple(_pattern(it) for it in named if it != "*")

    @property
    def given(self) -> bool:
        """Whether any page of another origin may."""
        return self._any or bool(self._patterns)

    def allows(self, origin: str) -> bool:
        """Whether pages of an origin may use the server."""
        return self._any or self._names(origin)

    def _names(self, origin: str) -> bool:
        return any(it.fullmatch(origin.lower()) for it in self._patterns)

    def headers(self, origin: str | None, exposed: Iterable[str] = ()) -> dict[str, str]:
        """What an answer carries, whatever its status. `exposed` are the names of its headers, all
        of which a page may read."""
        found = {"Vary": "Origin"} if self._patterns else {}
        if origin is None or not self.allows(origin):
            return found
        if self._names(origin):
            found["Access-Control-Allow-Origin"] = origin
            found["Access-Control-Allow-Credentials"] = "true"
        else:
            found["Access-Control-Allow-Origin"] = "*"
        if names := sorted({it.lower() for it in exposed} - _READABLE):
            found["Access-Control-Expose-Headers"] = ", ".join(names)
        return found

    def headers_for(self, head: bytes) -> dict[str, str]:
        """The same for the bytes of a head that is not complete, or is malformed."""
        found = _ORIGIN_LINE.search(head)
        origin = None if found is None else found[1].decode("ascii")
        return self.headers(origin, ["retry-after"])


def is_preflight(scope: MutableMapping[str, Any]) -> bool:
    """Whether a browser asks what a page may send."""
    names = {name for name, _ in scope["headers"]}
    return scope["method"] == "OPTIONS" and names >= {b"origin", b"access-control-request-method"}


def answer_preflight(scope: MutableMapping[str, Any]) -> Response:
    """What the page of an origin that is allowed may send: all that it asks for, since a route
    judges methods and headers by itself. HttpError 400 for names that are none."""
    heads: Mapping[bytes, bytes] = dict(scope["headers"])
    headers = {
        "Access-Control-Allow-Methods": METHODS,
        "Access-Control-Max-Age": str(_PREFLIGHT_S),
        "Vary": "Access-Control-Request-Headers, Access-Control-Request-Private-Network",
    }
    if asked := heads.get(b"access-control-request-headers", b"").decode("latin-1").strip():
        if _NAMES.fullmatch(asked) is None:
            said = "access-control-request-headers has no names of headers"
            raise HttpError(400, said, code="invalid_http")
        headers["Access-Control-Allow-Headers"] = asked
    if heads.get(b"access-control-request-private-network") == b"true":
        headers["Access-Control-Allow-Private-Network"] = "true"
    return Response(status_code=204, headers=headers)


def _pattern(named: str) -> re.Pattern[str]:
    """An origin; `*.` stands for the names before a domain, `:*` for any port."""
    host = re.escape(named).replace(r"://\*\.", r"://([a-z0-9_-]+\.)+")
    return re.compile(re.sub(r":\\\*$", "(:[0-9]{1,5})?", host))
