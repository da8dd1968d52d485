"""Agents in an S3 bucket: killed, moved, cut off, and the same to the byte."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from isthmus import Runtime
from isthmus.server.agents.shelf import Shelf
from isthmus.server.settings import ServerSettings
from tests.server import test_mirror as mirrored
from tests.server.bucket import NAME, Bucket
from tests.server.conftest import Serving
from tests.server.process import no_models
from tests.server.test_agents import N_MESSAGES, new_agent, outputs, tell
from tests.server.test_owners import ended

LEASE_S = 3
N_AGENTS = 3
_NUMBERS = itertools.count()


@pytest.fixture
def url(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{NAME}/{next(_NUMBERS)}"


class Elsewhere(Serving):
    """A server over a URL, which finds an empty cache at each start.

    Posts come again, as a client's do, while a busy machine has the lease run out for a moment.
    """

    def __init__(self, url: str, folder: Path, model: Path, lease_s: int = LEASE_S) -> None:
        folder.mkdir()
        config = folder / "server.toml"
        config.write_text(f'data = "{url}"\nlease_s = {lease_s}\n')
        self._cache = folder / "cache"
        options = ("--model", f"tiny={model}", "--n-ctx", "1024", "--config", str(config))
        super().__init__(folder / "unused", "--data", url, "--cache", str(self._cache), *options)

    def start(self) -> None:
        shutil.rmtree(self._cache, ignore_errors=True)
        super().start()

    def post(self, path: str, body: object = None) -> dict:
        until = time.monotonic() + 30
        while (done := self.client.post(path, json=body or {})).status_code == 503:
            assert time.monotonic() < until, done.text
            time.sleep(0.1)
        assert done.status_code < 300, done.text
        return done.json()


def told(url: str, id_: str, text: str, position: int) -> int:
    """The agent's position once it was told; where it stands if that failed for now."""
    with httpx.Client(base_url=url, timeout=60) as client:
        said = client.post(f"/v1/agents/{id_}/messages", json={"input": text, "previous": position})
        assert said.status_code in (200, 409, 503), said.text
        return int(client.get(f"/v1/agents/{id_}").json()["position"])


def test_killed_under_load_and_started_with_an_empty_cache(
    url: str, tiny_q8: Path, tmp_path: Path
) -> None:
    calm = Serving(tmp_path / "calm", "--model", f"tiny={tiny_q8}", "--n-ctx", "1024")
    ids = [new_agent(calm, seed=n) for n in range(N_AGENTS)]
    for number, id_ in enumerate(ids):
        for position in range(N_MESSAGES):
            tell(calm, id_, f"{number} {position}")
    expected = outputs(calm, ids)
    assert calm.stop() == 0

    restless = Elsewhere(url, tmp_path / "restless", tiny_q8)
    ids = [new_agent(restless, seed=n) for n in range(N_AGENTS)]
    errors: list[BaseException] = []

    def talk(number: int, id_: str) -> None:
        position = 0
        try:
            while position < N_MESSAGES:
                with contextlib.suppress(httpx.TransportError):
                    now = told(restless.url, id_, f"{number} {position}", position)
                    assert now in (position, position + 1)
                    position = now
                time.sleep(0.05)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=talk, args=it) for it in enumerate(ids)]
    for thread in threads:
        thread.start()
    chance = random.Random(3)
    for _ in range(2):
        time.sleep(chance.uniform(0.2, 0.6))
        restless.kill()
        restless.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert outputs(restless, ids) == expected
    assert restless.stop() == 0


def test_responses_go_on_from_an_empty_cache(
    url: str, bucket: Bucket, tiny_q8: Path, tmp_path: Path
) -> None:
    def chain(serving: Serving, id_: str | None, *texts: str) -> list[dict[str, Any]]:
        told = []
        for text in texts:
            asked = {"model": "tiny", "input": text, "max_output_tokens": 8, "temperature": 0}
            told.append(serving.post("/v1/responses", {**asked, "previous_response_id": id_}))
            id_ = told[-1]["id"]
        return told

    calm = Serving(tmp_path / "calm", "--model", f"tiny={tiny_q8}", "--n-ctx", "1024")
    expected = [it["output"][0]["content"] for it in chain(calm, None, "one", "two", "three")]
    assert calm.stop() == 0

    serving = Elsewhere(url, tmp_path / "served", tiny_q8)
    first, second = chain(serving, None, "one", "two")
    serving.kill()
    serving.start()
    (third,) = chain(serving, second["id"], "three")
    assert [it["output"][0]["content"] for it in (first, second, third)] == expected
    assert third["usage"]["input_tokens_details"]["cached_tokens"] > 0
    (fork,) = chain(serving, first["id"], "two")
    assert fork["output"][0]["content"] == expected[1]

    body = {"model": "tiny", "input": "x", "previous_response_id": fork["id"], "stream": True}
    with serving.client.stream("POST", "/v1/responses", json=body) as stream:
        lines = stream.iter_lines()
        next(lines)
        bucket.wire.cut()
        rest = "\n".join(lines)
    assert "event: response.failed" in rest
    assert "response.completed" not in rest
    assert '"code":"storage"' in rest
    bucket.wire.mend()
    assert len(serving.get(f"/v1/responses/{fork['id']}/input_items")["data"]) == 3
    asked = {"model": "tiny", "input": "on", "previous_response_id": fork["id"]}
    assert serving.post("/v1/responses", asked)["output"]
    assert serving.stop() == 0


