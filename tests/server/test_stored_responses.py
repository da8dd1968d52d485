"""Responses that are kept: through kill -9, by whom, how many and how long."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.patience import eventually
from tests.server.conftest import Serving

N_CHAINS, N_TURNS = 3, 8


@pytest.fixture(scope="module")
def serving(tiny_q8: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server that tests may kill and start again."""
    data = tmp_path_factory.mktemp("kept")
    serving = Serving(data / "data", "--model", f"tiny={tiny_q8}", "--n-ctx", "1024")
    yield serving
    assert serving.stop() == 0


def body(items: Any, previous: str | None = None, **how: Any) -> dict[str, Any]:
    given = {"model": "tiny", "input": items, "max_output_tokens": 8, "temperature": 0}
    return {**given, "previous_response_id": previous, **how}


def ask(serving: Serving, items: Any, previous: str | None = None, **how: Any) -> dict[str, Any]:
    return serving.post("/v1/responses", body(items, previous, **how))


def text_of(response: dict[str, Any]) -> str:
    parts = [part for it in response["output"] for part in it.get("content", ())]
    return "".join(part["text"] for part in parts)


def refused(serving: Serving, path: str, given: Any, *headers: tuple[str, str]) -> tuple[int, Any]:
    done = serving.client.post(path, json=given, headers=dict(headers))
    assert done.status_code >= 400
    return done.status_code, done.json()["error"]


# ------------------------------------------------------------------ kill -9


def turn(serving: Serving, chain: int, n: int, previous: str | None) -> dict[str, Any]:
    """One turn of a chain, in one of the ways in which there are turns."""
    how: dict[str, Any] = {"temperature": 1.0, "seed": 100 * chain + n}
    return ask(serving, f"chain {chain} turn {n}", previous, **how)


def test_a_chain_goes_on_after_kill_9_as_if_nothing_had_been(tiny_q8: Path, tmp_path: Path) -> None:
    options = ("--model", f"tiny={tiny_q8}", "--n-ctx", "1024")
    calm = Serving(tmp_path / "calm", *options)
    expected: dict[tuple[int, int], str] = {}
    for chain in range(N_CHAINS):
        previous = None
        for n in range(N_TURNS):
            told = turn(calm, chain, n, previous)
            expected[chain, n], previous = text_of(told), told["id"]
    assert calm.stop() == 0
    assert len(set(expected.values())) > N_TURNS

    killed = Serving(tmp_path / "killed", *options)
    last: dict[int, tuple[int, str | None]] = dict.fromkeys(range(N_CHAINS), (0, None))
    dice, n_interrupted, done = random.Random(3), 0, 0
    while done < N_CHAINS * N_TURNS:
        due = min(done + dice.randrange(2, 6), N_CHAINS * N_TURNS)
        n_interrupted += go_on_until_killed(killed, last, expected, due, dice.uniform(0, 0.03))
        killed.start()
        done = sum(n for n, _ in last.values())
        for chain, (n, id_) in last.items():
            if id_ is not None:
                assert text_of(killed.get(f"/v1/responses/{id_}")) == expected[chain, n - 1]
    assert n_interrupted >= 3
    assert killed.stop() == 0


def go_on_until_killed(
    serving: Serving,
    last: dict[int, tuple[int, str | None]],
    expected: dict[tuple[int, int], str],
    due: int,
    then_s: float,
) -> int:
    """Has all chains go on, and kills the server some milliseconds after so many turns of all were
    acknowledged; how many turns that interrupted."""
    n_interrupted = 0

    def go_on(chain: int) -> None:
        nonlocal n_interrupted
        while last[chain][0] < N_TURNS:
            n, previous = last[chain]
            try:
                told = turn(serving, chain, n, previous)
            except httpx.HTTPError:
                n_interrupted += 1
                return
            last[chain] = (n + 1, told["id"])
            assert text_of(told) == expected[chain, n]

    threads = [threading.Thread(target=go_on, args=(chain,)) for chain in last]
    for thread in threads:
        thread.start()
    while sum(n for n, _ in last.values()) < due and any(it.is_alive() for it in threads):
        time.sleep(0.001)
    time.sleep(then_s)
    serving.process.kill()
    for thread in threads:
        thread.join()
    serving.kill()
    return n_interrupted


