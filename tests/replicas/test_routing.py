"""Which replica is asked for an agent, and what a replica's server is started with. Without Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest

import isthmus.ray
from isthmus.errors import SettingsError
from isthmus.ray.routing import agent_of, ranked
from isthmus.ray.server_process import ServerProcess, _free_cache, as_toml
from isthmus.ray.serving import Scale, serve_until_told
from isthmus.ray.sizes import weights_nbytes
from isthmus.server.settings import ServerSettings

AGENTS = [f"{n:012d}" for n in range(3000)]


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    job = isthmus.Job("chat", models={"default": "smollm2"})
    uses = (
        lambda: isthmus.ray.application({}),
        lambda: list(isthmus.ray.map(job, ["x"])),
        lambda: serve_until_told("local", {}, Scale(), print),
    )
    for use in uses:
        with pytest.raises(SettingsError, match=r"pip install 'isthmus\[ray\]'"):
            use()


def test_models_of_a_job_on_ray_are_named() -> None:
    loaded = cast("Any", object())
    with pytest.raises(SettingsError, match="names its models"):
        list(isthmus.ray.map(isthmus.Job("chat", models={"default": loaded}), ["x"]))


def test_the_agent_is_in_the_path() -> None:
    assert agent_of({"path": "/v1/agents/abcdefghij12/messages"}) == "abcdefghij12"
    assert agent_of({"path": "/v1/chat/completions"}) is None
    assert agent_of({}) is None


def test_each_replica_has_its_share_and_keeps_it() -> None:
    three = {it: ranked(it, ["a", "b", "c"]) for it in AGENTS}
    shares = Counter(it[0] for it in three.values())
    assert all(900 < n < 1100 for n in shares.values()), shares
    for agent, order in three.items():
        assert sorted(order) == ["a", "b", "c"]
        assert ranked(agent, ["c", "b", "a"]) == order
        four = ranked(agent, ["a", "b", "c", "d"])
        assert four[0] in (order[0], "d")
        assert len(four) == 3
        two = ranked(agent, [it for it in "abc" if it != "b"])
        assert two == [it for it in order if it != "b"]
    assert ranked("x", []) == []


@pytest.mark.parametrize(("text", "scale"), [("3", (3, 3)), ("1-3", (1, 3)), ("2-2", (2, 2))])
def test_a_range_of_replicas(text: str, scale: tuple[int, int]) -> None:
    found = Scale.parse(text, messages=4)
    assert (found.least, found.most, found.messages) == (*scale, 4)


@pytest.mark.parametrize("text", ["", "0", "-3", "3-", "3-1", "x", "1-3-5", "1.5"])
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(SettingsError, match="replicas"):
        Scale.parse(text)


def test_a_replica_needs_the_memory_of_its_models(tmp_path: Path) -> None:
    for name, nbytes in {"a.gguf": 10, "b-00001-of-00002.gguf": 200}.items():
        (tmp_path / name).write_bytes(bytes(nbytes))
    second = tmp_path / "b-00002-of-00002.gguf"
    second.write_bytes(bytes(3000))
    folder = str(tmp_path)
    assert weights_nbytes({}) == 0
    assert weights_nbytes({"model": ("a.gguf",)}, folder) == 10
    assert weights_nbytes({"model": (f"x={tmp_path}/a.gguf", "y=a.gguf")}, folder) == 10
    both = {"model": ["a.gguf"], "models": {"b": {"file": "b-00001-of-00002.gguf"}}}
    assert weights_nbytes(both, folder) == 3210
    assert weights_nbytes({"models": {"b": "nowhere.gguf"}}, folder) == 0
    second.unlink()
    assert weights_nbytes(both, folder) == 10  # the server says at its start what is missing


def test_settings_come_back_from_their_file(tmp_path: Path) -> None:
    said: dict[str, Any] = {
        "data": tmp_path / 'a "b"\\c\x7f\n',
        "n_ctx": 512,
        "lease_s": 2.5,
        "share_agents": True,
        "origins": ("https://a.example",),
        "models": {"tiny": {"file": "x.gguf", "load": True}, "ünicode": "y"},
        "keys": None,
    }
    file = tmp_path / "server.toml"
    file.write_text(as_toml(said), encoding="utf-8")
    found = ServerSettings.make(file, {})
    for name, value in said.items():
        assert getattr(found, name) == value


def test_servers_on_one_machine_have_caches_of_their_own(tmp_path: Path) -> None:
    settings = {"data": "s3://b/a", "cache": tmp_path}
    first, one = _free_cache(settings)
    second, two = _free_cache(settings)
    assert first != second
    one.close()
    again, three = _free_cache(settings)
    assert again == first
    two.close()
    three.close()


@pytest.mark.slow
def test_a_replicas_server_ends_with_its_parent(tmp_path: Path) -> None:
    code = """
import json, sys, time
from isthmus.ray.server_process import ServerProcess
it = ServerProcess(json.loads(sys.argv[1]), sys.argv[2])
print(it.pid, it.url, flush=True)
time.sleep(100)"""
    models = tmp_path / "models"
    models.mkdir()
    settings = json.dumps({"data": "agents", "models_folder": "models", "device": "null"})
    command = [sys.executable, "-c", code, settings, str(tmp_path)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert parent.stdout is not None
    with parent.stdout as said:
        pid, url = said.readline().split()
    assert url.startswith("http://127.0.0.1:")
    assert (tmp_path / "agents").is_dir()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    end = time.monotonic() + 60
    while os.path.exists(f"/proc/{pid}") and "Z" not in _state(pid):
        assert time.monotonic() < end
        time.sleep(0.05)


def _state(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except OSError:
        return "Z"


@pytest.mark.slow
def test_a_replicas_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"did not start: .*there is no such folder"):
        ServerProcess({"data": str(tmp_path / "x"), "models_folder": str(tmp_path / "none")})
