"""Commands as agents of a server: durable, forked, within the same limits as every other guest."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.commands.guests import CAT, READS_ON, YES, command
from tests.server.conftest import Serving
from tests.server.test_agents import tell

ENVIRON = """
  (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $environ (param i32 i32) (result i32)))"""
CHANCE = "(call $random (i32.const 1024) (i32.const 4))"


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server without a model."""
    serving = Serving(tmp_path_factory.mktemp("data"), "--device", "null")
    yield serving
    assert serving.stop() == 0


def bring(serving: Serving, wasm: bytes, **how: object) -> str:
    """A new agent of a command."""
    guest = serving.client.post("/v1/guests", content=wasm).json()["id"]
    return str(serving.post("/v1/agents", {"guest": guest, **how})["id"])


def refused(serving: Serving, id_: str, text: str) -> tuple[int, str]:
    done = serving.client.post(f"/v1/agents/{id_}/messages", json={"input": text})
    return done.status_code, done.json()["error"]["message"]


def test_one_shot(serving: Serving) -> None:
    id_ = bring(serving, command(CAT))
    for position, text in enumerate(("hello", "", "x" * 10_000), 1):
        told = tell(serving, id_, text)
        assert (told["position"], told["output"]) == (position, text)
        assert (told["ended"], told["exit_status"]) == ("end", 0)
    agent = serving.get(f"/v1/agents/{id_}")
    assert [it["output"] for it in agent["turns"]][:2] == ["hello", ""]
    assert serving.get(f"/v1/agents/{id_}/inspect")["memory_nbytes"] == 0
    assert serving.get(f"/v1/agents/{id_}/memory")["used"] == []
    assert serving.get("/v1/activity")["answering"] == []


def test_an_exit_status_is_kept(serving: Serving) -> None:
    id_ = bring(serving, command(f"{CAT} (call $exit (i32.const 3))"))
    told = tell(serving, id_, "hello")
    assert (told["output"], told["ended"], told["exit_status"]) == ("hello", "exit", 3)
    path = f"/v1/agents/{id_}/messages"
    body = {"input": "streamed", "stream": True}
    with serving.client.stream("POST", path, json=body) as stream:
        events = [json.loads(it[6:]) for it in stream.iter_lines() if it.startswith("data: ")]
    assert "".join(it.get("text", "") for it in events) == "streamed"
    assert (events[-1]["position"], events[-1]["exit_status"]) == (2, 3)
    turns = serving.get(f"/v1/agents/{id_}")["turns"]
    assert [(it["ended"], it["exit_status"]) for it in turns] == [("exit", 3)] * 2


def test_arguments_variables_and_chance_outlive_the_server(serving: Serving) -> None:
    """Their texts lie where args_get and environ_get put them; chance goes on."""
    body = f"""(drop (call $args (i32.const 512) (i32.const 2000)))
      (drop (call $environ (i32.const 512) (i32.const 3000)))
      (call $puts (i32.const 1) (i32.load (i32.const 512)) (i32.const 5))
      (drop (call $args (i32.const 512) (i32.const 2000)))
      (call $puts (i32.const 1) (i32.load (i32.const 516)) (i32.const 2))
      (drop {CHANCE}) (i32.store8 (i32.const 1024)
        (i32.add (i32.const 48) (i32.rem_u (i32.load (i32.const 1024)) (i32.const 64))))
      (call $puts (i32.const 1) (i32.const 1024) (i32.const 1))"""
    how = {"argv": ["-v"], "args": {"who": "I"}, "seed": 5}
    id_ = bring(serving, command(body, imports=ENVIRON), **how)
    agent = serving.get(f"/v1/agents/{id_}")
    assert (agent["args"], agent["argv"]) == ({"who": "I"}, ["-v"])
    said = [tell(serving, id_, "")["output"] for _ in range(6)]
    assert {it[:7] for it in said} == {"who=I-v"}
    assert len({it[7] for it in said}) > 1
    assert serving.stop() == 0
    serving.start()
    fork = serving.post(f"/v1/agents/{id_}/fork", {"position": 2, "args": {"who": "u"}})["id"]
    again = [tell(serving, fork, "")["output"] for _ in range(4)]
    assert again == ["who=u" + it[5:] for it in said[2:]]
    assert tell(serving, id_, "")["position"] == 7
    file = serving.client.get(f"/v1/agents/{id_}/snapshot?at=2").content
    made = serving.client.post("/v1/agents/restore", content=file).json()
    assert made["argv"] == ["-v"]
    assert [tell(serving, made["id"], "")["output"] for _ in range(4)] == said[2:]


def test_limits_are_those_of_every_agent(serving: Serving) -> None:
    id_ = bring(serving, command(READS_ON))
    status, said = refused(serving, id_, "hello")
    assert (status, "reads on at the end of its input" in said) == (422, True)
    loops = "(loop $again (br $again))"
    for body, limits, expected, words in (
        (loops, {"deadline_s": 0.3}, 504, "deadline_s"),
        (loops, {"fuel": 10_000}, 400, "fuel"),
        (YES, {"output_nbytes": 10_000}, 422, "unreachable"),
        (CAT, {"memory_nbytes": 65_536}, 400, "memory"),
        ("unreachable", {"on_failure": "close"}, 422, "unreachable"),
    ):
        id_ = bring(serving, command(body), limits=limits)
        for _ in range(2):
            status, said = refused(serving, id_, "hello")
            assert (status, words in said) == (expected, True), said
        assert serving.get(f"/v1/agents/{id_}")["position"] == 0


def test_arguments_are_for_commands(serving: Serving) -> None:
    done = serving.client.post("/v1/agents", json={"guest": "bench", "argv": ["-v"]})
    assert (done.status_code, "is no command" in done.text) == (400, True)
    done = serving.client.post("/v1/agents", json={"argv": ["a\0b"]})
    assert done.status_code == 400
