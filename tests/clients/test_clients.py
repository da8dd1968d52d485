"""Clients that people use, unmodified, each in an environment of its own (`make test-clients`).

`CLIENTS=FOLDER make test-clients` keeps the environments there, and takes those that it finds.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from tests.clients.clients import CLIENTS, Client
from tests.clients.plays import plays
from tests.clients.scripted import ScriptedModel
from tests.server.conftest import Serving
from tests.tiny_gguf import TinyModel
from tests.tiny_vocabulary import INFILL

pytestmark = [pytest.mark.long, pytest.mark.model]
SCRIPTS = Path(__file__).parent / "scripts"
PIP = ("pip", "install", "--quiet", "--disable-pip-version-check")
NPM = ("npm", "install", "--silent", "--no-fund", "--no-audit")


def cases() -> Iterator[ParameterSet]:
    """All features of all clients, by the APIs that they are for."""
    for client in CLIENTS:
        for route, feature in client.cases():
            name = f"{client.name}-{route}-{feature}"
            yield pytest.param(client, route, feature, id=name)


class Environments:
    """A folder with an environment for each client, made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def command(self, client: Client) -> list[str]:
        """The program and the script, which lies where Node finds what it imports."""
        folder = self.folder / client.name
        ready = folder / "ready"
        if not ready.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            _install(folder, client)
            ready.touch()
        if not client.is_npm:
            return [str(folder / "bin" / "python"), str(SCRIPTS / client.script)]
        for script in SCRIPTS.glob("*.mjs"):
            shutil.copy(script, folder)
        return ["node", str(folder / client.script)]


def _install(folder: Path, client: Client) -> None:
    if client.is_npm:
        subprocess.run([*NPM, "--prefix", str(folder), *client.packages], check=True)
        return
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", *PIP, *client.packages], check=True)


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Environments:
    kept = os.environ.get("CLIENTS")
    return Environments(Path(kept).absolute() if kept else tmp_path_factory.mktemp("clients"))


@pytest.fixture(scope="module")
def server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("server")
    scripted = ScriptedModel(plays()).write(folder / "scripted.gguf")
    encoder = TinyModel("bert", with_tokenizer=True).write(folder / "embed.gguf")
    filling = TinyModel(with_tokenizer=True, more_special=INFILL).write(folder / "gaps.gguf")
    named = {"smollm2": smollm2, "scripted": scripted, "embed": encoder, "gaps": filling}
    models = [it for name, path in named.items() for it in ("--model", f"{name}={path}")]
    serving = Serving(folder / "data", "--n-ctx", "131072", "--log-format", "json", *models)
    yield serving
    assert serving.stop() == 0


def requests(server: Serving, model: str) -> list[dict]:
    """What the log says of all finished requests to a model."""
    log = server.data.parent / f"{server.data.name}.log"
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return [it for it in lines if it["event"] == "request" and it["model"] == model]


def require_cancelled(server: Serving, n_before: int) -> None:
    """The only request since then ended because its caller left, and not at its end."""
    deadline = time.monotonic() + 60
    while len(found := requests(server, "scripted")[n_before:]) < 1:
        assert time.monotonic() < deadline, "the request goes on without its caller"
        time.sleep(0.05)
    assert [it["error"] for it in found] == ["cancelled"]


@pytest.mark.parametrize(("client", "route", "feature"), list(cases()))
def test_client(
    server: Serving,
    environments: Environments,
    tmp_path: Path,
    client: Client,
    route: str,
    feature: str,
) -> None:
    n_before = len(requests(server, "scripted"))
    command = [*environments.command(client), server.url, route, feature]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300
    )
    said = done.stdout.splitlines()  # some clients say something of their own first
    assert said[-1:] == ["good"], done.stdout + done.stderr
    if feature == "cancel":
        require_cancelled(server, n_before)
