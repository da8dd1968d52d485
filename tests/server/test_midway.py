"""Answers of agents that outlive their connection and their server, told once and whole."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

from tests.patience import eventually
from tests.server.conftest import Serving
from tests.server.listening import LONG, Event, Listener
from tests.server.test_agents import new_agent, tell

BACKGROUND = {"input": "hello", "background": True}


def serving_of(folder: Path, tiny: Path, *options: str) -> Serving:
    models = ("--model", f"tiny={tiny}", "--n-ctx", "2048")
    return Serving(folder, *models, "--save-tokens", "16", *options)


@pytest.fixture(scope="module")
def saving(tiny_long: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    made = serving_of(tmp_path_factory.mktemp("midway") / "data", tiny_long)
    yield made
    assert made.stop() == 0


@pytest.fixture(scope="module")
def expected(saving: Serving) -> str:
    """What an agent of the seed 7 answers, undisturbed."""
    return str(tell(saving, long_agent(saving), "hello")["output"])


def long_agent(serving: Serving, seed: int = 7, **more: Any) -> str:
    return new_agent(serving, seed, args=LONG, **more)


def saved_in(serving: Serving, id_: str) -> bool:
    """Whether the record says that there is a snapshot from the middle of an answer."""
    record = json.loads((serving.data / "agents" / f"{id_}.json").read_text())
    return bool((record.get("midway") or {}).get("saved"))


def listen(serving: Serving, id_: str, last: str) -> httpx.Response:
    path = f"/v1/agents/{id_}/messages"
    return serving.client.get(path, headers={"Last-Event-ID": last})


# ---------------------------------------------------------------------------------- coming back


def test_who_comes_back_while_it_runs_gets_the_rest(saving: Serving, expected: str) -> None:
    listener = Listener(long_agent(saving))
    listener.send(saving.client, BACKGROUND, most=3)
    assert listener.last_id.endswith(f".{len(listener.text)}")
    while listener.done is None:
        listener.come_back(saving.client, most=5)
    assert listener.n_connections > 2
    assert listener.text == listener.done["output"] == expected
    turn = saving.get(f"/v1/agents/{listener.agent}")["turns"][0]
    assert (turn["message"], turn["output"]) == (listener.done["message"], expected)


def test_who_comes_back_after_the_end_gets_the_rest(saving: Serving, expected: str) -> None:
    id_ = long_agent(saving)
    sent = saving.client.post(f"/v1/agents/{id_}/messages", json=BACKGROUND)
    card = sent.json()
    assert (sent.status_code, card["agent"], card["position"]) == (202, id_, 1)
    assert eventually(lambda: saving.get(f"/v1/agents/{id_}")["position"] == 1)
    for heard in (0, 1, len(expected) - 1, len(expected)):
        listener = Listener(id_, last_id=f"{card['message']}.{heard}")
        assert listener.come_back(saving.client) == 200
        assert listener.done is not None
        assert listener.text == expected[heard:]
    again = Listener(id_, last_id=f"{card['message']}.end")
    again.come_back(saving.client)
    assert (again.text, again.done is not None) == ("", True)


def test_a_message_that_is_posted_again_with_an_id_is_not_sent_again(
    saving: Serving, expected: str
) -> None:
    listener = Listener(long_agent(saving))
    listener.send(saving.client, BACKGROUND, most=3)
    path, headers = f"/v1/agents/{listener.agent}/messages", {"Last-Event-ID": listener.last_id}
    with saving.client.stream("POST", path, json=BACKGROUND, headers=headers) as stream:
        listener.hear(stream)
    assert listener.text == expected
    assert saving.get(f"/v1/agents/{listener.agent}")["position"] == 1


def test_an_answer_that_goes_on_can_be_heard_without_an_id(saving: Serving, expected: str) -> None:
    id_ = long_agent(saving)
    saving.post(f"/v1/agents/{id_}/messages", BACKGROUND)
    listener = Listener(id_)
    path = f"/v1/agents/{id_}/messages"
    with saving.client.stream("GET", path) as stream:
        listener.hear(stream)
    assert listener.text == expected
    nothing = saving.client.get(path)
    assert (nothing.status_code, nothing.json()["error"]["code"]) == (404, "not_found")


def test_the_next_message_waits_for_an_answer_in_the_background(
    saving: Serving, expected: str
) -> None:
    id_ = long_agent(saving)
    saving.post(f"/v1/agents/{id_}/messages", BACKGROUND)
    refused = saving.client.post(f"/v1/agents/{id_}/messages", json={"input": "x", "previous": 0})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "position")
    assert saving.get(f"/v1/agents/{id_}")["turns"][0]["output"] == expected


def test_an_answer_in_the_background_can_be_stopped(saving: Serving, expected: str) -> None:
    listener = Listener(long_agent(saving))
    listener.send(saving.client, BACKGROUND, most=2)
    assert saving.post(f"/v1/agents/{listener.agent}/stop")["stopped"]
    listener.come_back(saving.client)
    assert listener.done is not None
    assert listener.done["ended"] == "stopped"
    assert expected.startswith(listener.text)
    assert not saved_in(saving, listener.agent)


def test_an_agent_can_be_deleted_while_it_answers_in_the_background(saving: Serving) -> None:
    agent = new_agent(saving, 7, args={**LONG, "max_tokens": 1900, "regex": "[a-z ]{30000}"})
    listener = Listener(agent)
    listener.send(saving.client, BACKGROUND, most=2)
    saving.client.delete(f"/v1/agents/{agent}").raise_for_status()
    assert saving.client.get(f"/v1/agents/{agent}").status_code == 404
    assert listen(saving, agent, listener.last_id).status_code == 404
    kept = {it.name for it in saving.data.rglob("*") if it.name.startswith(agent)}
    assert not kept


def test_who_leaves_an_answer_of_a_request_ends_it_though_it_was_saved(saving: Serving) -> None:
    listener = Listener(long_agent(saving))
    body = {"input": "hello", "stream": True}
    with saving.client.stream("POST", f"/v1/agents/{listener.agent}/messages", json=body) as it:
        lines = it.iter_lines()
        next(lines)
        assert eventually(lambda: next(lines) is not None and saved_in(saving, listener.agent))
    assert eventually(lambda: not saved_in(saving, listener.agent))
    assert saving.get(f"/v1/agents/{listener.agent}")["position"] == 0
    assert tell(saving, listener.agent, "hi")["position"] == 1


# ---------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("last", "status", "code"),
    [
        ("", 400, "last_event_id"),
        ("7", 400, "last_event_id"),
        ("-1", 400, "last_event_id"),
        ("{message}.-1", 400, "last_event_id"),
        ("{message}.x", 400, "last_event_id"),
        ("{message}.1e3", 400, "last_event_id"),
        ("{message}.99999999999999999999", 400, "last_event_id"),
        ("{message}.{beyond}", 400, "last_event_id"),
        ("maaaaaaaaaaaa.0", 404, "not_found"),
        ("{other}.0", 404, "not_found"),
    ],
)
def test_ids_that_are_none(saving: Serving, last: str, status: int, code: str) -> None:
    id_, other = (new_agent(saving, seed) for seed in (1, 2))
    said = tell(saving, id_, "hello")
    given = last.format(
        message=said["message"],
        other=tell(saving, other, "hello")["message"],
        beyond=len(said["output"]) + 1,
    )
    done = listen(saving, id_, given)
    assert (done.status_code, done.json()["error"]["code"]) == (status, code), done.text
    assert saving.get(f"/v1/agents/{id_}")["position"] == 1


def test_an_id_beyond_the_end_of_an_answer_that_runs(saving: Serving) -> None:
    listener = Listener(long_agent(saving))
    listener.send(saving.client, BACKGROUND, most=2)
    listener.last_id = listener.last_id.partition(".")[0] + ".100000"
    listener.come_back(saving.client)
    assert listener.failures[0]["code"] == "last_event_id"
    assert eventually(lambda: saving.get(f"/v1/agents/{listener.agent}")["position"] == 1)


# ---------------------------------------------------------------------------------- cost


def test_an_answer_that_is_short_writes_nothing_more(saving: Serving) -> None:
    id_ = new_agent(saving, 3, args={"max_tokens": "12"})
    tell(saving, id_, "hello")
    names = [it.name for it in (saving.data / "store" / "snapshots").iterdir() if id_ in it.name]
    assert sorted(names) == [f"{id_}.{n}.safetensors" for n in (0, 1)]


# ---------------------------------------------------------------------------------- kill -9


class Slowly(Serving):
    """On a device that takes 8 ms for each token, so that an answer is under way when it ends."""

    program: ClassVar[tuple[str, ...]] = ("-m", "tests.server.slow_server")


def slowly_of(folder: Path, tiny: Path) -> Serving:
    models = ("--model", f"tiny={tiny}", "--n-ctx", "2048", "--device", "null")
    return Slowly(folder, *models, "--save-tokens", "16", environment={"STEP_MS": "8"})


@pytest.fixture(scope="module")
def slow_text(tiny_long: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What an agent of the seed 7 answers there, undisturbed."""
    serving = slowly_of(tmp_path_factory.mktemp("slowly") / "data", tiny_long)
    said = tell(serving, long_agent(serving), "hello")["output"]
    assert serving.stop() == 0
    return str(said)