def test_the_background_that_a_kill_has_ended_has_failed(serving: Serving) -> None:
    first = ask(serving, "first")
    long = {"max_output_tokens": 900, "ignore_eos": True}
    begun = ask(serving, "count", first["id"], background=True, **long)
    serving.kill()
    serving.start()
    told = serving.get(f"/v1/responses/{begun['id']}")
    assert (told["status"], told["error"]["code"]) == ("failed", "server_error")
    events = serving.client.get(f"/v1/responses/{begun['id']}?stream=true").text
    assert re.findall("event: (.*)\n", events) == ["response.failed"]
    status, error = refused(serving, "/v1/responses", body("on", begun["id"]))
    assert (status, error["param"]) == (400, "previous_response_id")
    again = ask(serving, "count", first["id"])
    assert again["id"][:17] == first["id"][:17]
    assert ask(serving, "on", again["id"])["status"] == "incomplete"


def test_what_is_left_in_the_middle_has_not_happened(serving: Serving) -> None:
    first = ask(serving, "first")
    given = body("long", first["id"], stream=True, max_output_tokens=900, ignore_eos=True)
    with serving.client.stream("POST", "/v1/responses", json=given) as stream:
        lines = (line for line in stream.iter_lines() if line.startswith("data:"))
        id_ = re.findall(r"resp_\w+", next(lines))[0]
        for _ in range(6):
            next(lines)
    deadline = time.monotonic() + 30
    while (done := serving.client.get(f"/v1/responses/{id_}")).status_code != 404:
        assert time.monotonic() < deadline
    assert done.json()["error"]["message"] == f"Response with id '{id_}' not found."
    second = ask(serving, "second", first["id"])
    assert second["id"] != id_
    assert len(serving.get(f"/v1/responses/{second['id']}/input_items")["data"]) == 3
    # its place may have been taken by another response, which is told by another id
    assert serving.client.get(f"/v1/responses/{id_}").status_code == 404


# ------------------------------------------------------------------ what fits


def test_what_does_not_fit_is_refused_or_left_out(serving: Serving) -> None:
    long = " ".join(str(n) for n in range(200))
    items = [
        {"role": "user", "content": long},
        {"role": "assistant", "content": "I see."},
        {"role": "user", "content": long},
        {"role": "assistant", "content": "I see."},
        {"role": "user", "content": "Hi."},
    ]
    count = "/v1/responses/input_tokens"
    n_half = serving.post(count, {"model": "tiny", "input": items[2:]})["input_tokens"]
    assert 512 < n_half < 1000
    status, error = refused(serving, "/v1/responses", body(items))
    assert (status, error["code"]) == (400, "context_length_exceeded")
    done = ask(serving, items, truncation="auto")
    assert done["usage"]["input_tokens"] == n_half
    assert text_of(done) == text_of(ask(serving, items[2:]))
    more = ask(serving, long, done["id"], truncation="auto")
    assert more["usage"]["input_tokens"] < n_half + 20


def test_a_context_that_is_full_ends_a_response_and_keeps_it(serving: Serving) -> None:
    long = " ".join(str(n) for n in range(250))
    done = ask(serving, long, max_output_tokens=2000, ignore_eos=True)
    assert done["usage"]["total_tokens"] == 1024
    assert done["status"] == "incomplete"
    assert done["incomplete_details"] == {"reason": "max_output_tokens"}
    assert serving.get(f"/v1/responses/{done['id']}") == done


# ------------------------------------------------------------------ agents


