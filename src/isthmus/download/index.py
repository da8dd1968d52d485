"""The Python package index, as far as files with known hashes need it: no pip is asked.

A project's page lists its files with their hashes, in JSON or in HTML:
https://packaging.python.org/en/latest/specifications/simple-repository-api/
"""

from __future__ import annotations

import base64
import contextlib
import urllib.error
from html.parser import HTMLParser
from urllib.parse import unquote, urljoin, urlunsplit

from msgspec import Struct

from isthmus.config import Environment
from isthmus.download.http import Client, Cut, decoded, shown, split_url
from isthmus.download.known import Archive
from isthmus.download.transfer import Remote
from isthmus.errors import DownloadError

_JSON = "application/vnd.pypi.simple.v1+json"
_ACCEPT = f"{_JSON}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"


class _File(Struct):
    url: str
    hashes: dict[str, str] = {}


class _Page(Struct):
    files: list[_File]


class Index:
    """One index, for whoever its URL names."""

    def __init__(self, environment: Environment) -> None:
        """The index's URL may have a user's name and password."""
        parts = split_url(environment.index_url)
        host = parts.netloc.rpartition("@")[2]
        self._url = urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
        self.client = Client(self._url, _basic(parts.username, parts.password))

    def find(self, archive: Archive) -> Remote:
        """Where a file of a package is. Raises DownloadError."""
        what = f"cannot fetch {archive.package} {archive.version}"
        try:
            data, kind, url = self.client.read(
                f"{self._url}/{archive.package}/", {"Accept": _ACCEPT}
            )
        except Cut as cut:
            raise DownloadError(f"{what}: {cut}. Check the network, then try again") from None
        except urllib.error.HTTPError as error:
            raise DownloadError(f"{what}: {shown(error.url)} answers {error.code}") from None
        for link, sha256 in _links(data, kind):
            if sha256 == archive.sha256:
                return Remote(_joined(url, link), archive.package, archive.nbytes, archive.sha256)
        raise DownloadError(
            f"{what}: the index {shown(self._url)} has no file with its checksum; UV_DEFAULT_INDEX "
            "or PIP_INDEX_URL names another index"
        )


def _joined(url: str, link: str) -> str:
    """Where a page's link leads. DownloadError if that is no URL."""
    try:
        return urljoin(url, link)
    except ValueError as error:
        raise DownloadError(f"{shown(url)} leads to what is no URL: {error}") from None


def _links(data: bytes, kind: str) -> list[tuple[str, str]]:
    """URLs and SHA-256 hashes of a page's files."""
    if kind == _JSON:
        try:
            files = decoded(data, _Page).files
        except DownloadError:
            return []
        return [(it.url, it.hashes.get("sha256", "")) for it in files]
    page = _Anchors()
    with contextlib.suppress(AssertionError):  # of the parser, at a declaration that is none
        page.feed(data.decode("utf-8", "replace"))
    return [
        (link, fragment.removeprefix("sha256="))
        for link, _, fragment in (it.partition("#") for it in page.links)
    ]


class _Anchors(HTMLParser):
    """The targets of a page's links."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes a link."""
        if tag == "a":
            self.links += [value for name, value in attrs if name == "href" and value]


def _basic(user: str | None, password: str | None) -> str | None:
    if user is None:
        return None
    pair = f"{unquote(user)}:{unquote(password or '')}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"