def test_kill_9_in_the_middle(tiny_long: Path, tmp_path: Path, slow_text: str) -> None:
    serving = slowly_of(tmp_path / "data", tiny_long)
    listener, unheard = Listener(long_agent(serving)), long_agent(serving)
    serving.post(f"/v1/agents/{unheard}/messages", BACKGROUND)
    listener.send(serving.client, BACKGROUND, most=4)
    assert eventually(lambda: saved_in(serving, listener.agent))
    serving.kill()
    serving.start()
    listener.hear_out(serving)
    assert listener.text == slow_text
    assert eventually(lambda: serving.get(f"/v1/agents/{unheard}")["position"] == 1)
    for id_ in (unheard, listener.agent):
        (turn,) = serving.get(f"/v1/agents/{id_}")["turns"]
        assert (turn["output"], turn["n_decoded"], turn["ended"]) == (slow_text, 200, "max_tokens")
    snapshots = tmp_path / "data" / "store" / "snapshots"
    assert eventually(lambda: not any(".m" in it.name for it in snapshots.iterdir()))
    assert serving.stop() == 0


@pytest.mark.long
def test_a_stream_of_a_request_goes_on_after_kill_9_too(
    tiny_long: Path, tmp_path: Path, slow_text: str
) -> None:
    serving = slowly_of(tmp_path / "data", tiny_long)
    listener = Listener(long_agent(serving))

    def kill_once_saved(_event: Event) -> None:
        if saved_in(serving, listener.agent) and serving.process.poll() is None:
            serving.process.kill()

    with contextlib.suppress(httpx.TransportError):
        listener.send(serving.client, {"input": "hello"}, each=kill_once_saved)
    assert listener.done is None
    serving.kill()
    serving.start()
    listener.hear_out(serving)
    assert listener.text == slow_text
    assert serving.stop() == 0


