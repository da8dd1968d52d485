"""Replicas on a Ray cluster of this machine, over one bucket: `make test-ray`.

Each agent's history must be that of an undisturbed server, whatever befalls the replicas.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

from isthmus.errors import SettingsError
from isthmus.ray.serving import build
from tests.server.bucket import NAME, Bucket
from tests.server.cluster import calm_histories, histories, text_of

pytest.importorskip("ray", reason="needs pip install 'isthmus[ray]'")
pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray's own
]
LEASE_S = 3.0
N_AGENTS, N_MESSAGES = 12, 10
STARTING = {"RAY_raylet_start_wait_time_s": "180", "RAY_gcs_server_request_timeout_seconds": "120"}
"""For Ray's processes on a machine that others use too."""


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    bucket = Bucket()
    yield bucket
    bucket.close()


class Application:
    """`isthmus serve --ray local`, and a client of it."""

    running: ClassVar[set[Application]] = set()

    def __init__(self, bucket: Bucket, folder: Path, model: Path, *options: str) -> None:
        folder.mkdir()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        config = folder / "server.toml"
        config.write_text(f"lease_s = {LEASE_S}\nn_ctx = 1024\n")
        self.log = folder / "log"
        command = [sys.executable, "-m", "isthmus", "serve", "--ray", "local"]
        command += ["--config", str(config), "--port", self.url.rpartition(":")[2]]
        command += ["--data", f"s3://{NAME}/{folder.name}", "--cache", str(folder / "caches")]
        environment = {**os.environ, **bucket.environment, **STARTING}
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                [*command, "--model", f"tiny={model}", *options],
                stdout=file,
                stderr=file,
                env=environment,
            )
        self.running.add(self)
        while f"serving on {self.url}" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            time.sleep(0.2)
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def stop(self) -> None:
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(120) == 0, self.log.read_text()[-3000:]
        self.running.discard(self)

    def new_agent(self, seed: int) -> str:
        args = {"max_tokens": "12"}
        made = self.client.post("/v1/agents", json={"guest": "chat", "seed": seed, "args": args})
        assert made.status_code == 201, made.text
        return str(made.json()["id"])

    def tell(self, id_: str, number: int, position: int) -> Counter[str]:
        """Returns once the agent is at the next position; what was met."""
        met: Counter[str] = Counter()
        body = {"input": text_of(number, position), "previous": position}
        end = time.monotonic() + 120
        while True:
            assert time.monotonic() < end, f"agent {id_} is stuck at {position}: {met}"
            try:
                said = self.client.post(f"/v1/agents/{id_}/messages", json=body)
            except httpx.TransportError as error:
                met[type(error).__name__] += 1
                time.sleep(0.2)
                continue
            met[str(said.status_code)] += 1
            if said.status_code == 200:
                return met
            if said.status_code == 409:
                assert f"at {position + 1}, not" in said.text, said.text
                return met
            assert said.status_code in (500, 502, 503), said.text
            time.sleep(0.2)


@pytest.fixture(autouse=True)
def no_application_is_left() -> Iterator[None]:
    """Ends that of a test that failed."""
    yield
    for it in list(Application.running):
        Application.running.discard(it)
        it.process.send_signal(signal.SIGTERM)
        it.process.wait(120)


def talk(app: Application, ids: list[str], positions: range) -> Counter[str]:
    """Tells all agents some messages, four at a time."""
    met: Counter[str] = Counter()
    errors: list[BaseException] = []

    def live(numbers: range) -> None:
        try:
            for position in positions:
                for number in numbers:
                    met.update(app.tell(ids[number], number, position))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=live, args=(range(n, len(ids), 4),)) for n in range(4)]
    for it in threads:
        it.start()
    for it in threads:
        it.join()
    if errors:
        raise errors[0]
    return met


def servers(app: Application) -> list[int]:
    """Processes of the replicas' servers, as far as they live: the log has each one's number."""
    pids = {
        int(it) for it in re.findall(r"the replica's server is process (\d+)", app.log.read_text())
    }
    return [it for it in sorted(pids) if os.path.exists(f"/proc/{it}")]


