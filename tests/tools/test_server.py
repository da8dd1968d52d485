"""Tools of a server's durable agents: given by name, kept, and only to those who may."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from isthmus.errors import SettingsError
from isthmus.server.keys.keys import new_key
from isthmus.server.settings import ServerSettings
from tests.server.conftest import Serving
from tests.tools.guests import CALLER
from tests.tools.plays import scripted
from tests.tools.test_chat import ROME, SAID
from tests.tools.test_mcp import LIAR

LAST = SAID.splitlines()[-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving")
    scripted(folder)
    counts = "import sys; open(sys.argv[1], 'a').write('x'); print('sunny')"
    weather = [sys.executable, "-c", counts, str(folder / "calls")]
    (folder / "server.toml").write_text(
        f"""[tools]
clock = "echo noon"
weather = {{ command = {json.dumps(weather)}, description = "The weather." }}
secret = {{ command = "echo hidden", keys = ["ada"] }}
liar = {{ mcp = {json.dumps([sys.executable, str(LIAR), "good"])} }}
"""
    )
    return folder


@pytest.fixture(scope="module")
def serving(folder: Path) -> Iterator[Serving]:
    model = f"scripted={folder / 'scripted.gguf'}"
    config = str(folder / "server.toml")
    serving = Serving(folder / "data", "--config", config, "--model", model, "--n-ctx", "2048")
    yield serving
    assert serving.stop() == 0


def made(serving: Serving, **more: Any) -> str:
    asked = {"args": {"temperature": "0"}, "tools": ["weather", "clock"], **more}
    return str(serving.post("/v1/agents", asked)["id"])


def tell(serving: Serving, id_: str, text: str) -> dict[str, Any]:
    return serving.post(f"/v1/agents/{id_}/messages", {"input": text})


def n_calls(folder: Path) -> int:
    calls = folder / "calls"
    return len(calls.read_text()) if calls.exists() else 0


def test_an_agent_has_what_it_was_given(serving: Serving, folder: Path) -> None:
    before = n_calls(folder)
    id_ = made(serving)
    told = tell(serving, id_, ROME)
    assert told["output"] == SAID
    assert [it["name"] for it in told["tool_calls"]] == ["weather", "clock"]
    agent = serving.get(f"/v1/agents/{id_}")
    assert agent["tools"] == ["weather", "clock"]
    assert [it["name"] for it in agent["turns"][0]["tool_calls"]] == ["weather", "clock"]
    fork = serving.post(f"/v1/agents/{id_}/fork", {"position": 1})
    assert fork["tools"] == ["weather", "clock"]
    assert tell(serving, fork["id"], "And now?")["output"] == LAST
    bare = made(serving, tools=[])
    assert "tool_call" in tell(serving, bare, ROME)["output"]
    assert n_calls(folder) == before + 1


def test_after_a_restart_it_sees_what_was_done(serving: Serving, folder: Path) -> None:
    before = n_calls(folder)
    id_ = made(serving)
    tell(serving, id_, ROME)
    serving.kill()
    serving.start()
    assert tell(serving, id_, "And now?")["output"] == LAST
    assert n_calls(folder) == before + 1


def test_snapshots_come_and_go_with_their_tools(serving: Serving) -> None:
    id_ = made(serving)
    tell(serving, id_, ROME)
    file = serving.client.get(f"/v1/agents/{id_}/snapshot").content
    again = serving.client.post("/v1/agents/restore", content=file).json()
    assert again["tools"] == ["clock", "weather"]
    assert tell(serving, again["id"], "And now?")["output"] == LAST


def test_which_tools_there_are(serving: Serving) -> None:
    listed = serving.get("/v1/tools")["data"]
    names = [it["id"] for it in listed]
    assert names[:2] == ["clock", "weather"]
    assert "liar_echo" in names
    assert "secret" not in names  # it is for the owner of a key
    assert listed[1]["description"] == "The weather."
    refused = serving.client.post("/v1/agents", json={"tools": ["secret"]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "tool_not_found")
    assert "there is no tool secret; there are clock, weather" in refused.text
    wrong = serving.client.post("/v1/agents", json={"tools": "clock"})
    assert wrong.status_code == 400


def test_a_server_of_another_protocol(serving: Serving) -> None:
    guest = serving.client.post("/v1/guests", content=CALLER).json()["id"]
    id_ = made(serving, guest=guest, tools=["liar_echo"])
    assert tell(serving, id_, '=liar_echo {"a": 1}')["output"] == '{"a": 1}'
    failed = serving.client.post(f"/v1/agents/{id_}/messages", json={"input": "!liar_fail x"})
    assert failed.status_code >= 400
    assert "named 'liar_fail', and it was given liar_echo" in failed.text
    told = tell(serving, id_, "=liar_echo 3")
    assert told["tool_calls"][0]["error"].startswith("its arguments are wrong")
    assert told["position"] == 2


def test_keys_have_tools_of_their_own(folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    ada, bob = new_key(keys, "ada"), new_key(keys, "bob")
    config = str(folder / "server.toml")
    model = f"scripted={folder / 'scripted.gguf'}"
    options = ("--config", config, "--model", model, "--keys", str(keys), "--n-ctx", "2048")
    serving = Serving(tmp_path / "data", *options)

    def asked(key: str, method: str, path: str, body: object = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"}
        return serving.client.request(method, path, json=body, headers=headers)

    def names(key: str) -> set[str]:
        return {it["id"] for it in asked(key, "GET", "/v1/tools").json()["data"]}

    try:
        assert names(ada) - names(bob) == {"secret"}
        agent = asked(ada, "POST", "/v1/agents", {"tools": ["secret"]}).json()
        assert agent["tools"] == ["secret"]
        assert asked(bob, "POST", "/v1/agents", {"tools": ["secret"]}).status_code == 400
        file = asked(ada, "GET", f"/v1/agents/{agent['id']}/snapshot").content
        headers = {"Authorization": f"Bearer {bob}"}
        refused = serving.client.post("/v1/agents/restore", content=file, headers=headers)
        assert "there is no tool secret" in refused.text
    finally:
        assert serving.stop() == 0


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("tools = 3", "tools is 3: give a table"),
        ("[tools]\nx = 3", r"tools.x: Expected `object`"),
        ("[tools]\nx = {}", "exactly one of"),
        ('[tools]\n"a b" = "cat"', "no tool can be called"),
    ],
)
def test_settings_that_are_none(tmp_path: Path, said: str, expected: str) -> None:
    (tmp_path / "server.toml").write_text(said)
    with pytest.raises(SettingsError, match=f"server.toml: .*{expected}"):
        ServerSettings.make(tmp_path / "server.toml", {})