def test_sigterm_saves_and_the_next_start_goes_on(
    tiny_long: Path, tmp_path: Path, slow_text: str
) -> None:
    serving = slowly_of(tmp_path / "data", tiny_long)
    ids = [long_agent(serving) for _ in range(2)]
    heard = [Listener(it) for it in ids]
    heard[0].send(serving.client, BACKGROUND, most=3)

    def stop_after(event: Event) -> None:
        if len(heard[1].text) > 5 and serving.process.poll() is None:
            serving.process.send_signal(signal.SIGTERM)

    heard[1].send(serving.client, {"input": "hello"}, each=stop_after)
    assert [it["code"] for it in heard[1].failures] == ["stopping"]
    assert serving.stop() == 0
    assert all(saved_in(serving, it) for it in ids)
    serving.start()
    for listener in heard:
        listener.hear_out(serving)
        assert listener.text == slow_text
    assert serving.stop() == 0


@pytest.mark.long
def test_an_answer_that_cannot_go_on_is_told_as_failed(
    tiny_long: Path, tiny_q8: Path, tmp_path: Path, slow_text: str
) -> None:
    """Another model has the name when the server starts again."""
    serving = slowly_of(tmp_path / "data", tiny_long)
    listener = Listener(long_agent(serving))
    listener.send(serving.client, BACKGROUND, most=3)
    assert eventually(lambda: saved_in(serving, listener.agent))
    serving.kill()
    serving.options = tuple(it.replace(str(tiny_long), str(tiny_q8)) for it in serving.options)
    serving.start()
    assert eventually(lambda: not saved_in(serving, listener.agent))
    listener.come_back(serving.client)
    (failure,) = listener.failures
    assert failure["code"] == "mismatch"
    assert "the agent is as before it" in failure["message"]
    assert serving.get(f"/v1/agents/{listener.agent}")["position"] == 0
    assert serving.stop() == 0
    serving.options = tuple(it.replace(str(tiny_q8), str(tiny_long)) for it in serving.options)
    serving.start()
    assert listener.come_back(serving.client) == 409
    assert tell(serving, listener.agent, "hello")["output"] == slow_text
    assert serving.stop() == 0
