"""Durable agents: what was acknowledged is there, what was not has not happened."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from isthmus import Runtime
from tests.server.conftest import Serving
from tests.tiny_gguf import TinyLlama

N_AGENTS = 4
N_MESSAGES = 6


def new_agent(serving: Serving, seed: int = 1, **how: Any) -> str:
    given = {"guest": "chat", "seed": seed, "args": {"max_tokens": "12"}, **how}
    return str(serving.post("/v1/agents", given)["id"])


def tell(serving: Serving, id_: str, text: str, **how: Any) -> dict[str, Any]:
    return serving.post(f"/v1/agents/{id_}/messages", {"input": text, **how})


def test_a_life(tiny_server: Serving, tmp_path: Path, tiny_q8: Path) -> None:
    serving = tiny_server
    id_ = new_agent(serving, name="Ada")
    first = tell(serving, id_, "hello")
    assert (first["position"], first["agent"]) == (1, id_)
    second = tell(serving, id_, "again", previous=1)
    assert second["position"] == 2
    agent = serving.get(f"/v1/agents/{id_}")
    assert [turn["input"] for turn in agent["turns"]] == ["hello", "again"]
    assert [turn["output"] for turn in agent["turns"]] == [first["output"], second["output"]]
    wrong = serving.client.post(f"/v1/agents/{id_}/messages", json={"input": "x", "previous": 1})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (409, "position")

    fork = serving.post(f"/v1/agents/{id_}/fork", {"position": 1})
    assert (fork["position"], fork["origin"]) == (1, {"id": id_, "position": 1})
    assert tell(serving, fork["id"], "again")["output"] == second["output"]

    assert serving.get(f"/v1/agents/{id_}/diff?other={fork['id']}")["same"] in (True, False)
    assert not serving.get(f"/v1/agents/{id_}/diff?at=1&other_at=2")["same"]
    assert serving.get(f"/v1/agents/{id_}/inspect")["n_messages"] == 2
    memory = serving.get(f"/v1/agents/{id_}/memory")
    assert memory["changed"]
    assert memory["shared"]
    assert memory["sessions"][0]["n_tokens"] > 0
    assert memory["stack"] == [0, 65536]
    assert memory["data"][0] == 65536

    file = tmp_path / "ada.safetensors"
    file.write_bytes(serving.client.get(f"/v1/agents/{id_}/snapshot?at=1").content)
    with Runtime(device="cpu") as runtime:
        model = runtime.load_model(tiny_q8)
        with runtime.restore(file, models={"default": model}) as actor:
            assert actor.send("again").text == second["output"]

    early = serving.post(f"/v1/agents/{fork['id']}/fork", {"position": 0})
    assert (early["position"], early["origin"]["id"], early["turns"]) == (0, id_, [])

    assert id_ in {it["id"] for it in serving.get("/v1/agents")["data"]}
    assert serving.client.delete(f"/v1/agents/{id_}").json()["deleted"]
    assert serving.client.get(f"/v1/agents/{id_}").status_code == 404
    assert serving.get(f"/v1/agents/{fork['id']}/memory?at=1")["used"]
    assert tell(serving, fork["id"], "on")["position"] == 3
    assert serving.get(f"/v1/agents/{fork['id']}/memory")["changed"]
    refused = serving.client.post(f"/v1/agents/{fork['id']}/fork", json={"position": 0})
    assert (refused.status_code, "positions 1 to 3" in refused.text) == (400, True)


def test_streamed(tiny_server: Serving) -> None:
    one, two = new_agent(tiny_server, seed=3), new_agent(tiny_server, seed=3)
    whole = tell(tiny_server, one, "hello")
    text, done = "", None
    body = {"input": "hello", "stream": True}
    with tiny_server.client.stream("POST", f"/v1/agents/{two}/messages", json=body) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            if line.startswith("data: "):
                data = json.loads(line[6:])
                text += data.get("text", "")
                done = data if "position" in data else done
    assert done is not None
    assert text == done["output"] == whole["output"]


def test_a_message_that_is_left_has_not_happened(tiny_server: Serving) -> None:
    id_, other = (new_agent(tiny_server, 5, args={"max_tokens": "500"}) for _ in range(2))
    body = {"input": "hello", "stream": True}
    with tiny_server.client.stream("POST", f"/v1/agents/{id_}/messages", json=body) as stream:
        next(stream.iter_lines())
    assert tiny_server.get(f"/v1/agents/{id_}")["position"] == 0
    for it in (id_, other):
        assert tell(tiny_server, it, "hi")["position"] == 1
    outputs = {tiny_server.get(f"/v1/agents/{it}")["turns"][0]["output"] for it in (id_, other)}
    assert len(outputs) == 1


def test_a_guest_that_is_brought(tiny_server: Serving) -> None:
    import wasmtime

    text = """(module (import "isthmus" "emit" (func $e (param i32 i32) (result i32)))
      (memory (export "memory") 1) (data (i32.const 8) "moin")
      (func (export "on_message") (param i32) (result i32)
        (if (i32.eq (local.get 0) (i32.const 4)) (then (unreachable)))
        (call $e (i32.const 8) (i32.const 4))))"""
    wasm = bytes(wasmtime.wat2wasm(text))
    digest = tiny_server.client.post("/v1/guests", content=wasm).json()["id"]
    id_ = new_agent(tiny_server, guest=digest)
    assert tell(tiny_server, id_, "hey")["output"] == "moin"
    trapped = tiny_server.client.post(f"/v1/agents/{id_}/messages", json={"input": "four"})
    assert (trapped.status_code, trapped.json()["error"]["type"]) == (422, "guest_error")
    assert tell(tiny_server, id_, "again")["position"] == 2
    assert tiny_server.client.post("/v1/guests", content=b"hello").status_code == 400
    assert digest in {it["id"] for it in tiny_server.get("/v1/guests")["data"]}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/agents", {"guest": "nobody"}),
        ("/v1/agents", {"guest": "../../etc/passwd"}),
        ("/v1/agents", {"model": "nobody"}),
        ("/v1/agents", {"limits": {"weight": -1}}),
        ("/v1/agents", {"limits": {"what": 1}}),
        ("/v1/agents", {"seed": -1}),
        ("/v1/agents", {"colour": "red"}),
        ("/v1/agents/aaaaaaaaaaaa/messages", {"input": "x"}),
        ("/v1/agents/..%2f..%2fx/messages", {"input": "x"}),
    ],
)
def test_what_is_refused(tiny_server: Serving, path: str, body: dict[str, Any]) -> None:
    done = tiny_server.client.post(path, json=body)
    assert 400 <= done.status_code < 500, done.text
    assert done.json()["error"]["message"]


def test_options_are_of_any_json_type(tiny_server: Serving) -> None:
    args = {"n_ctx": 512, "temperature": 0, "max_tokens": 4, "system": "Be brief."}
    agent = tiny_server.post("/v1/agents", {"guest": "chat", "args": args})
    found = tiny_server.get(f"/v1/agents/{agent['id']}")
    assert found["args"] == {
        "n_ctx": "512",
        "temperature": "0",
        "max_tokens": "4",
        "system": "Be brief.",
    }
    tell(tiny_server, str(agent["id"]), "Hello")


def test_a_field_that_is_nearly_one(tiny_server: Serving) -> None:
    done = tiny_server.client.post("/v1/agents", json={"nam": "Ada"})
    assert "there is no field nam here: did you mean name?" in done.text


def test_ordinary_stop_and_start(tiny_q8: Path, tmp_path: Path) -> None:
    serving = Serving(tmp_path, "--model", f"tiny={tiny_q8}", "--live", "1", "--n-ctx", "1024")
    ids = [new_agent(serving, seed=n) for n in range(3)]
    for id_ in ids:
        tell(serving, id_, "one")
    assert serving.stop() == 0
    serving.start()
    assert {it["id"] for it in serving.get("/v1/agents")["data"]} == set(ids)
    for id_ in ids:
        assert tell(serving, id_, "two", previous=1)["position"] == 2
    assert serving.stop() == 0


def told(url: str, id_: str, text: str, position: int) -> int:
    """The agent's position once it was told."""
    with httpx.Client(base_url=url, timeout=60) as client:
        said = client.post(f"/v1/agents/{id_}/messages", json={"input": text, "previous": position})
        if said.status_code == 409:  # it was done, and the answer was lost on its way
            now = client.get(f"/v1/agents/{id_}").json()["position"]
            assert now == position + 1, (now, position)
            return int(now)
        assert said.status_code == 200, said.text
        return int(said.json()["position"])


