"""A server's start: a port that is taken, and what the first requests need not wait for."""

from __future__ import annotations

import gc
import os
import signal
import socket
from pathlib import Path

import pytest
from starlette.applications import Starlette

from isthmus.errors import SettingsError
from isthmus.server.http.listening import serve
from isthmus.server.settings import ServerSettings
from tests.server.conftest import Serving


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = ServerSettings.make(None, {"port": port})
        with pytest.raises(SettingsError, match=f"cannot listen on 127.0.0.1:{port}"):
            serve(Starlette(), settings, lambda *_: pytest.fail("it listens"))


def test_a_full_collection_looks_at_nothing_that_was_there_before_the_first_request() -> None:
    frozen: list[int] = []

    def ready(_host: str, _port: int) -> None:
        frozen.extend([gc.get_freeze_count(), len(gc.get_objects())])
        os.kill(os.getpid(), signal.SIGTERM)

    assert serve(Starlette(), ServerSettings.make(None, {"port": 0}), ready) == 0
    n_frozen, n_looked_at = frozen
    assert n_looked_at < n_frozen / 100
    assert gc.get_freeze_count() == 0


def test_the_first_requests_import_nothing_large(
    tiny_q8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever streams first would have the event loop import anyio's half of asyncio's: it would
    answer nobody meanwhile."""
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    serving = Serving(tmp_path / "data", "--model", f"tiny={tiny_q8}", "--n-ctx", "256")
    log = tmp_path / "data.log"
    n_said = len(log.read_text())
    for more in ({}, {"stream": True}):
        body = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
        assert serving.client.post("/v1/chat/completions", json=body | more).status_code == 200
    late = log.read_text()[n_said:].splitlines()
    assert serving.stop() == 0
    imported = [it.rpartition("|")[2].strip() for it in late if it.startswith("import time:")]
    assert [it for it in imported if it.partition(".")[0] in ("anyio", "isthmus", "numpy")] == []