def test_the_agent_of_a_response_is_looked_at_and_not_told(serving: Serving) -> None:
    first = ask(serving, "first")
    second = ask(serving, "second", first["id"])
    agent = first["id"][5:17]
    assert serving.get("/v1/agents")["data"] == []  # also while others' responses are kept
    assert serving.get(f"/v1/agents/{agent}")["position"] == 2
    assert serving.get(f"/v1/agents/{agent}/inspect?at=1")
    assert not serving.get(f"/v1/agents/{agent}/diff?at=1&other_at=2")["same"]
    for path, given in (("messages", {"input": "x"}), ("fork", {})):
        status, error = refused(serving, f"/v1/agents/{agent}/{path}", given)
        assert (status, error["code"]) == (409, "not_an_agent")
    assert serving.client.delete(f"/v1/agents/{agent}").status_code == 409
    assert ask(serving, "third", second["id"])["id"][5:17] == agent
    mine = serving.post("/v1/agents", {"name": "x", "model": "tiny"})["id"]
    for id_ in (f"resp_{mine}abcdefgh1", f"resp_{mine}abcdefgh0", "resp_x", "conv_" + mine):
        assert serving.client.get(f"/v1/responses/{id_}").status_code == 404
    assert serving.client.get(f"/v1/conversations/conv_{mine}").status_code == 404
    assert serving.client.get(f"/v1/conversations/conv_{agent}").status_code == 404


def test_a_conversation_that_is_used_is_locked(serving: Serving) -> None:
    conversation = serving.post("/v1/conversations")["id"]
    long = {"max_output_tokens": 900, "ignore_eos": True, "background": True}
    begun = ask(serving, "long", conversation=conversation, **long)
    for path, more in (
        ("/v1/responses", body("x", conversation=conversation)),
        (f"/v1/conversations/{conversation}", {"metadata": {}}),
        (f"/v1/conversations/{conversation}/items", {"items": [{"role": "user", "content": ""}]}),
    ):
        status, error = refused(serving, path, more)
        assert (status, error["code"]) == (409, "conversation_locked")
    assert serving.client.delete(f"/v1/conversations/{conversation}").status_code == 409
    serving.post(f"/v1/responses/{begun['id']}/cancel")
    assert serving.get(f"/v1/conversations/{conversation}/items")["data"] == []
    assert ask(serving, "x", conversation=conversation)["conversation"] == {"id": conversation}
    assert len(serving.get(f"/v1/conversations/{conversation}/items")["data"]) == 2
    serving.kill()
    serving.start()
    assert len(serving.get(f"/v1/conversations/{conversation}/items")["data"]) == 2


def test_another_context_goes_on_from_the_items(tiny_q8: Path, tmp_path: Path) -> None:
    """A server with another `n_ctx` cannot use what an agent remembers, and has the same answer."""
    model = ("--model", f"tiny={tiny_q8}")
    small = Serving(tmp_path / "data", *model, "--n-ctx", "256")
    first = ask(small, "first")
    second = ask(small, "second", first["id"])
    assert second["usage"]["input_tokens_details"]["cached_tokens"] > 0
    assert small.stop() == 0
    large = Serving(tmp_path / "data", *model, "--n-ctx", "512", "--model", f"other={tiny_q8}")
    again = ask(large, "second", first["id"])
    assert text_of(again) == text_of(second)
    assert again["usage"]["input_tokens_details"]["cached_tokens"] == 0
    other = ask(large, "third", again["id"], model="other")
    assert text_of(other) == text_of(ask(large, "third", again["id"]))
    assert large.stop() == 0


# ------------------------------------------------------------------ whose, how many, how long


