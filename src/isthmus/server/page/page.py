"""`/`: a page that talks with agents and looks into their memories."""

from __future__ import annotations

from importlib import resources

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from isthmus.server.http.endpoint import Endpoint

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; connect-src 'self'; img-src data:; form-action 'none'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def routes() -> list[Endpoint]:
    """For Starlette."""
    return [Endpoint("GET", "/", page, gives=("text/html",))]


async def page(_request: Request) -> Response:
    """A page to look at."""
    file = resources.files("isthmus.server.page") / "page.html"
    return HTMLResponse(file.read_text(encoding="utf-8"), headers=_HEADERS)
