"""A port that another program listens on."""

from __future__ import annotations

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
