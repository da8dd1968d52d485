"""A hub for each test, and pulls that wait for nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from isthmus.config import Environment
from isthmus.download import Progress, pull, transfer
from tests.download.hub import FakeHub, served

Pull = Callable[..., Path]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(transfer, "_WAIT_S", 0.0)
    with served(FakeHub()) as found:
        yield found


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def lines() -> list[str]:
    """Lines that were reported."""
    return []


@pytest.fixture
def seen() -> list[Progress]:
    """Progress that was told."""
    return []


@pytest.fixture
def pulled(hub: FakeHub, cache: Path, lines: list[str], seen: list[Progress]) -> Pull:
    """Pulls by a name, from the hub of the test."""

    def fetch(name: str, token: str | None = None, revision: str | None = None) -> Path:
        environment = Environment(
            cache=cache, hub_url=hub.url, hub_token=token, index_url=f"{hub.url}/simple"
        )
        return pull(name, environment, lines.append, seen.append, revision)

    return fetch


def files(folder: Path) -> list[str]:
    """All files below a folder but notes of where models came from and hashes."""
    found = (str(it.relative_to(folder)) for it in folder.rglob("*") if it.is_file())
    return sorted(it for it in found if not it.startswith(("models/.sources", "hashes")))
