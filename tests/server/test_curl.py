"""What people type: `curl` with bodies as they would write them, on a server of one model."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from tests.server.conftest import Serving

GREEDY = {"model": "tiny", "prompt": "hello", "temperature": 0, "max_tokens": 24}


def curl(server: Serving, path: str, body: object = None, *options: str) -> tuple[int, Any]:
    """The status, and the body as JSON, or as text if it is none."""
    data = [] if body is None else ["-d", body if isinstance(body, str) else json.dumps(body)]
    command = ["curl", "-sS", "-w", "\n%{http_code}", *options, f"{server.url}{path}", *data]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    text, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(text) if text.startswith("{") else text


def complete(server: Serving, **body: object) -> dict[str, Any]:
    status, told = curl(server, "/v1/completions", {**GREEDY, **body})
    assert status == 200, told
    return dict(told["choices"][0])


def test_an_answer_that_fills_a_small_context(tiny_server: Serving) -> None:
    args = {"n_ctx": 256, "max_tokens": 5000, "regex": "[a-z ]{4000}"}
    _, agent = curl(tiny_server, "/v1/agents", {"args": args})
    path = f"/v1/agents/{agent['id']}"
    _, text = curl(tiny_server, f"{path}/messages", {"input": "Go on.", "stream": True}, "-N")
    events = [json.loads(it[6:]) for it in text.splitlines() if it.startswith("data: ")]
    said = "".join(it.get("text", "") for it in events)
    assert (events[-1]["ended"], events[-1]["output"]) == ("n_ctx", said)
    assert len(said) > 100
    _, kept = curl(tiny_server, path)
    assert [(it["input"], it["output"]) for it in kept["turns"]] == [("Go on.", said)]


def test_parameters_are_heeded_or_refused(tiny_server: Serving) -> None:
    plain = complete(tiny_server)
    assert complete(tiny_server, top_p=0, temperature=1)["text"]
    assert complete(tiny_server, echo=True)["text"] == "hello" + plain["text"]
    for name in ("frequency_penalty", "presence_penalty"):
        assert complete(tiny_server, **{name: 2})["text"] != plain["text"]
    status, told = curl(tiny_server, "/v1/completions", {**GREEDY, "suffix": "world"})
    assert (status, told["error"]["param"]) == (400, "suffix")
    assert "gap" in told["error"]["message"]
    _, told = curl(tiny_server, "/v1/completions", {"prompt": "hello"})
    assert told["error"]["message"] == "Missing required parameter: 'model'."
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    for effort, expected in (("low", 200), ("plenty", 400)):
        body = {**chat, "reasoning_effort": effort}
        assert curl(tiny_server, "/v1/chat/completions", body)[0] == expected


def test_an_agent_from_its_making_to_its_end(tiny_server: Serving) -> None:
    args = {"n_ctx": 512, "temperature": 0.5, "max_tokens": 8, "system": "Be brief."}
    status, agent = curl(tiny_server, "/v1/agents", {"name": "Ada", "args": args})
    assert (status, agent["args"]["n_ctx"], agent["args"]["temperature"]) == (201, "512", "0.5")
    path = f"/v1/agents/{agent['id']}"
    assert curl(tiny_server, f"{path}/messages", {"input": "hello"})[1]["position"] == 1
    _, seen = curl(tiny_server, f"{path}/inspect")
    assert (seen["sessions"][0]["n_ctx"], "Be brief." in seen["sessions"][0]["text"]) == (512, True)
    body = {"args": {"max_tokens": 4, "system": None, "json_schema": {"enum": [True, 7]}}}
    _, fork = curl(tiny_server, f"{path}/fork", body)
    assert fork["args"]["json_schema"] == '{"enum": [true, 7]}'
    assert "system" not in fork["args"]
    _, told = curl(tiny_server, f"/v1/agents/{fork['id']}/messages", {"input": "and?"})
    assert told["output"] in ("true", "7")
    assert curl(tiny_server, path, {"name": "Ada L."}, "-X", "PATCH")[1]["name"] == "Ada L."
    assert curl(tiny_server, path, None, "-X", "DELETE")[1]["deleted"] is True
    for wrong in ('{"n_ctx": 1e999}', '["n_ctx"]', '{"n_ctx": ' + "[" * 2000 + "]" * 2000 + "}"):
        status, told = curl(tiny_server, "/v1/agents", f'{{"args": {wrong}}}')
        assert (status, "\n" in told["error"]["message"]) == (400, False)
