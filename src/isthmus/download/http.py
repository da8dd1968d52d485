"""Requests of downloads: what they say, where they may be sent on to, and what errors mean.

Proxies are those of the environment (`https_proxy`, `no_proxy`; `urllib.request.getproxies`), and
certificates those of the system, or of `SSL_CERT_FILE`. A secret is sent to the origin that it is
for, and to no other that this one leads to; it stands in no error.
"""

from __future__ import annotations

import http.client
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import SplitResult, urlsplit

import msgspec

from isthmus.errors import DownloadError
from isthmus.printable import printable
from isthmus.units import MIB

_T = TypeVar("_T")

_TIMEOUT_S = 30.0
"""Seconds without a byte until an attempt is given up."""
_MAX_REDIRECTS = 5
_MAX_ANSWER_NBYTES = 16 * MIB
"""What a listing may have."""
_MAX_SHOWN = 200
"""Characters of what a server says that an error shows."""
_NUMBER = re.compile("[0-9]{1,18}")
_BUNDLES = ("/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem")
"""Where systems keep certificates of which a Python of another build does not know."""
_BUSY = (408, 425, 429, 500, 502, 503, 504)
"""Statuses after which another attempt may succeed; so may 403 of where a hub led to, since such
leave lasts for minutes."""


class Cut(Exception):
    """An attempt that failed, where another may succeed; its text is the reason."""


Response = http.client.HTTPResponse


class Client:
    """Requests with a secret for one origin. Owns nothing; safe to use from any thread."""

    def __init__(self, origin: str, authorization: str | None = None) -> None:
        """`authorization` is the header's value, for `origin`, a URL, and no other."""
        self._origin, self._authorization = _origin(split_url(origin)), authorization
        context = ssl.create_default_context()
        if not context.cert_store_stats()["x509_ca"]:
            for it in filter(lambda path: Path(path).is_file(), _BUNDLES):
                context.load_verify_locations(it)
        self._opener = urllib.request.build_opener(
            _Redirects(self._origin), urllib.request.HTTPSHandler(context=context)
        )

    def open(self, url: str, headers: Mapping[str, str] | None = None) -> Response:
        """An answer of status 200 or 206; the caller closes it.

        Raises Cut if another attempt may succeed, urllib's HTTPError for another status, and
        DownloadError for a URL that is not to be asked, or none, here or where it leads.
        """
        parts = split_url(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise DownloadError(f"{shown(url)} is not fetched: it is no URL of http or https")
        request = urllib.request.Request(url, headers={"User-Agent": "isthmus", **(headers or {})})
        asked = request.host
        if self._authorization and _origin(parts) == self._origin:
            request.add_header("Authorization", self._authorization)
        try:
            response: Response = self._opener.open(request, timeout=_TIMEOUT_S)
        except urllib.error.HTTPError as error:
            error.close()
            elsewhere = _origin(split_url(error.url)) != _origin(parts)
            if error.code in _BUSY or (elsewhere and error.code == http.client.FORBIDDEN):
                raise Cut(f"{parts.hostname} answers {error.code} {brief(error.reason)}") from None
            raise
        except (OSError, http.client.HTTPException) as error:
            through = f" through the proxy {request.host}" if request.host != asked else ""
            raise Cut(f"{parts.hostname}{through}: {reason_of(error)}") from None
        except ValueError as error:  # such as a host's name with two dots in a row
            raise DownloadError(
                f"{shown(url)} is, or leads to, what is no URL: {reason_of(error)}"
            ) from None
        return response

    def read(self, url: str, headers: Mapping[str, str] | None = None) -> tuple[bytes, str, str]:
        """A short answer: its bytes, its type and the URL that it came from. Raises as `open`, Cut
        if the connection breaks, and DownloadError for a longer answer."""
        with self.open(url, headers) as response:
            try:
                data = response.read(_MAX_ANSWER_NBYTES + 1)
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise Cut(f"{split_url(url).hostname}: {reason_of(error)}") from None
            if len(data) > _MAX_ANSWER_NBYTES:
                raise DownloadError(f"{shown(url)} answers more than {_MAX_ANSWER_NBYTES} bytes")
            return data, response.headers.get_content_type(), response.url


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Goes on to where an answer leads, without the secret if that is another origin."""

    max_redirections = _MAX_REDIRECTS

    def __init__(self, origin: tuple[str, str, int]) -> None:
        self._secret_for = origin

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Any,
        newurl: str,
    ) -> urllib.request.Request | None:
        """The next request; DownloadError if it would leave HTTPS."""
        fp.close()  # the standard library would read all that comes beside the new place
        to = split_url(newurl)
        allowed = ("https",) if split_url(req.full_url).scheme == "https" else ("http", "https")
        if to.scheme not in allowed:
            raise DownloadError(f"{shown(req.full_url)} leads to {shown(newurl)}: not followed")
        next_one = super().redirect_request(req, fp, min(code, 307), msg, headers, newurl)
        if next_one is not None and _origin(to) != self._secret_for:
            next_one.remove_header("Authorization")
        return next_one

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302  # Python 3.10 has none


def split_url(url: str) -> SplitResult:
    """The parts of a URL. DownloadError if it has none."""
    try:
        return urlsplit(url)
    except ValueError as error:
        raise DownloadError(f"that is no URL: {error}") from None


def decoded(data: bytes, kind: type[_T]) -> _T:
    """What an answer of JSON says. DownloadError if it is of another kind, or nested too deeply."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise DownloadError(f"the answer is not understood: {reason_of(error)}") from None


def number(text: str) -> int:
    """A number of bytes as a header says it; -1 for what is none."""
    return int(text) if _NUMBER.fullmatch(text) else -1


def brief(text: object) -> str:
    """A stranger's word as an error shows it."""
    found = printable(str(text))
    return found if len(found) <= _MAX_SHOWN else f"{found[:_MAX_SHOWN]}…"


def shown(url: str) -> str:
    """A URL for people, without what may be secret in it: user, password and query."""
    parts = split_url(url)
    return brief(f"{parts.scheme}://{parts.hostname}{parts.path}")


def reason_of(error: Exception) -> str:
    """Why an attempt failed, in one line."""
    cause = getattr(error, "reason", None) or error
    cause = getattr(cause, "strerror", None) or cause
    lines = str(cause).strip().splitlines()
    return brief(lines[0]) if lines else type(error).__name__


def _origin(parts: SplitResult) -> tuple[str, str, int]:
    try:
        port = parts.port
    except ValueError:  # no number, or too large a one
        port = -1
    return parts.scheme, parts.hostname or "", port or (443 if parts.scheme == "https" else 80)