def test_a_connection_that_breaks(url: str, bucket: Bucket, tiny_q8: Path, tmp_path: Path) -> None:
    calm = Serving(tmp_path / "calm", "--model", f"tiny={tiny_q8}", "--n-ctx", "1024")
    id_ = new_agent(calm, seed=5)
    expected = [tell(calm, id_, text)["output"] for text in ("one", "two", "three")]
    assert calm.stop() == 0

    serving = Elsewhere(url, tmp_path / "served", tiny_q8, lease_s=4 * LEASE_S)
    id_ = new_agent(serving, seed=5)
    assert tell(serving, id_, "one")["output"] == expected[0]
    body = {"input": "two", "stream": True}
    with serving.client.stream("POST", f"/v1/agents/{id_}/messages", json=body) as stream:
        lines = stream.iter_lines()
        next(lines)
        bucket.wire.cut()
        rest = "\n".join(lines)
    assert "event: error" in rest
    assert "event: done" not in rest
    assert '"code":"storage"' in rest
    refused = serving.client.post(f"/v1/agents/{id_}/messages", json={"input": "two"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage")
    assert refused.json()["error"]["type"] == "server_error"
    assert "last acknowledged message" in refused.text
    assert "127.0.0.1" not in refused.text
    assert serving.get(f"/v1/agents/{id_}")["position"] == 1
    quick = {"model": "tiny", "prompt": "hello", "max_tokens": 4}
    assert serving.client.post("/v1/completions", json=quick).status_code == 200
    made = serving.client.post("/v1/agents", json={"guest": "chat"})
    assert made.status_code == 503
    assert [it["id"] for it in serving.get("/v1/agents")["data"]] == [id_]

    bucket.wire.mend()
    assert tell(serving, id_, "two", previous=1)["output"] == expected[1]
    assert tell(serving, id_, "three")["output"] == expected[2]
    turns = serving.get(f"/v1/agents/{id_}")["turns"]
    assert [turn["output"] for turn in turns] == expected
    assert serving.stop() == 0


def refused(url: str, model: Path, *options: str) -> str:
    """What a server says that does not start."""
    command = [sys.executable, "-m", "isthmus", "serve", "--port", "0", "--model", str(model)]
    command += ["--data", url, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_what_cannot_be_used_is_said_at_the_start(
    url: str, tiny_q8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ("--cache", str(tmp_path / "cache"))
    assert "bucket does not exist" in refused("s3://nobody-has-this/agents", tiny_q8, *cache)
    assert "nosuch" in refused("nosuch://bucket/agents", tiny_q8, *cache)
    assert "cache is for agents at a URL" in refused(str(tmp_path / "data"), tiny_q8, *cache)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "error sending request" in refused(url, tiny_q8, *cache)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    assert "127.0.0.1:9/latest/api/token" in refused(url, tiny_q8, *cache)


def test_a_store_that_ignores_conditions_is_refused_at_the_start(
    url: str, bucket: Bucket, tiny_q8: Path, tmp_path: Path
) -> None:
    bucket.wire.spoil = lambda data: data.replace(b"if-none-match", b"x-none-match-")
    try:
        said = refused(url, tiny_q8, "--cache", str(tmp_path / "cache"))
    finally:
        bucket.wire.spoil = None
    assert "does not honour conditional writes" in said
    assert "use a store that does" in said


STOPPED = """
import asyncio, signal, sys, threading
from pathlib import Path
from typing import Any
from isthmus import Runtime
from isthmus.errors import StorageError
from isthmus.server.storage.objects import Objects
from isthmus.server.settings import ServerSettings
from isthmus.server.agents.shelf import Shelf
from tests.server.process import no_models
from tests.server.test_mirror import new, tell

url, cache, what = sys.argv[1:]
method = getattr(Objects, what)

def stopped(objects, name, *rest):
    if name.startswith("agents/"):
        # To this very thread: another one might be told late, and this one go on meanwhile.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
    return method(objects, name, *rest)

async def main():
    with Runtime(device="null", threads=1) as runtime:
        shelf = Shelf(no_models(runtime), ServerSettings(data=url, cache=Path(cache), lease_s=2.0))
        id_ = await new(shelf)
        print(id_, await tell(shelf, id_), flush=True)
        setattr(Objects, what, stopped)
        try:
            await (tell(shelf, id_) if what == "replace" else new(shelf))
        except StorageError as error:
            print(error, flush=True)
        await shelf.close()

asyncio.run(main())
"""


@pytest.mark.parametrize("what", ["replace", "create"])
def test_a_server_that_is_stopped_before_its_write_and_wakes_after_a_takeover(
    url: str, null_runtime: Runtime, tmp_path: Path, what: str
) -> None:
    command = [sys.executable, "-c", STOPPED, url, str(tmp_path / "stopped"), what]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            id_, said = process.stdout.readline().split()
            assert said == "A"
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            settings = ServerSettings(data=url, cache=tmp_path / "heir", lease_s=LEASE_S)

            async def heir() -> None:
                shelf = await asyncio.to_thread(Shelf, no_models(null_runtime), settings)
                await ended(shelf, id_)
                assert [await mirrored.tell(shelf, id_) for _ in range(2)] == ["B", "C"]
                process.send_signal(signal.SIGCONT)
                complaint = await asyncio.to_thread(process.communicate)
                assert "another server" in complaint[0]
                assert [await mirrored.tell(shelf, id_) for _ in range(2)] == ["D", "E"]
                await shelf.close()

            asyncio.run(heir())
            after = Shelf(no_models(null_runtime), settings)
            turns = after._home.turns(after.record(id_))
            assert [turn.output for turn in turns] == list("ABCDE")
            asyncio.run(after.close())
        finally:
            process.kill()
