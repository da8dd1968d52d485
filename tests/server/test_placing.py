"""Which agent a request names, and where a server says that it is reached."""

from __future__ import annotations

import pytest

from isthmus.errors import SettingsError
from isthmus.server.cluster.named import agent_of_body, agent_of_path, is_told_by_body
from isthmus.server.cluster.placing import address_of
from isthmus.server.settings import ServerSettings

ID = "abcdefghij12"


@pytest.mark.parametrize(
    ("path", "agent"),
    [
        (f"/v1/agents/{ID}", ID),
        (f"/v1/agents/{ID}/messages", ID),
        (f"/v1/agents/{ID}/", ID),
        ("/v1/agents/restore", None),
        ("/v1/agents", None),
        (f"/v1/agents/{ID}x", None),
        (f"/v1/responses/resp_{ID}aaaaaaaa3/input_items", ID),
        ("/v1/responses/resp_x", None),
        (f"/v1/conversations/conv_{ID}/items", ID),
        (f"/v1/models/{ID}", None),
        (f"/v2/v1/agents/{ID}", None),
    ],
)
def test_the_agent_of_a_path(path: str, agent: str | None) -> None:
    assert agent_of_path(path) == agent


@pytest.mark.parametrize(
    ("body", "agent"),
    [
        (b'{"previous_response_id": "resp_abcdefghij12aaaaaaaa3"}', ID),
        (b'{"conversation": "conv_abcdefghij12"}', ID),
        (b'{"conversation": {"id": "conv_abcdefghij12"}, "input": []}', ID),
        (b'{"conversation": {"id": 3}}', None),
        (b'{"previous_response_id": null, "input": "x"}', None),
        (b'{"previous_response_id": "x"}', None),
        (b"[" * 100_000, None),
        (b"\xff{", None),
        (b"", None),
    ],
)
def test_the_agent_of_a_body(body: bytes, agent: str | None) -> None:
    assert agent_of_body(body) == agent


def test_which_bodies_name_one() -> None:
    assert is_told_by_body("POST", "/v1/responses")
    assert not is_told_by_body("GET", "/v1/responses")
    assert not is_told_by_body("POST", "/v1/chat/completions")


def test_where_a_server_is() -> None:
    assert address_of(ServerSettings(), "127.0.0.1", 8080) == "http://127.0.0.1:8080"
    assert address_of(ServerSettings(), "::1", 80) == "http://[::1]:80"
    assert address_of(ServerSettings(), "0.0.0.0", 80).endswith(":80")
    assert "0.0.0.0" not in address_of(ServerSettings(), "0.0.0.0", 80)
    given = ServerSettings(advertise="https://one.example.org")
    assert address_of(given, "127.0.0.1", 8080) == "https://one.example.org"
    for wrong in ("one.example.org", "http://x/path", "ftp://x", "http://a b", ""):
        with pytest.raises(SettingsError, match="a URL without a path"):
            ServerSettings(advertise=wrong)
