"""What becomes of a turn: stopped, gone on with, made again with other options; renamed agents."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from isthmus.server.http.key import KeyLimits
from isthmus.server.keys.keys import new_key
from tests.server.conftest import Serving
from tests.server.page_support import ENDLESS
from tests.server.test_agents import new_agent, tell


@pytest.fixture(scope="module")
def long_server(tiny_long: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """Its answers have no end before they are stopped."""
    data = tmp_path_factory.mktemp("data")
    serving = Serving(data, "--model", f"tiny={tiny_long}", "--n-ctx", "65536")
    yield serving
    assert serving.stop() == 0


def events(serving: Serving, id_: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a message; its answer is stopped after the first."""
    found = []
    path = f"/v1/agents/{id_}/messages"
    with serving.client.stream("POST", path, json={**body, "stream": True}) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: "):
                found.append(json.loads(line[6:]))
                if len(found) == 1:
                    told = httpx.post(f"{serving.url}/v1/agents/{id_}/stop", timeout=60)
                    assert told.json() == {"id": id_, "stopped": True}
    return found


def test_a_stopped_answer_is_a_turn(long_server: Serving) -> None:
    id_ = new_agent(long_server, args=ENDLESS)
    found = events(long_server, id_, {"input": "hello"})
    said = "".join(it.get("text", "") for it in found)
    assert (found[-1]["ended"], found[-1]["output"]) == ("stopped", said)
    assert said
    turn = long_server.get(f"/v1/agents/{id_}")["turns"][0]
    assert (turn["output"], turn["ended"]) == (said, "stopped")
    assert 0 < turn["n_decoded"] < 59000
    brief = long_server.post(
        f"/v1/agents/{id_}/fork", {"args": {"max_tokens": "5", "grammar": None}}
    )["id"]
    assert tell(long_server, brief, "more")["position"] == 2
    assert not long_server.post(f"/v1/agents/{id_}/stop")["stopped"]
    assert long_server.client.post("/v1/agents/abcdefghijkl/stop").status_code == 404


def test_an_answer_that_was_cut_goes_on(tiny_server: Serving) -> None:
    one = new_agent(tiny_server, seed=7, args={"max_tokens": "24"})
    two = new_agent(tiny_server, seed=7, args={"max_tokens": "12"})
    whole, first = tell(tiny_server, one, "hello"), tell(tiny_server, two, "hello")
    assert (first["ended"], whole["ended"]) == ("max_tokens", "max_tokens")
    rest = tell(tiny_server, two, "")
    assert first["output"] + rest["output"] == whole["output"]
    further = tell(tiny_server, one, "and?")["output"]
    assert further.startswith(tell(tiny_server, two, "and?")["output"].rstrip("\ufffd"))


