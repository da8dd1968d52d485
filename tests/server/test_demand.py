"""A server with more models than it has memory for: routes, agents, streams, `kill -9`."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest

from isthmus.server.http.key import KeyLimits
from isthmus.server.keys.keys import new_key
from isthmus.units import MIB
from tests.patience import eventually
from tests.server.conftest import Serving
from tests.server.test_agents import new_agent, tell
from tests.tiny_gguf import TinyLlama

N_CLIENTS = 8
HELLO = [{"role": "user", "content": "hello"}]
N_CTX = 1024
ONE = ("--models-nbytes", str(2 * MIB), "--n-ctx", str(N_CTX))
"""Room for one model of the folder."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    for seed, name in enumerate("ab"):
        TinyLlama(with_tokenizer=True, n_vocab=4096, seed=seed).write(path / f"{name}.gguf")
    return path


@pytest.fixture(scope="module")
def serving(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    options = ("--models", str(folder), "--alias", "gpt-4o=a", *ONE)
    serving = Serving(tmp_path_factory.mktemp("data"), *options)
    yield serving
    assert serving.stop() == 0


def chat(serving: Serving, model: str, n: int = 6, **more: Any) -> httpx.Response:
    body = {"model": model, "messages": HELLO, "max_tokens": n, "temperature": 0, **more}
    return serving.client.post("/v1/chat/completions", json=body)


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def states(serving: Serving) -> dict[str, str]:
    return {it["id"]: it["status"]["value"] for it in serving.get("/v1/models")["data"]}


def count(serving: Serving, name: str) -> float:
    text = serving.client.get("/metrics").text
    found = re.search(rf"^isthmus_{name} (\S+)$", text, re.MULTILINE)
    assert found is not None, name
    return float(found[1])


def log_of(serving: Serving) -> str:
    return (serving.data.parent / f"{serving.data.name}.log").read_text()


# ------------------------------------------------------------------ must be shown


def test_two_models_for_which_there_is_no_room_together_in_turn_by_eight(serving: Serving) -> None:
    expected = {it: text_of(chat(serving, it)) for it in "ab"}
    assert expected["a"] != expected["b"]
    failed: list[str] = []

    def client(n: int) -> None:
        with httpx.Client(base_url=serving.url, timeout=120) as http:
            for turn in range(4):
                model = "ab"[(n + turn) % 2]
                body = {"model": model, "messages": HELLO, "max_tokens": 6, "temperature": 0}
                answer = http.post("/v1/chat/completions", json=body)
                if answer.status_code != 200 or text_of(answer) != expected[model]:
                    failed.append(answer.text)

    loads = count(serving, "model_loads_total")
    threads = [threading.Thread(target=client, args=(n,)) for n in range(N_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    loads = count(serving, "model_loads_total") - loads
    assert 1 <= loads <= 8 * 4
    assert count(serving, "models_bytes") <= 2 * MIB
    assert count(serving, "models_loaded") == 1
    told = re.findall(r"loaded ([ab]) in (\d+\.\d\d) s: 1\.\d MiB of weights", log_of(serving))
    assert len(told) >= loads
    assert re.search(r"unloaded [ab] in \d+\.\d\d s \(memory\)", log_of(serving))


def test_an_agent_of_a_model_that_left_goes_on_with_the_same_bytes(serving: Serving) -> None:
    first, second = (new_agent(serving, model="a", seed=7) for _ in range(2))
    expected = [tell(serving, first, it)["output"] for it in ("one", "two")]
    assert tell(serving, second, "one")["output"] == expected[0]
    text_of(chat(serving, "b"))
    assert states(serving) == {"a": "unloaded", "b": "loaded"}
    assert tell(serving, second, "two")["output"] == expected[1]
    for id_ in (first, second):
        serving.client.delete(f"/v1/agents/{id_}")


@pytest.mark.long
def test_agents_of_a_model_that_left_go_on_with_the_same_bytes_also_after_kill_9(
    folder: Path, tmp_path: Path
) -> None:
    models = [f for it in "ab" for f in ("--model", f"{it}={folder / it}.gguf")]
    texts = ["one", "two", "three", "four"]
    agent = {"args": {"max_tokens": "8", "n_ctx": str(N_CTX)}, "seed": 7}
    calm = Serving(tmp_path / "calm", *models, "--n-ctx", str(N_CTX))
    expected = {}
    for model in "ab":
        id_ = new_agent(calm, model=model, **agent)
        expected[model] = [tell(calm, id_, it)["output"] for it in texts]
    assert calm.stop() == 0
    assert expected["a"] != expected["b"]

    scarce = Serving(tmp_path / "scarce", "--models", str(folder), *ONE)
    ids = {it: new_agent(scarce, model=it, **agent) for it in "ab"}
    stored = scarce.post("/v1/responses", {"model": "a", "input": "hello", "max_output_tokens": 5})
    for n, text in enumerate(texts):
        for model, id_ in ids.items():
            assert tell(scarce, id_, text)["output"] == expected[model][n]
        if n == 1:
            scarce.kill()
            scarce.start()
    on = {"model": "b", "input": "on", "previous_response_id": stored["id"]}
    assert scarce.post("/v1/responses", {**on, "max_output_tokens": 5})["status"] in (
        "completed",
        "incomplete",
    )
    assert count(scarce, "model_unloads_total") >= 3
    assert scarce.stop() == 0


def test_neither_a_stream_nor_who_asks_for_another_model_is_cut_off(serving: Serving) -> None:
    body = {"model": "a", "messages": HELLO, "max_tokens": 200, "ignore_eos": True, "stream": True}
    whole = text_of(chat(serving, "a", 200, ignore_eos=True))
    told: list[str] = []

    def other() -> None:
        with httpx.Client(base_url=serving.url, timeout=120) as http:
            asked = {"model": "b", "messages": HELLO, "max_tokens": 4}
            told.append(text_of(http.post("/v1/chat/completions", json=asked)))

    thread, pieces = threading.Thread(target=other), []
    sent = {**body, "temperature": 0}
    with serving.client.stream("POST", "/v1/chat/completions", json=sent) as lines:
        for line in lines.iter_lines():
            if line.startswith("data: {"):
                pieces.append(json.loads(line[6:])["choices"][0]["delta"].get("content", ""))
                if len(pieces) == 5:
                    thread.start()
    assert "".join(pieces) == whole
    thread.join()
    assert len(told) == 1


# ------------------------------------------------------------------ routes


def test_states_are_told_and_changed(serving: Serving) -> None:
    for prefix in ("/v1/models", "/models"):
        done = serving.post(f"{prefix}/load", {"model": "a"})
        assert done == {"success": True, "model": "a", "status": {"value": "loaded"}}
        assert serving.get(prefix)["data"][0]["status"] == {"value": "loaded"}
        assert states(serving) == {"a": "loaded", "b": "unloaded"}
        assert serving.post(f"{prefix}/unload", {"model": "gpt-4o"})["success"]
        assert states(serving) == {"a": "unloaded", "b": "unloaded"}
        assert serving.post(f"{prefix}/unload", {"model": "a"})["success"]  # it is gone already
        missing = serving.client.post(f"{prefix}/load", json={"model": "c"})
        assert missing.status_code == 404
        assert "this server has a, b" in missing.json()["error"]["message"]
        assert serving.client.post(f"{prefix}/load", json={"model": 1}).status_code == 400
    card = serving.get("/v1/models/a")
    assert (card["n_ctx"], card["makes_text"], card["aliases"]) == (N_CTX, True, ["gpt-4o"])
    assert card["nbytes"] == pytest.approx(1.33 * MIB, rel=0.05)
    assert serving.get("/v1/models/gpt-4o")["status"] == {"value": "unloaded"}
    assert states(serving)["a"] == "unloaded"  # nobody had to load it for that


def test_an_alias_is_the_model(serving: Serving) -> None:
    assert text_of(chat(serving, "gpt-4o")) == text_of(chat(serving, "a"))
    url = f"/v1/agents/{new_agent(serving, model='gpt-4o')}"
    assert serving.get(url)["models"] == {"default": "a"}
    serving.client.delete(url)


def test_ollamas_clients_load_and_unload(serving: Serving) -> None:
    serving.post("/v1/models/unload", {"model": "a"})
    listed_at = datetime.now(timezone.utc).isoformat()
    for path in ("/api/chat", "/api/generate"):
        told = serving.post(path, {"model": "b:latest", "keep_alive": "10m"})
        assert (told["done"], told["done_reason"]) == (True, "load")
        [running] = serving.get("/api/ps")["models"]
        assert (running["name"], running["context_length"]) == ("b", N_CTX)
        assert running["size"] > MIB
        assert running["expires_at"] > listed_at
        told = serving.post(path, {"model": "b", "keep_alive": 0})
        assert (told["done"], told["done_reason"]) == (True, "unload")
        assert serving.get("/api/ps")["models"] == []
    body = {"model": "b", "messages": HELLO, "stream": False, "options": {"num_predict": 3}}
    told = serving.post("/api/chat", {**body, "keep_alive": "0s"})
    assert told["load_duration"] > 0
    assert eventually(lambda: serving.get("/api/ps")["models"] == [])
    bad = serving.client.post("/api/chat", json={**body, "keep_alive": "soon"})
    assert (bad.status_code, "keep_alive" in bad.json()["error"]) == (400, True)


def test_models_that_are_not_loaded_are_described(serving: Serving) -> None:
    serving.post("/v1/models/unload", {"model": "a"})
    serving.post("/v1/models/unload", {"model": "b"})
    listed = serving.get("/api/tags")["models"]
    assert [it["name"] for it in listed] == ["a", "b"]
    assert len({it["digest"] for it in listed}) == 2
    shown = serving.post("/api/show", {"model": "a"})
    assert "<|im_start|>" in shown["template"]
    assert shown["capabilities"] == ["completion"]
    heads = {"anthropic-version": "2023-06-01"}
    page = serving.client.get("/v1/models", headers=heads).json()
    assert [it["max_tokens"] for it in page["data"]] == [N_CTX, N_CTX]
    assert set(states(serving).values()) == {"unloaded"}


# ------------------------------------------------------------------ keys and pulls


def test_keys_that_may_not_say_which_models_come_and_go(folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    made = {"ada": new_key(keys, "ada", KeyLimits(models=1)), "eve": new_key(keys, "eve")}
    heads = {name: {"Authorization": f"Bearer {key}"} for name, key in made.items()}
    serving = Serving(tmp_path / "data", "--models", str(folder), "--keys", str(keys), *ONE)

    def post(who: str, path: str, **body: Any) -> int:
        return serving.client.post(path, json=body, headers=heads[who]).status_code

    for path in ("/v1/models/load", "/models/unload", "/v1/models/pull", "/api/pull"):
        assert post("eve", path, model="a") == 403
    assert post("eve", "/api/chat", model="a", keep_alive=0) == 403
    asked = {"model": "a", "messages": HELLO, "keep_alive": 0, "options": {"num_predict": 2}}
    assert post("eve", "/api/chat", **asked) == 200  # its keep_alive has no effect
    assert len(serving.client.get("/api/ps", headers=heads["eve"]).json()["models"]) == 1
    assert post("ada", "/v1/models/unload", model="a") == 200
    assert post("ada", "/v1/models/pull", model="other") == 404
    assert serving.stop() == 0


@pytest.mark.long
def test_files_that_are_none_and_pulls_without_a_network_are_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/")
    models = tmp_path / "models"
    models.mkdir()
    (models / "bad.gguf").write_bytes(b"GGUF and so on")
    (models / "a.gguf").write_bytes((folder / "a.gguf").read_bytes())
    serving = Serving(tmp_path / "data", "--models", str(models))
    lines = serving.client.post("/api/pull", json={"model": "smollm2"}).text.splitlines()
    assert "pulling" in json.loads(lines[0])["status"]
    assert "Check the network" in json.loads(lines[-1])["error"]
    assert serving.client.post("/api/pull", json={"model": "http://x/y"}).status_code == 404
    cards = {it["id"]: it for it in serving.get("/v1/models")["data"]}
    assert list(cards) == ["a", "bad"]
    assert cards["bad"]["status"]["failed"]
    for _ in range(2):
        failed = chat(serving, "bad")
        assert failed.status_code == 500
        assert failed.json()["error"]["code"] == "model_failed"
        assert str(tmp_path) not in failed.text
    assert text_of(chat(serving, "a"))
    assert serving.stop() == 0
