"""Scripts that clients bring: guests like any other, which the server's own interpreter runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import wasmtime

from isthmus.runtime.scripts import MAX_SCRIPT_NBYTES, QUICKJS
from tests.server.conftest import Serving

TELLS = """(module
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
  (import "isthmus" "emit" (func $emit (param i32 i32) (result i32)))
  (memory (export "memory") 16)
  (func (export "on_message") (param i32) (result i32)
    (drop (call $sizes (i32.const 0) (i32.const 4)))
    (drop (call $args (i32.const 64) (i32.const 4096)))
    (call $emit (i32.const 4096) (i32.load (i32.const 4)))))"""
"""In place of an interpreter: it answers with the options that it was given."""
SOURCE = "function onMessage(text) { return text; } // ünï"
SCRIPTS = {
    "js": {
        "counts": "let n = 0;\nfunction onMessage(text) { n += 1; return `${text} ${n}`; }",
        "is wrong": "\nfunction onMessage( {",
        "ends never": "function onMessage() { for (;;); }",
        "takes all memory": "const a = []; for (;;) a.push('x'.repeat(1e6) + a.length);",
    },
    "py": {
        "counts": "n = 0\ndef on_message(text):\n  global n\n  n += 1\n  return f'{text} {n}'\n",
        "is wrong": "\ndef on_message(:\n",
        "ends never": "def on_message(text):\n  while True:\n    pass\n",
        "takes all memory": "a = []\nwhile True:\n  a.append('x' * 1000000)\n",
    },
}


def bring(serving: Serving, name: str, contents: bytes) -> httpx.Response:
    return serving.client.post("/v1/guests", params={"name": name}, content=contents)


def said(serving: Serving, agent: str, text: str) -> str:
    return str(serving.post(f"/v1/agents/{agent}/messages", {"input": text})["output"])


@pytest.fixture(scope="module")
def serving(tiny_q8: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server that can run JavaScript, as far as it knows, and no Python."""
    folder = tmp_path_factory.mktemp("scripts")
    stub = QUICKJS.path(folder / "cache")
    stub.parent.mkdir(parents=True)
    stub.write_bytes(bytes(wasmtime.wat2wasm(TELLS)))
    environment = {"ISTHMUS_CACHE": str(folder / "cache")}
    made = Serving(folder / "data", "--model", f"tiny={tiny_q8}", environment=environment)
    yield made
    assert made.stop() == 0


def test_a_script_is_kept_listed_forked_and_removed(serving: Serving) -> None:
    card = bring(serving, "agent.js", SOURCE.encode()).json()
    assert (card["kind"], card["name"]) == ("brought", "agent.js")
    assert bring(serving, "agent.js", SOURCE.encode()).json() == card
    assert bring(serving, "other.js", SOURCE.encode()).json()["id"] != card["id"]
    agent = serving.post("/v1/agents", {"guest": card["id"], "args": {"script": "mine", "a": 1}})
    assert agent["args"] == {"script": "mine", "a": "1", "n_ctx": agent["args"]["n_ctx"]}
    given = said(serving, agent["id"], "x").split("\0")
    assert {f"script={SOURCE}", "script_name=agent.js", "a=1"} < set(given)
    assert "script=mine" not in given
    fork = serving.post(f"/v1/agents/{agent['id']}/fork", {"args": {"a": 2}})
    assert {f"script={SOURCE}", "a=2"} < set(said(serving, fork["id"], "x").split("\0"))

    assert serving.stop() == 0
    serving.start()
    assert card in serving.get("/v1/guests")["data"]
    assert f"script={SOURCE}" in said(serving, agent["id"], "x").split("\0")
    fork_again = serving.post(f"/v1/agents/{agent['id']}/fork", {"args": {"a": 3}})
    assert {f"script={SOURCE}", "a=3"} < set(said(serving, fork_again["id"], "x").split("\0"))

    path = f"/v1/guests/{card['id']}"
    assert serving.client.delete(path).json()["error"]["code"] == "guest_in_use"
    for it in (agent, fork, fork_again):
        assert serving.client.delete(f"/v1/agents/{it['id']}").status_code == 200
    assert serving.client.delete(path).json() == {"id": card["id"], "deleted": True}
    assert card["id"] not in serving.client.get("/v1/guests").text