def test_an_answer_that_fills_the_context_is_kept(tiny_server: Serving) -> None:
    id_ = new_agent(tiny_server, args={**ENDLESS, "n_ctx": "64"})
    told = tell(tiny_server, id_, "hello")
    assert told["ended"] == "n_ctx"
    assert told["output"]
    more = tiny_server.client.post(f"/v1/agents/{id_}/messages", json={"input": "more"})
    assert (more.status_code, more.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert tiny_server.get(f"/v1/agents/{id_}")["position"] == 1


def test_a_fork_with_other_options(tiny_server: Serving) -> None:
    id_ = new_agent(tiny_server, seed=2, args={"max_tokens": "8", "system": "Be brief."})
    tell(tiny_server, id_, "hello")
    again = tell(tiny_server, id_, "on")["output"]

    def forked(args: dict[str, Any]) -> tuple[dict[str, Any], str]:
        fork = tiny_server.post(f"/v1/agents/{id_}/fork", {"position": 1, "args": args})
        return fork, tell(tiny_server, fork["id"], "on")["output"]

    assert forked({})[1] == again
    other, said = forked({"seed": "99", "max_tokens": "5"})
    assert said != again
    assert other["args"]["seed"] == "99"
    formed, said = forked({"regex": "[0-9]{4}", "system": None})
    assert (len(said), said.isdigit(), "system" in formed["args"]) == (4, True, False)
    assert tiny_server.get(f"/v1/agents/{id_}/memory")["sessions"][0]["n_tokens"] > 0
    told = tiny_server.get(f"/v1/agents/{formed['id']}/inspect")["sessions"][0]["text"]
    assert "Be brief." not in told
    longer, _ = forked({"system": "Be wordy, and polite."})
    told = tiny_server.get(f"/v1/agents/{longer['id']}/inspect")["sessions"][0]["text"]
    assert ("Be wordy" in told, "Be brief" in told) == (True, False)
    wrong = tiny_server.post(f"/v1/agents/{id_}/fork", {"args": {"top_k": "many"}})["id"]
    refused = tiny_server.client.post(f"/v1/agents/{wrong}/messages", json={"input": "on"})
    assert (refused.status_code, "top_k" in refused.text) == (422, True)


def test_a_fork_with_another_model(tiny_q8: Path, tmp_path: Path) -> None:
    from tests.tiny_gguf import TinyLlama

    other = TinyLlama(with_tokenizer=True, quantisation="Q8_0", seed=5).write(tmp_path / "b.gguf")
    models = ("--model", f"a={tiny_q8}", "--model", f"b={other}", "--n-ctx", "512")
    serving = Serving(tmp_path / "data", *models)
    try:
        id_ = new_agent(serving, model="a")
        tell(serving, id_, "hello")
        fork = serving.post(f"/v1/agents/{id_}/fork", {"model": "b"})
        assert fork["models"] == {"default": "b"}
        assert tell(serving, fork["id"], "on")["position"] == 2
        told = serving.client.post(f"/v1/agents/{id_}/fork", json={"model": "c"})
        assert told.status_code == 404
    finally:
        assert serving.stop() == 0


def test_a_name_is_changed_and_kept(tiny_server: Serving) -> None:
    id_ = new_agent(tiny_server, name="Ada")
    tell(tiny_server, id_, "hello")
    path = f"/v1/agents/{id_}"
    renamed = tiny_server.client.patch(path, json={"name": "Grace"}).json()
    assert (renamed["name"], renamed["position"], len(renamed["turns"])) == ("Grace", 1, 1)
    assert tell(tiny_server, id_, "on")["position"] == 2
    assert tiny_server.get(path)["name"] == "Grace"
    for wrong in ({"name": "x" * 201}, {"title": "x"}, {}):
        assert tiny_server.client.patch(path, json=wrong).status_code == 400


def test_what_an_agent_logged(tiny_server: Serving) -> None:
    import wasmtime

    wasm = wasmtime.wat2wasm("""(module
      (import "isthmus" "log" (func $log (param i32 i32 i32) (result i32)))
      (memory (export "memory") 1) (data (i32.const 8) "moin")
      (func (export "on_message") (param i32) (result i32)
        (call $log (i32.const 2) (i32.const 8) (i32.const 4))))""")
    digest = tiny_server.client.post("/v1/guests", content=bytes(wasm)).json()["id"]
    one, two = (new_agent(tiny_server, guest=digest) for _ in range(2))
    for _ in range(120):  # the last hundred are kept
        tell(tiny_server, one, "hey")
    found = tiny_server.get(f"/v1/agents/{one}/log")
    assert (found["id"], len(found["lines"])) == (one, 100)
    assert found["lines"][-1]["text"] == "moin"
    assert found["lines"][-1]["level"] in ("debug", "info", "warning", "error")
    assert tiny_server.get(f"/v1/agents/{two}/log")["lines"] == []
    assert tiny_server.client.get("/v1/agents/abcdefghijkl/log").status_code == 404


def test_a_memory_is_compared_with_another(tiny_server: Serving) -> None:
    one = new_agent(tiny_server, args={"max_tokens": "4"})
    tell(tiny_server, one, "hello")
    two = tiny_server.post(f"/v1/agents/{one}/fork")["id"]

    def differs(query: str) -> list[list[int]]:
        found: list[list[int]] = tiny_server.get(f"/v1/agents/{one}/memory?{query}")["changed"]
        return found

    assert differs(f"other={two}") == []
    tell(tiny_server, two, "on")
    assert differs(f"other={two}")
    assert differs(f"other={two}&other_at=1") == []
    assert differs(f"other={one}&other_at=0") == differs("")
    assert tiny_server.client.get(f"/v1/agents/{one}/memory?other=nobody").status_code == 404


def test_activity(long_server: Serving) -> None:
    id_ = new_agent(long_server, name="Ada", args=ENDLESS)
    before = long_server.get("/v1/activity")
    assert before["answering"] == []
    seen: list[dict[str, Any]] = []
    asked = threading.Event()

    def look() -> None:
        asked.wait(60)
        seen.extend(httpx.get(f"{long_server.url}/v1/activity", timeout=60).json()["answering"])
        httpx.post(f"{long_server.url}/v1/agents/{id_}/stop", timeout=60)

    thread = threading.Thread(target=look)
    thread.start()
    path, body = f"/v1/agents/{id_}/messages", {"input": "hello", "stream": True}
    with long_server.client.stream("POST", path, json=body) as stream:
        for _ in stream.iter_lines():
            asked.set()
    thread.join()
    assert [(it["id"], it["name"]) for it in seen] == [(id_, "Ada")]
    assert seen[0]["n_pieces"] > 0
    after = long_server.get("/v1/activity")["totals"]
    assert after["tokens_decoded"] > before["totals"]["tokens_decoded"]
    assert after["tokens_in_steps"] >= after["steps"] > 0
    assert after["resident_nbytes"] > 1 << 20


@pytest.mark.parametrize("counts", [False, True])
def test_totals_are_for_keys_that_may_read_metrics(
    tiny_q8: Path, tmp_path: Path, counts: bool
) -> None:
    limits = KeyLimits.parse(["rpm=1", *(["metrics=1"] if counts else [])])
    key = new_key(tmp_path / "keys", "ada", limits)
    options = ("--model", f"tiny={tiny_q8}", "--keys", str(tmp_path / "keys"))
    serving = Serving(tmp_path / "data", *options)
    serving.client.headers["Authorization"] = f"Bearer {key}"
    try:
        for _ in range(3):  # more than it may ask of anything else
            assert (serving.get("/v1/activity")["totals"] is not None) == counts
    finally:
        assert serving.stop() == 0
