"""The log: one object for each request, and nothing of what was said."""

from __future__ import annotations

import json
import logging
import re
import time
from pathlib import Path
from typing import Any

import pytest

from isthmus.server.http.log import JsonFormatter
from isthmus.server.keys.keys import new_key
from tests.server.conftest import Serving

SECRET = "correct horse battery staple"


def entries(serving: Serving) -> list[dict[str, Any]]:
    log = serving.data.parent / f"{serving.data.name}.log"
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.fixture
def logged(tiny_q8: Path, tmp_path: Path) -> Serving:
    keys = tmp_path / "keys"
    key = new_key(keys, "ada")
    options = ("--model", f"tiny={tiny_q8}", "--n-ctx", "1024", "--keys", str(keys))
    serving = Serving(tmp_path / "data", *options, "--log-format", "json")
    serving.client.headers["Authorization"] = f"Bearer {key}"
    return serving


def test_every_line_is_an_object(logged: Serving) -> None:
    client = logged.client
    body = {"model": "tiny", "prompt": SECRET, "max_tokens": 7}
    usage = client.post("/v1/completions", json=body).json()["usage"]
    agent = logged.post("/v1/agents", {"args": {"max_tokens": "5"}, "seed": 1})["id"]
    logged.post(f"/v1/agents/{agent}/messages", {"input": SECRET})
    client.get(f"/v1/{SECRET}%0Aforged?prompt={SECRET}")
    client.post("/v1/completions", content=f'{{"model": "{SECRET}')
    client.post("/v1/completions", json={**body, "model": SECRET})
    client.get("/v1/models", headers={"Authorization": f"Bearer {SECRET}"})
    with client.stream(
        "POST",
        "/v1/completions",
        json={**body, "stream": True, "max_tokens": 900, "n": 16, "ignore_eos": True},
    ) as it:
        next(it.iter_lines())
    key = client.headers["authorization"].split()[1]
    assert logged.stop() == 0

    found = entries(logged)
    requests = [it for it in found if it["event"] == "request"]
    events = [it["event"] for it in found if it["event"] != "request"]
    assert (events[:2], events[-2:]) == (["model_loaded", "listening"], ["stopping", "stopped"])
    assert found[1]["models"] == ["tiny"]
    completed, made, told, nowhere, malformed, unknown, stranger, left = requests
    assert set(completed) == {
        *("time", "level", "event", "id", "key", "client", "method", "path", "status", "bytes_in"),
        *("bytes_out", "seconds", "tokens_in", "tokens_out", "agent", "model", "error"),
    }
    assert (completed["key"], completed["method"]) == ("ada", "POST")
    assert (completed["path"], completed["status"]) == ("/v1/completions", 200)
    assert completed["tokens_in"] == usage["prompt_tokens"]
    assert completed["tokens_out"] == usage["completion_tokens"]
    assert (completed["model"], completed["agent"], completed["error"]) == ("tiny", None, None)
    assert completed["bytes_out"] > 100
    assert completed["seconds"] > 0
    assert (made["status"], told["agent"]) == (201, agent)
    assert told["tokens_in"] > 5 >= told["tokens_out"] > 0
    assert (nowhere["status"], nowhere["error"]) == (404, "not_found")
    assert "?" not in nowhere["path"]
    assert (malformed["status"], malformed["error"]) == (400, "invalid_json")
    assert (unknown["error"], unknown["model"]) == ("model_not_found", None)
    assert (stranger["status"], stranger["key"]) == (401, None)
    assert (left["status"], left["error"]) == (200, "cancelled"), left
    assert 0 < left["tokens_out"] < 16 * 900
    text = json.dumps([it for it in found if it is not nowhere])
    assert SECRET not in text
    assert key not in text


def test_request_ids(tiny_server: Serving) -> None:
    get = tiny_server.client.get
    given = get("/healthz", headers={"X-Request-ID": "trace-1:2/3"})
    assert given.headers["x-request-id"] == "trace-1:2/3"
    made = [get("/healthz", headers={"X-Request-ID": bad}).headers["x-request-id"]
            for bad in ("", "two words", "x" * 129, 'a"b')]  # fmt: skip
    assert all(it.startswith("req_") for it in made)
    assert len(set(made)) == len(made)
    assert get("/v1/none").headers["x-request-id"].startswith("req_")


def test_a_path_cannot_forge_a_line(tiny_server: Serving) -> None:
    tiny_server.client.get("/v1/models%0aisthmus.server: GET /forged 200")
    log = tiny_server.data.parent / f"{tiny_server.data.name}.log"
    deadline = time.monotonic() + 30  # the line is written after the answer
    while "/v1/models%0aisthmus.server" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "/v1/models%0aisthmus.server" in log.read_text()
    assert not any(
        line.startswith("isthmus.server: GET /forged") for line in log.read_text().splitlines()
    )


def test_other_records_are_objects_too() -> None:
    try:
        raise ValueError("x")
    except ValueError:
        import sys

        record = logging.LogRecord(
            "isthmus", logging.ERROR, "f", 1, "it %s", ("broke",), sys.exc_info()
        )
    said = json.loads(JsonFormatter().format(record))
    assert (said["event"], said["level"], said["message"]) == ("log", "error", "it broke")
    assert said["traceback"].endswith("ValueError: x")
    assert said["time"].endswith("+00:00")


SHOUTS = r"""(module
  (import "wasi_snapshot_preview1" "fd_write"
    (func $w (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "x\0aisthmus.server: GET /forged 200\0d\1b[2Jisthmus.server: forged\0a")
  (data (i32.const 0) "\10\00\00\00\3d\00\00\00")
  (func (export "on_message") (param i32) (result i32)
    (drop (call $w (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8))) (i32.const 0)))"""


def test_a_guest_cannot_forge_a_line_of_the_server(tiny_server: Serving) -> None:
    import wasmtime

    log = tiny_server.data.parent / f"{tiny_server.data.name}.log"
    wasm = wasmtime.wat2wasm(SHOUTS)
    guest = tiny_server.client.post("/v1/guests", content=bytes(wasm)).json()["id"]
    agent = tiny_server.post("/v1/agents", {"guest": guest})["id"]
    tiny_server.post(f"/v1/agents/{agent}/messages", {"input": "x"})
    text = log.read_text()
    (line,) = [it for it in text.splitlines() if "isthmus.guest" in it]
    assert not re.search(r"^(\S+ )?isthmus.server: GET /forged", text, re.MULTILINE)
    said = line.partition(" ")[2]  # after the time
    assert said.startswith(f"isthmus.guest[{agent}]: x\\nisthmus.server: GET /forged")
    assert "\x1b" not in text
    assert "\r" not in text