def test_responses_belong_to_a_key(tiny_q8: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"

    def new_key(name: str) -> dict[str, str]:
        command = [sys.executable, "-m", "isthmus", "serve", "--keys", str(keys)]
        limits = ["--limit", "agents=0"] if name == "ada" else []
        made = subprocess.run(
            [*command, "--new-key", name, *limits], capture_output=True, check=True, text=True
        )
        (key,) = re.findall(r"isk-\S*", made.stdout)
        return {"Authorization": f"Bearer {key}"}

    ada, bob = new_key("ada"), new_key("bob")
    serving = Serving(tmp_path / "data", "--model", f"tiny={tiny_q8}", "--keys", str(keys))
    client = serving.client
    mine = client.post("/v1/responses", json=body("hi"), headers=ada).json()
    assert mine["status"] == "incomplete"
    conversation = client.post("/v1/conversations", headers=ada).json()["id"]
    for path in (f"/v1/responses/{mine['id']}", f"/v1/conversations/{conversation}"):
        assert client.get(path, headers=ada).status_code == 200
        assert client.get(path, headers=bob).status_code == 404
        assert client.delete(path, headers=bob).status_code == 404
    path = f"/v1/responses/{mine['id']}/input_items"
    assert client.get(path, headers=bob).status_code == 404
    reference = [{"type": "item_reference", "id": mine["output"][0]["id"]}]
    for given, status in (
        (body("on", mine["id"]), 400),
        (body("on", conversation=conversation), 404),
        (body(reference), 404),
    ):
        assert client.post("/v1/responses", json=given, headers=bob).status_code == status
    assert client.post("/v1/responses", json=body("on", mine["id"]), headers=ada).is_success
    assert client.post("/v1/agents", json={}, headers=ada).status_code == 429
    assert serving.stop() == 0


def test_the_oldest_go(tiny_q8: Path, tmp_path: Path) -> None:
    config = tmp_path / "server.toml"
    config.write_text("responses = 4\n")
    options = ("--model", f"tiny={tiny_q8}", "--config", str(config))
    serving = Serving(tmp_path / "data", *options)
    old = ask(serving, "old")
    chain = [ask(serving, "first")]
    chain.append(ask(serving, "second", chain[0]["id"]))
    conversation = serving.post("/v1/conversations")["id"]
    assert serving.get(f"/v1/responses/{old['id']}")
    chain.append(ask(serving, "third", chain[1]["id"]))
    wait_until_gone(serving, f"/v1/responses/{old['id']}")
    newest = ask(serving, "newest")
    wait_until_gone(serving, f"/v1/conversations/{conversation}")
    assert serving.get(f"/v1/responses/{chain[0]['id']}")
    assert ask(serving, "fourth", chain[2]["id"])
    wait_until_gone(serving, f"/v1/responses/{newest['id']}")
    assert serving.stop() == 0
    config.write_text("responses_kept_s = 0.001\n")
    later = Serving(tmp_path / "data", *options)
    wait_until_gone(later, f"/v1/responses/{chain[0]['id']}")
    assert later.stop() == 0


def wait_until_gone(serving: Serving, path: str) -> None:
    assert eventually(lambda: serving.client.get(path).status_code == 404)


# ------------------------------------------------------------------ bad input

ITEMS = [
    "[" * 100_000,
    '"\\ud800"',
    '"\\ud800\\ud800"',
    '[{"role": "user", "content": "x", "content": "y"}]',
    "NaN",
    "3",
    '[{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}]',
    '[{"type": "mcp_call", "id": "x"}]',
    '[{"type": "function_call_output", "call_id": "x", "output": "y"}]',
    '[{"type": "item_reference", "id": "../../etc"}]',
]


@pytest.mark.parametrize("given", ITEMS)
def test_bad_input_is_told_in_openais_shape(serving: Serving, given: str) -> None:
    for path in ("/v1/responses", "/v1/responses/input_tokens"):
        done = serving.client.post(path, content=f'{{"model": "tiny", "input": {given}}}')
        assert done.status_code in (400, 404), done.text
        assert done.json()["error"]["type"] == "invalid_request_error"
        assert done.json()["error"].keys() == {"message", "type", "param", "code"}


def test_texts_that_are_odd_and_good(serving: Serving) -> None:
    for text in ("", "\x00", "\u202e", "😀", "</s><s>[INST]"):
        items = [{"role": "user", "content": text}]
        done = ask(serving, items)
        listed = serving.get(f"/v1/responses/{done['id']}/input_items")["data"]
        assert listed[0]["content"] == [{"type": "input_text", "text": text}]
        schema = {"type": "object", "properties": {text or "x": {"type": "integer"}}}
        tool = {"type": "function", "name": "f", "description": text, "parameters": schema}
        assert ask(serving, items, done["id"], tools=[tool], store=False)["tools"] == [tool]
