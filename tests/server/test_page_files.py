"""The page's files: small, in plain sight, and under a policy that lets nothing else in."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import httpx
import pytest

from isthmus.server.keys.keys import new_key
from tests.server.conftest import Serving

ROOM = resources.files("isthmus.server.page")
FILES = {
    it.name: it.read_text(encoding="utf-8")
    for it in ROOM.iterdir()
    if it.name.endswith((".js", ".css", ".html"))
}
READS_HTML = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\("
MAX_NBYTES, MAX_SENT_NBYTES = 104_300, 38_200
"""What script and style are, as written and as sent: whoever adds to them takes something away, or
says in docs/rationale.md why not."""


@pytest.fixture(scope="module")
def keyed(tiny_q8: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("keyed")
    new_key(folder / "keys", "ada")
    options = ("--model", f"tiny={tiny_q8}", "--keys", str(folder / "keys"))
    serving = Serving(folder / "data", *options)
    yield serving
    assert serving.stop() == 0


def test_they_are_served_without_a_key_and_compressed(keyed: Serving) -> None:
    for name, text in FILES.items():
        path = "/" if name == "page.html" else f"/page/{name}"
        told = keyed.client.get(path)
        assert (told.status_code, told.text) == (200, text)
        assert told.headers["content-encoding"] == "gzip"
        plain = httpx.get(keyed.url + path, headers={"Accept-Encoding": "identity"})
        assert plain.content == text.encode()
        assert "content-encoding" not in plain.headers
        policy = told.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "script-src 'self'" in policy
        assert "require-trusted-types-for 'script'" in policy
    for wrong in ("page.html", "page.py", "..%2fpage.py", "__init__.py", "nothing.js"):
        assert keyed.client.get(f"/page/{wrong}").status_code == 404
    assert keyed.client.get("/v1/agents").status_code == 401


def test_they_are_small() -> None:
    parts = [text.encode() for name, text in FILES.items() if name != "page.html"]
    assert sum(len(it) for it in parts) <= MAX_NBYTES
    assert sum(len(gzip.compress(it)) for it in parts) <= MAX_SENT_NBYTES
    assert max(len(text.splitlines()) for text in FILES.values()) <= 400


def test_nothing_is_inline_and_nothing_is_read_as_html() -> None:
    html = FILES["page.html"]
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|<style", html)
    for name, text in FILES.items():
        if name.endswith(".js"):
            assert not re.search(READS_HTML, text)
            assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)[a-z]", text)
        assert not re.search(r"url\(", text)


def test_every_file_is_used() -> None:
    named = set(re.findall(r'"(?:\./|page/)([a-z]+\.(?:js|css))"', "\n".join(FILES.values())))
    assert named == FILES.keys() - {"page.html"}
