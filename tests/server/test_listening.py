"""A port that another program listens on."""

from __future__ import annotations

import gc
import os
import signal
import socket

import pytest
from starlette.applications import Starlette

from isthmus.errors import SettingsError
from isthmus.server.http.listening import serve
from isthmus.server.settings import ServerSettings


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