@pytest.mark.parametrize(
    ("name", "contents", "complaint"),
    [
        ("agent.js", b"\xff\xfe", "agent.js is no script: it is not UTF-8"),
        ("agent.js", b"a\0b", "agent.js is no script: it has a NUL in it"),
        ("agent.js", b"x" * (10 << 20), f"agent.js has more than {MAX_SCRIPT_NBYTES:,} bytes"),
        ("a\nb.js", b"\xff", r"a\nb.js is no script: it is not UTF-8"),
        ("agent.py", b"x = 1", "the guest that runs Python is not here yet: isthmus pull py"),
        ("agent.lua", b"x = 1", "not a WebAssembly module: it begins with the text 'x = 1'"),
        ("", SOURCE.encode(), "a script is brought with its name: ?name=agent.js"),
        ("agent.js.wasm", b"\0asm", "not a WebAssembly module"),
    ],
)
def test_what_is_no_script_is_refused_in_one_line(
    serving: Serving, name: str, contents: bytes, complaint: str
) -> None:
    refused = bring(serving, name, contents)
    message = refused.json()["error"]["message"]
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "guest_invalid")
    assert complaint in message
    assert "\n" not in message


def test_a_module_may_have_a_name(serving: Serving) -> None:
    wasm = bytes(wasmtime.wat2wasm(TELLS))
    card = bring(serving, "tells.wasm", wasm).json()
    assert (card["name"], card["kind"]) == ("tells.wasm", "brought")
    assert serving.client.post("/v1/guests", content=wasm).json() == card
    assert serving.client.delete(f"/v1/guests/{card['id']}").status_code == 200
    assert bring(serving, "x" * 201, wasm).status_code == 400


@pytest.fixture(scope="module")
def real(tiny_q8: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    data = tmp_path_factory.mktemp("real") / "data"
    made = Serving(data, "--model", f"tiny={tiny_q8}", "--n-ctx", "512")
    yield made
    assert made.stop() == 0


@pytest.mark.long
@pytest.mark.parametrize("lang", sorted(SCRIPTS))
def test_a_script_answers_and_remembers(real: Serving, lang: str) -> None:
    """Needs `isthmus pull js` and `isthmus pull py`."""
    guest = bring(real, f"agent.{lang}", SCRIPTS[lang]["counts"].encode()).json()["id"]
    agent = real.post("/v1/agents", {"guest": guest})["id"]
    assert [said(real, agent, "héllo") for _ in range(2)] == ["héllo 1", "héllo 2"]
    fork = real.post(f"/v1/agents/{agent}/fork", {"position": 1})["id"]
    real.kill()
    real.start()
    assert [said(real, it, "more") for it in (agent, fork)] == ["more 3", "more 2"]


@pytest.mark.long
@pytest.mark.parametrize("lang", sorted(SCRIPTS))
@pytest.mark.parametrize(
    ("script", "status", "complaint"),
    [
        ("is wrong", 422, "SyntaxError"),
        ("ends never", 504, "deadline"),
        ("takes all memory", 422, "memory"),
    ],
)
def test_a_hostile_script_harms_its_own_message(
    real: Serving, lang: str, script: str, status: int, complaint: str
) -> None:
    guest = bring(real, f"agent.{lang}", SCRIPTS[lang][script].encode()).json()["id"]
    limits = {"memory_nbytes": 64 << 20, "deadline_s": 2 if script == "ends never" else 60}
    agent = real.post("/v1/agents", {"guest": guest, "limits": limits})["id"]
    for _ in range(2):
        done = real.client.post(f"/v1/agents/{agent}/messages", json={"input": "x"})
        message = done.json()["error"]["message"]
        assert (done.status_code, complaint in message) == (status, True), message
        assert len(message.splitlines()) <= 2
    assert real.client.delete(f"/v1/agents/{agent}").status_code == 200
