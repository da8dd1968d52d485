"""Agents as files: what is downloaded is what is restored, and neither fills the memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import wasmtime

from isthmus import Runtime
from isthmus.snapshot import open_snapshot
from isthmus.units import MIB
from tests.exact.pausing import saved_at
from tests.patience import eventually
from tests.server.conftest import Serving
from tests.server.process import watching
from tests.server.test_agents import new_agent, tell
from tests.tiny_gguf import TinyLlama

LARGE = """(module (import "isthmus" "reply" (func $r (param i32 i32) (result i32)))
  (memory (export "memory") 4096)
  (func (export "on_message") (param i32) (result i32) (local $at i32)
    (loop $next
      (i32.store (local.get $at) (local.get $at))
      (local.set $at (i32.add (local.get $at) (i32.const 1048576)))
      (br_if $next (i32.lt_u (local.get $at) (i32.const 268435456))))
    (i32.store8 (i32.const 8) (i32.add (i32.load8_u (i32.const 8)) (i32.const 65)))
    (call $r (i32.const 8) (i32.const 1))))"""
"""256 MiB of memory, of which a word in each MiB is not zero."""


@pytest.fixture(scope="module")
def large(tiny_server: Serving) -> str:
    wasm = bytes(wasmtime.wat2wasm(LARGE))
    guest = tiny_server.client.post("/v1/guests", content=wasm).json()["id"]
    id_ = new_agent(tiny_server, guest=guest)
    tell(tiny_server, id_, "fill")
    return id_


def restored(serving: Serving, data: bytes | Iterator[bytes], **how: Any) -> httpx.Response:
    return serving.client.post("/v1/agents/restore", content=data, params=how)


def test_down_and_up_again(tiny_server: Serving) -> None:
    id_ = new_agent(tiny_server, name="Ada")
    tell(tiny_server, id_, "hello")
    file = tiny_server.client.get(f"/v1/agents/{id_}/snapshot")
    assert int(file.headers["content-length"]) == len(file.content)
    made = restored(tiny_server, file.content, name="Ada again")
    assert made.status_code == 201, made.text
    agent = made.json()
    assert (agent["name"], agent["guest"], agent["position"]) == ("Ada again", "chat", 0)
    assert agent["models"] == {"default": "tiny"}
    assert tell(tiny_server, agent["id"], "on")["output"] == tell(tiny_server, id_, "on")["output"]
    fork = tiny_server.post(f"/v1/agents/{agent['id']}/fork")
    assert tell(tiny_server, fork["id"], "x")["position"] == 2
    assert not list((tiny_server.data / "uploads").iterdir())


def test_it_is_the_snapshot_itself(tiny_server: Serving, tmp_path: Path, tiny_q8: Path) -> None:
    id_ = new_agent(tiny_server)
    tell(tiny_server, id_, "hello")
    first = tiny_server.client.get(f"/v1/agents/{id_}/snapshot?at=1")
    path = tmp_path / "one.safetensors"
    path.write_bytes(first.content)
    snapshot = open_snapshot(path)
    snapshot.verify()
    assert first.headers["etag"] == f'"{snapshot.id}"'
    assert snapshot.id == tiny_server.get(f"/v1/agents/{id_}/inspect?at=1")["id"]
    known = {"If-None-Match": first.headers["etag"]}
    again = tiny_server.client.get(f"/v1/agents/{id_}/snapshot?at=1", headers=known)
    assert (again.status_code, again.content) == (304, b"")
    tell(tiny_server, id_, "more")
    assert tiny_server.client.get(f"/v1/agents/{id_}/snapshot", headers=known).status_code == 200
    with Runtime(device="cpu") as runtime:
        model = runtime.load_model(tiny_q8)
        with runtime.restore(path, models={"default": model}, require="exact") as actor:
            assert actor.send("more").text


def test_a_large_one_is_never_whole_in_memory(tiny_server: Serving, large: str) -> None:
    pid, size, digest = tiny_server.process.pid, 0, hashlib.sha256()
    with (
        watching(pid) as peak,
        tiny_server.client.stream("GET", f"/v1/agents/{large}/snapshot") as file,
    ):
        for piece in file.iter_bytes():
            size += len(piece)
            digest.update(piece)
    assert size == int(file.headers["content-length"]) > 256 * MIB
    assert peak.grown < 48 * MIB, peak.grown / MIB

    again = hashlib.sha256()
    with (
        watching(pid) as peak,
        tiny_server.client.stream("GET", f"/v1/agents/{large}/snapshot") as file,
    ):

        def body() -> Iterator[bytes]:
            for piece in file.iter_bytes(MIB):
                again.update(piece)
                yield piece

        with httpx.Client(base_url=tiny_server.url, timeout=120) as client:
            made = client.post("/v1/agents/restore", content=body())
    assert made.status_code == 201, made.text
    assert again.digest() == digest.digest()
    assert peak.grown < 48 * MIB, peak.grown / MIB
    assert tell(tiny_server, made.json()["id"], "x")["output"]


def test_whoever_leaves_in_the_middle_leaves_nothing(tiny_server: Serving, large: str) -> None:
    with tiny_server.client.stream("GET", f"/v1/agents/{large}/snapshot") as file:
        next(file.iter_bytes())

    def half() -> Iterator[bytes]:
        yield b"x" * MIB
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        restored(tiny_server, half())
    uploads = tiny_server.data / "uploads"
    assert eventually(lambda: not list(uploads.iterdir()))
    assert tell(tiny_server, large, "go on")["output"]


def test_what_is_no_snapshot_of_here_is_refused(tiny_server: Serving, tmp_path: Path) -> None:
    id_ = new_agent(tiny_server)
    tell(tiny_server, id_, "hello")
    good = tiny_server.client.get(f"/v1/agents/{id_}/snapshot").content
    before = tiny_server.get("/v1/agents")["data"]
    middle = good[: len(good) // 2] + bytes([good[len(good) // 2] ^ 1]) + good[len(good) // 2 + 1 :]
    version = good.replace(b'\\"format_version\\":2', b'\\"format_version\\":7')
    for data, said in (
        (b"", "not a safetensors file"),
        (b"hello", "not a safetensors file"),
        (good[:-5], "bytes long instead of"),
        (good + b"x", "bytes long instead of"),
        (middle, "SHA-256"),
        (version, "SHA-256"),
    ):
        refused = restored(tiny_server, data)
        assert refused.status_code == 400, refused.text
        assert refused.json()["error"]["code"] == "snapshot"
        assert said in refused.json()["error"]["message"]
        assert "uploads" not in refused.text
    assert restored(tiny_server, good, require="perfect").status_code == 400
    assert restored(tiny_server, good, model="none").status_code == 404

    other = TinyLlama(with_tokenizer=True, seed=7).write(tmp_path / "other.gguf")
    with Runtime(device="cpu") as runtime:
        actor = runtime.spawn(
            "chat", models={"default": runtime.load_model(other)}, args={"max_tokens": 4}
        )
        actor.send("hello")
        actor.snapshot(tmp_path / "other.safetensors")
    foreign = (tmp_path / "other.safetensors").read_bytes()
    refused = restored(tiny_server, foreign)
    assert (refused.status_code, "none of this server's" in refused.text) == (400, True)
    refused = restored(tiny_server, foreign, model="tiny")
    assert (refused.status_code, "would be replayed" in refused.text) == (400, True)
    assert tiny_server.get("/v1/agents")["data"] == before
    replayed = restored(tiny_server, foreign, model="tiny", require="replayed")
    assert replayed.status_code == 201, replayed.text
    assert tell(tiny_server, replayed.json()["id"], "hi")["position"] == 1


def test_a_damaged_chunk_ends_the_download(tiny_q8: Path, tmp_path: Path) -> None:
    serving = Serving(tmp_path / "data", "--model", f"tiny={tiny_q8}", "--log-format", "json")
    id_ = new_agent(serving)
    for pack in (serving.data / "store" / "packs").iterdir():
        data = bytearray(pack.read_bytes())
        data[len(data) // 2] ^= 1
        pack.write_bytes(data)
    with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
        serving.client.get(f"/v1/agents/{id_}/snapshot")
    assert serving.get("/healthz")["status"] == "ok"
    assert serving.stop() == 0
    log = (tmp_path / "data.log").read_text().splitlines()
    assert any(json.loads(line).get("error") == "SnapshotInvalid" for line in log)


def test_uploads_are_limited(tiny_q8: Path, tmp_path: Path) -> None:
    config = tmp_path / "server.toml"
    config.write_text("upload_nbytes = 2000000\nbody_nbytes = 10000\n")
    data = tmp_path / "data"
    (data / "uploads").mkdir(parents=True)
    (data / "uploads" / "left").write_bytes(b"by a server that was killed")
    serving = Serving(data, "--model", f"tiny={tiny_q8}", "--config", str(config))
    assert not list((data / "uploads").iterdir())
    assert restored(serving, b"x" * 1_900_000).status_code == 400
    assert restored(serving, b"x" * 2_000_001).status_code == 413
    assert serving.client.post("/v1/guests", content=b"x" * 10_001).status_code == 413
    assert serving.stop() == 0


def test_a_snapshot_in_the_middle_of_an_answer_is_refused(
    tiny_server: Serving, tiny: Path, tmp_path: Path
) -> None:
    with Runtime(device="cpu") as runtime:
        options = {"max_tokens": 20, "n_ctx": 512, "regex": "[a-z]{100}"}
        models = {"default": runtime.load_model(tiny)}
        actor = runtime.spawn("chat", models=models, args=options)
        path = saved_at(runtime, actor, 3, tmp_path / "mid.safetensors")
    refused = restored(tiny_server, path.read_bytes())
    assert refused.status_code == 400
    assert "is in the middle of an answer" in refused.json()["error"]["message"]
