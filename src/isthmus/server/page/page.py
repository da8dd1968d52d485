"""`/`: a page that talks with agents and looks into their memories.

Its script and style are the files beside this one: no build step makes them. The policy
lets the browser run them and nothing else, ask this server and nobody else, and make no element of
HTML that a model, or an agent's name, could have written.
"""

from __future__ import annotations

import gzip
from functools import cache
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response

from isthmus.server.http.endpoint import Endpoint
from isthmus.server.http.errors import not_found
from isthmus.server.keys.admission import PAGE

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; form-action 'none'; frame-ancestors 'none'; "
    "base-uri 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}


def routes() -> list[Endpoint]:
    """For Starlette."""
    return [
        Endpoint("GET", "/", page, gives=("text/html",)),
        Endpoint("GET", PAGE + "{name}", part, gives=("text/javascript", "text/css")),
    ]


async def page(request: Request) -> Response:
    """A page to look at."""
    return _file(request, "page.html")


async def part(request: Request) -> Response:
    """The page's script and style."""
    return _file(request, request.path_params["name"])


def _file(request: Request, name: str) -> Response:
    files = _files()
    if name not in files or (name == "page.html") != (request.scope["path"] == "/"):
        raise not_found(f"there is nothing at {request.scope['path']}")
    plain, packed = files[name]
    is_packed = "gzip" in request.headers.get("accept-encoding", "")
    headers = {**_HEADERS, **({"Content-Encoding": "gzip"} if is_packed else {})}
    kind = _TYPES[name.rpartition(".")[2]]
    return Response(packed if is_packed else plain, headers=headers, media_type=kind)


@cache
def _files() -> dict[str, tuple[bytes, bytes]]:
    """Each file as it is, and compressed."""
    found = {}
    for it in resources.files("isthmus.server.page").iterdir():
        if it.name.rpartition(".")[2] in _TYPES:
            plain = it.read_bytes()
            found[it.name] = plain, gzip.compress(plain, mtime=0)
    return found