def disturbed(serving: Serving, ids: list[str], n_kills: int, seed: int) -> None:
    """All agents are sent their messages, each until it is acknowledged, while the server dies."""
    chance = random.Random(seed)
    started = threading.Event()
    started.set()
    done = threading.Event()
    errors: list[BaseException] = []

    def talk(number: int, id_: str) -> None:
        position = 0
        try:
            while position < N_MESSAGES * (1 + n_kills // 10):
                started.wait()
                with contextlib.suppress(httpx.TransportError):
                    position = told(serving.url, id_, f"{number} {position}", position)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=talk, args=it) for it in enumerate(ids)]
    for thread in threads:
        thread.start()
    for _ in range(n_kills):
        time.sleep(chance.uniform(0.0, 0.4))
        started.clear()
        serving.kill()
        serving.start()
        started.set()
    for thread in threads:
        thread.join()
    done.set()
    assert errors == []


def outputs(serving: Serving, ids: list[str]) -> list[list[str]]:
    return [[turn["output"] for turn in serving.get(f"/v1/agents/{it}")["turns"]] for it in ids]


def killed(tiny_q8: Path, folder: Path, n_kills: int) -> None:
    options = ("--model", f"tiny={tiny_q8}", "--n-ctx", "8192" if n_kills > N_MESSAGES else "1024")
    calm = Serving(folder / "calm", *options)
    ids = [new_agent(calm, seed=n) for n in range(N_AGENTS)]
    disturbed(calm, ids, 0, 0)
    n_more = N_MESSAGES * (1 + n_kills // 10)
    for number, id_ in enumerate(ids):
        for position in range(N_MESSAGES, n_more):
            tell(calm, id_, f"{number} {position}", previous=position)
    expected = outputs(calm, ids)
    assert calm.stop() == 0
    restless = Serving(folder / "restless", *options)
    ids = [new_agent(restless, seed=n) for n in range(N_AGENTS)]
    disturbed(restless, ids, n_kills, 7)
    assert outputs(restless, ids) == expected
    names = {path.name for path in (folder / "restless" / "agents").iterdir()}
    assert names == {f"{id_}.json" for id_ in ids}
    assert restless.stop() == 0


def test_kill_9_five_times(tiny_q8: Path, tmp_path: Path) -> None:
    killed(tiny_q8, tmp_path, 5)


@pytest.mark.long
def test_kill_9_a_hundred_times(tmp_path: Path) -> None:
    long = TinyLlama(with_tokenizer=True, quantisation="Q8_0", n_ctx=8192)
    killed(long.write(tmp_path / "long.gguf"), tmp_path, 100)


def test_the_context_is_the_models_where_that_is_shorter(tiny_q8: Path, tmp_path: Path) -> None:
    """Without --n-ctx, whose default is more than this model was trained for."""
    serving = Serving(tmp_path, "--model", f"tiny={tiny_q8}")
    try:
        agent = serving.post("/v1/agents", {"args": {"max_tokens": "4"}})
        assert agent["args"]["n_ctx"] == "1024"
        told = serving.post(f"/v1/agents/{agent['id']}/messages", {"input": "hello"})
        assert told["usage"]["total_tokens"] > 0
    finally:
        assert serving.stop() == 0