def test_replicas_that_are_killed_and_scaled_lose_nothing(
    bucket: Bucket, tiny_q8: Path, tmp_path: Path
) -> None:
    expected = calm_histories(tmp_path / "calm", tiny_q8, [N_MESSAGES] * N_AGENTS)
    app = Application(bucket, tmp_path / "two", tiny_q8, "--replicas", "2")
    ids = [app.new_agent(n) for n in range(N_AGENTS)]
    met = talk(app, ids, range(4))
    print(f"\n2 replicas: {dict(met)}")
    with app.client.stream(
        "POST", f"/v1/agents/{ids[0]}/messages", json={"input": text_of(0, 4), "stream": True}
    ) as stream:
        said = [it for it in stream.iter_lines() if it.startswith("event: ")]
    assert said.count("event: delta") > 1
    assert said[-1] == "event: done"
    for number in range(1, N_AGENTS):
        app.tell(ids[number], number, 4)
    victim, *others = servers(app)
    assert others
    os.kill(victim, signal.SIGKILL)
    start = time.monotonic()
    met = talk(app, ids, range(5, N_MESSAGES))
    print(f"after a kill: {dict(met)}, {time.monotonic() - start:.1f} s")
    assert histories(app.url, ids) == expected
    start = time.monotonic()
    app.stop()
    print(f"stopped after {time.monotonic() - start:.1f} s")
    assert servers(app) == []


def test_replicas_come_with_messages_and_go(bucket: Bucket, tiny_q8: Path, tmp_path: Path) -> None:
    expected = calm_histories(tmp_path / "calm", tiny_q8, [N_MESSAGES] * 2 * N_AGENTS)
    app = Application(
        bucket, tmp_path / "scaled", tiny_q8, "--replicas", "1-3", "--replica-messages", "1"
    )
    ids = [app.new_agent(n) for n in range(2 * N_AGENTS)]
    assert len(servers(app)) == 1
    most = 0
    ended = threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.5):
            most = max(most, len(servers(app)))

    watching = threading.Thread(target=watch)
    watching.start()
    met = talk(app, ids, range(N_MESSAGES))
    ended.set()
    watching.join()
    print(f"\n1 to {most} replicas under load: {dict(met)}")
    assert most > 1
    end = time.monotonic() + 180
    while len(servers(app)) > 1:
        assert time.monotonic() < end
        time.sleep(1)
    assert histories(app.url, ids) == expected
    app.stop()


def test_the_manifest_of_the_documentation_is_one() -> None:
    import yaml
    from ray.serve.schema import ServeDeploySchema

    page = (Path(__file__).parents[2] / "docs/cluster.md").read_text()
    (manifest,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    service = yaml.safe_load(manifest)
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    (application,) = ServeDeploySchema.model_validate(config).applications
    module, _, name = str(application.import_path).partition(":")
    assert (module, name) == (build.__module__, build.__name__)
    bound = build(application.args)
    deployment = bound._bound_deployment
    assert deployment._deployment_config.autoscaling_config.max_replicas == 3
    with pytest.raises(SettingsError, match="no argument replica"):
        build({**application.args, "replica": 1})


def test_a_map_is_the_same_on_a_cluster(tiny_q8: Path, tmp_path: Path) -> None:
    inputs = tmp_path / "in.jsonl"
    inputs.write_text("".join(json.dumps(f"Tell me about {n}.") + "\n" for n in range(40)))
    command: list[Any] = [sys.executable, "-m", "isthmus", "map", "chat", "--inputs", inputs]
    command += ["--model", tiny_q8, "--arg", "max_tokens=6", "--seed", "3"]
    here = subprocess.run(command, capture_output=True, check=True)
    out = tmp_path / "out.jsonl"
    out.write_bytes(here.stdout[: len(here.stdout) // 2])  # torn in a line
    there = [*command, "--output", out, "--ray", "local", "--workers", "2"]
    done = subprocess.run(there, check=False, capture_output=True, env={**os.environ, **STARTING})
    assert done.returncode == 0, done.stderr[-3000:]
    assert out.read_bytes() == here.stdout
