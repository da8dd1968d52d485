"""Settings from options, from variables and from a file: the same names, the same checks."""

from __future__ import annotations

import argparse
import logging
import re
from dataclasses import fields
from pathlib import Path

import pytest

from isthmus.cli import build_parser
from isthmus.config import Environment
from isthmus.errors import SettingsError
from isthmus.server.kinds import KINDS
from isthmus.server.settings import ServerSettings
from tests.server.conftest import Serving

DOCS = Path(__file__).parents[2] / "docs"
COMMANDS = {
    *("config", "new_key", "limit", "list_keys", "remove_key", "help"),
    *("ray", "replicas", "replica_messages", "replica_gpus", "replica_memory", "until_eof"),
}
"""Options of `isthmus serve` that are no settings: where settings are, what is done once, and how
many servers there are."""
OTHERWISE = {"alias": "aliases"} | dict.fromkeys(("tool", "fetch", "mcp", "tools_file"), "tools")


def test_every_option_is_a_setting() -> None:
    parser = build_parser()
    (found,) = (it for it in parser._actions if isinstance(it, argparse._SubParsersAction))
    options = {it.dest for it in found.choices["serve"]._actions} - COMMANDS
    assert {OTHERWISE.get(it, it) for it in options} <= {*KINDS}


def test_every_setting_has_a_kind_that_takes_its_default() -> None:
    assert {it.name for it in fields(ServerSettings)} == {*KINDS}
    settings = ServerSettings()
    for name, kind in KINDS.items():
        assert kind.accepts(getattr(settings, name)), name


def test_options_win_over_variables_and_these_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('port = 1\nslots = 1\nlive = 1\nmodel = "smollm2"\nthreads = 1\n')
    said = ServerSettings.make(file, {"port": 3}, {"port": "2", "slots": "2"})
    assert (said.port, said.slots, said.live, said.threads) == (3, 2, 1, 1)
    assert said.model == ("smollm2",)


def test_variables_are_read_by_their_kinds(tmp_path: Path) -> None:
    variables = {
        "ISTHMUS_KEEP_ALIVE_S": "5m",
        "ISTHMUS_MEMORY64": "true",
        "ISTHMUS_SHARE_AGENTS": "0",
        "ISTHMUS_ORIGINS": "https://a.example, http://localhost:*",
        "ISTHMUS_MODEL": "one=a.gguf,b.gguf",
        "ISTHMUS_MODELS": "big=/srv/big.gguf",
        "ISTHMUS_ALIASES": "gpt-4o=one",
        "ISTHMUS_KV_TYPE": "q8_0",
        "ISTHMUS_DATA": "s3://bucket/agents",
        "ISTHMUS_DATA_CACHE": str(tmp_path / "copy"),
        "ISTHMUS_CACHE": str(tmp_path / "models"),
        "ISTHMUS_SLOTS": "",
        "HOME": "/root",
    }
    environment = Environment.read(variables)
    said = ServerSettings.make(None, {}, environment.settings)
    assert (said.keep_alive_s, said.memory64, said.share_agents) == (300.0, True, False)
    assert said.origins == ("https://a.example", "http://localhost:*")
    assert said.model == ("one=a.gguf", "b.gguf")
    assert said.models == {"big": "/srv/big.gguf"}
    assert said.aliases == {"gpt-4o": "one"}
    assert (said.kv_type, said.data, said.cache) == (
        "q8_0",
        "s3://bucket/agents",
        tmp_path / "copy",
    )
    assert said.slots == 16  # a variable that is empty says nothing
    assert environment.cache == tmp_path / "models"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("port", "many", "ISTHMUS_PORT: port is 'many': give a whole number, 0 to 65535"),
        ("threads", "-1", "give a whole number, 0 to 512"),
        ("memory64", "perhaps", "give true or false"),
        ("kv_type", "f17", "give f16, f32, q8_0 or q4_0"),
        ("sharing", "all", "sharing is 'all': give same, imported"),
        ("graph", "mine", "give auto, own or adopted"),
        ("idle_s", "soon", "give seconds, or a duration such as 30s, 5m or 1h, more than 0"),
        ("drain_s", "2h", "0 to an hour"),
        ("aliases", "gpt", "aliases.gpt is '': give a table"),
        ("proxies", "10.0.0.0/99", "a list of addresses and networks"),
    ],
)
def test_a_variable_that_is_wrong_is_named(name: str, value: str, said: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)):
        ServerSettings.make(None, {}, {name: value})


def test_a_variable_that_is_nearly_a_setting_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ServerSettings.make(None, {}, {"prt": "1", "test_device": "cuda:0"})
    assert caplog.messages == ["ISTHMUS_PRT is no setting: did you mean port?"]


def test_the_file_of_the_documentation_is_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(host = .*?)```", (DOCS / "server.md").read_text(), re.DOTALL)
    file = tmp_path / "server.toml"
    file.write_text(text)
    assert ServerSettings.make(file, {}).aliases


def test_a_server_of_variables_alone(
    tiny_q8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "server.toml"
    config.write_text(f'model = "tiny={tiny_q8}"\ndevice = "cpu"\nthreads = 1\nslots = 7\n')
    monkeypatch.setenv("ISTHMUS_CONFIG", str(config))
    monkeypatch.setenv("ISTHMUS_N_CTX", "256")
    monkeypatch.setenv("ISTHMUS_LOG_FORMAT", "json")
    serving = Serving(tmp_path / "data")
    models = serving.get("/v1/models")["data"]
    assert [it["id"] for it in models] == ["tiny"]
    assert serving.get("/props")["default_generation_settings"]["n_ctx"] == 256
    assert serving.stop() == 0
    assert '"event":"listening"' in (tmp_path / "data.log").read_text()
