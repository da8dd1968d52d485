"""A server in a process of its own, as `isthmus serve` runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

from isthmus.server.storage import objects
from tests.server.bucket import Bucket
from tests.server.page_support import chromium
from tests.tiny_gguf import TinyLlama


@pytest.fixture
def memory_store(monkeypatch: pytest.MonkeyPatch) -> str:
    """A URL whose objects are in this process's memory."""
    from obstore.store import MemoryStore

    store = MemoryStore()
    monkeypatch.setattr(objects, "open_store", lambda _: store)
    return "s3://in-memory/agents"


class Serving:
    """`isthmus serve`, and a client of it."""

    running: ClassVar[set[Serving]] = set()
    program: ClassVar[tuple[str, ...]] = ("-m", "isthmus")
    prefix: tuple[str, ...] = ()
    """What the command begins with, to run it elsewhere."""

    def __init__(
        self, data: Path, *options: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.data = data
        self.environment = {**os.environ, **(environment or {})}
        self.options = options
        self.start()

    def start(self) -> None:
        command = [
            *self.prefix,
            sys.executable,
            *self.program,
            "serve",
            "--port",
            "0",
            "--data",
            str(self.data),
        ]
        self.data.mkdir(exist_ok=True)
        log = self.data.parent / f"{self.data.name}.log"
        with log.open("w") as file:  # a pipe that nobody reads would stop the server
            self.process = subprocess.Popen(
                [*command, *self.options], stderr=file, env=self.environment
            )
        self.client = httpx.Client(timeout=120)
        self.running.add(self)
        while not (found := re.search(r"http://[\w.:]+", log.read_text())):
            assert self.process.poll() is None, log.read_text()
            time.sleep(0.02)
        self.url = found[0]
        self.client.base_url = self.url

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._let_go()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self._let_go()
        return code

    def _let_go(self) -> None:
        self.client.close()
        self.running.discard(self)

    def post(self, path: str, body: object = None) -> dict:
        done = self.client.post(path, json={} if body is None else body)
        assert done.status_code < 300, done.text
        return done.json()

    def get(self, path: str) -> dict:
        done = self.client.get(path)
        assert done.status_code == 200, done.text
        return done.json()


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    """Ends the servers of a test that failed, so that no later test meets what is left of them."""
    before = set(Serving.running)
    yield
    for serving in Serving.running - before:
        serving.kill()


@pytest.fixture(scope="session")
def tiny_q8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("q8") / "tiny.gguf"
    return TinyLlama(with_tokenizer=True, quantisation="Q8_0").write(path)


@pytest.fixture(scope="session")
def tiny_long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose answers may be long enough to keep a slot for as long as a test wants."""
    path = tmp_path_factory.mktemp("long") / "tiny.gguf"
    return TinyLlama(with_tokenizer=True, quantisation="Q8_0", n_ctx=65536).write(path)


@pytest.fixture(scope="module")
def tiny_server(tiny_q8: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    data = tmp_path_factory.mktemp("data")
    serving = Serving(data, "--model", f"tiny={tiny_q8}", "--n-ctx", "1024")
    yield serving
    assert serving.stop() == 0


@pytest.fixture(scope="module")
def server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    serving = Serving(tmp_path_factory.mktemp("data"), "--model", f"smollm2={smollm2}")
    yield serving
    assert serving.stop() == 0


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    """An S3 server of the module's own."""
    bucket = Bucket()
    yield bucket
    bucket.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def two_models(tiny_long: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """Two models whose contexts have room for more than a test waits for."""
    folder = tmp_path_factory.mktemp("page")
    how: dict[str, Any] = {"with_tokenizer": True, "quantisation": "Q8_0", "n_ctx": 65536}
    other = TinyLlama(seed=5, **how).write(folder / "other.gguf")
    models = ("--model", f"tiny={tiny_long}", "--model", f"other={other}")
    made = Serving(folder / "data", *models, "--n-ctx", "60000")
    yield made
    assert made.stop() == 0


@pytest.fixture
def serving(two_models: Serving) -> Serving:
    """The same for each test, without agents."""
    for it in two_models.get("/v1/agents")["data"]:
        two_models.client.delete(f"/v1/agents/{it['id']}")
    return two_models
