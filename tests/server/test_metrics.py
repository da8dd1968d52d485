"""What Prometheus, a dashboard and a balancer read of a server."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from isthmus.server.http.key import KeyLimits
from isthmus.server.keys.keys import new_key
from tests.patience import eventually
from tests.server.conftest import Serving

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana.json"


@pytest.fixture(scope="module")
def measured(tiny_q8: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server with a key, which has answered something."""
    folder = tmp_path_factory.mktemp("measured")
    key = new_key(folder / "keys", "ada", KeyLimits.parse(["metrics=1"]))
    options = ("--model", f"served={tiny_q8}", "--n-ctx", "256", "--keys", str(folder / "keys"))
    serving = Serving(folder / "data", *options)
    serving.client.headers["Authorization"] = f"Bearer {key}"
    body = {"model": "served", "prompt": "Hello", "max_tokens": 5, "ignore_eos": True}
    for _ in range(2):
        serving.post("/v1/completions", body)
    serving.client.get("/v1/nothing")
    serving.client.request("BREW", "/v1/models")
    yield serving
    assert serving.stop() == 0


def series(serving: Serving) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Values by the names of series, with their labels."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(serving.client.get("/metrics").text):
        for it in family.samples:
            found.setdefault(it.name, []).append((it.labels, it.value))
    return found


def test_requests_and_tokens_are_counted(measured: Serving) -> None:
    found = series(measured)
    requests = {
        (it["method"], it["route"], it["status"]) for it, _ in found["isthmus_http_requests_total"]
    }
    assert ("POST", "/v1/completions", "200") in requests
    assert ("GET", "other", "404") in requests
    assert not any("nothing" in route or method == "BREW" for method, route, _ in requests)
    tokens = {
        (it["model"], it["key"], it["kind"]): n for it, n in found["isthmus_request_tokens_total"]
    }
    assert tokens["served", "ada", "answer"] == 10
    assert tokens["served", "ada", "cached"] > 0
    for name in ("time_to_first_token", "time_between_tokens"):
        ((labels, n),) = found[f"isthmus_{name}_seconds_count"]
        assert (labels["model"], n) == ("served", 2)
    assert {it["model"] for it, _ in found["isthmus_batch_size_count"]} == {"served"}
    assert found["process_resident_memory_bytes"][0][1] > 0
    assert found["isthmus_build_info"][0][0]["version"]
    assert found["isthmus_kernel_seconds_total"][0][1] > 0


def test_the_names_are_prometheus_own_way(measured: Serving) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("there is no promtool here: apt install prometheus")
    text = measured.client.get("/metrics").text
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


def test_what_the_dashboard_asks_for_is_there(measured: Serving) -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(asked) >= 10
    found = series(measured)
    labels = {name: {key for it, _ in rows for key in it} for name, rows in found.items()}
    for expression in asked:
        names = re.findall(r"\b(?:isthmus|process)_\w+", expression)
        assert names, expression
        for name in names:
            assert name in found, f"{expression}: there is no {name}"
        by = [it for group in re.findall(r"by \(([^)]*)\)", expression) for it in group.split(",")]
        for label in by:
            assert any(label.strip() in labels[name] for name in names), expression


def test_probes_are_not_in_the_log(tiny_q8: Path, tmp_path: Path) -> None:
    serving = Serving(tmp_path / "data", "--model", f"tiny={tiny_q8}", "--n-ctx", "256")
    for path in ("/metrics", "/healthz", "/readyz", "/v1/models"):
        serving.client.get(path)
    assert serving.stop() == 0
    lines = (tmp_path / "data.log").read_text().splitlines()
    asked = [line for line in lines if " GET " in line]
    assert len(asked) == 1
    assert re.match(r"20\d\d-\d\d-\d\dT[\d:.]+\+00:00 isthmus.server: GET /v1/models 200", asked[0])


def test_readiness_ends_before_the_server_does(tiny_q8: Path, tmp_path: Path) -> None:
    config = tmp_path / "server.toml"
    config.write_text('drain_s = "1h"\n')
    options = ("--model", f"tiny={tiny_q8}", "--n-ctx", "256", "--config", str(config))
    serving = Serving(tmp_path / "data", *options)
    assert serving.get("/readyz") == {"status": "ready"}
    serving.process.send_signal(signal.SIGTERM)
    assert eventually(lambda: serving.client.get("/readyz").status_code == 503)
    assert serving.client.get("/v1/models").status_code == 200  # it goes on to answer
    serving.process.send_signal(signal.SIGINT)
    assert serving.process.wait(60) == 0
    serving.client.close()


def test_a_port_in_use_is_said_once(measured: Serving, tmp_path: Path) -> None:
    port = measured.url.rpartition(":")[2]
    log = tmp_path / "log"
    command = ["--port", port, "--data", str(tmp_path / "data"), "--device", "null"]
    with log.open("w") as file:
        done = subprocess.run(
            [*measured.process.args[:4], *command, *measured.options[:2]],  # type: ignore[index]
            stderr=file,
            check=False,
        )
    assert done.returncode == 2
    said = [line for line in log.read_text().splitlines() if "in use" in line]
    assert len(said) == 1
