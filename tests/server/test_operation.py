"""Keys, limits, settings and what strangers may not."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from isthmus.errors import SettingsError
from isthmus.server.keys.keys import Keys, new_key, read_keys
from isthmus.server.settings import ServerSettings
from tests.server.conftest import Serving


def test_settings(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('port = 1234\ndata = "d"\n')
    settings = ServerSettings.make(file, {"port": None, "slots": 3})
    assert (settings.port, settings.slots, settings.data) == (1234, 3, Path("d"))
    assert ServerSettings.make(file, {"port": 5}).port == 5
    for text, said in (
        ("prot = 1", "no setting prot; there are advertise, "),
        ("keep_alive = 1", "no setting keep_alive: did you mean keep_alive_s?"),
        ('aliases = { a = "b", c = 1 }', "aliases.c is 1: give a table of lines NAME = "),
        (
            'models = { a = { file = "f", laod = true } }',
            "models.a is {'file': 'f', 'laod': True}: ",
        ),
        ('port = "x"', "port is 'x'"),
        ("port = 70000", "0 to 65535"),
        ("slots = 0", "slots is 0"),
        ("=", "not TOML"),
        ("host = 5", "host is 5: give a text"),
        ('log_format = "xml"', "log_format is 'xml': give line or json"),
        (
            "head_s = 0",
            "head_s is 0: give seconds, or a duration such as 30s, 5m or 1h, more than 0",
        ),
        ("stalled_s = true", "stalled_s is True"),
        ("idle_s = nan", "idle_s is nan"),
        ("upload_nbytes = 1.5", "upload_nbytes is 1.5: give a whole number, 1024 or more"),
        ("keys = 7", "keys is 7"),
        ('host = "0.0.0.0"', "give --keys"),
    ):
        file.write_text(text)
        with pytest.raises(SettingsError, match=re.escape(said)) as caught:
            ServerSettings.make(file, {})
        assert str(file) in str(caught.value) or "--keys" in said
    with pytest.raises(SettingsError, match="cannot read"):
        ServerSettings.make(tmp_path / "none.toml", {})


def test_every_setting_can_be_in_the_file_and_is_judged(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    for it in dataclasses.fields(ServerSettings):
        file.write_text(f"{it.name} = [[]]\n")
        with pytest.raises(SettingsError) as caught:
            ServerSettings.make(file, {})
        assert str(caught.value).startswith(f"{file}: {it.name} is [[]]: give ")


def test_the_docs_have_each_setting(tmp_path: Path) -> None:
    """The blocks of docs/server.md can be used as they stand, and the long one has everything."""
    docs = Path(__file__).parents[2] / "docs" / "server.md"
    file = tmp_path / "server.toml"
    blocks = re.findall(r"```toml\n(.*?)```", docs.read_text(), re.DOTALL)
    for text in blocks:
        file.write_text(text)
        ServerSettings.make(file, {})
    longest = max(blocks, key=len)
    names = {it.name for it in dataclasses.fields(ServerSettings)}
    assert {it for it in names if not re.search(rf"\b{it}\b", longest)} == set()


def test_keys_are_kept_as_hashes(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    key = new_key(file, "ada")
    assert file.stat().st_mode & 0o077 == 0
    assert key not in file.read_text()
    keys = Keys(file)
    assert keys.find(key) == read_keys(file)[0]
    assert keys.find(key + "x") is None
    assert keys.find("") is None
    with pytest.raises(SettingsError):
        new_key(file, "two words")
    file.write_text("ada 123\n")
    with pytest.raises(SettingsError, match="line 1"):
        Keys(file)


def test_who_may_ask(tiny_q8: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    command = [sys.executable, "-m", "isthmus", "serve", "--keys", str(keys), "--new-key", "ada"]
    key = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    serving = Serving(tmp_path / "data", "--model", f"tiny={tiny_q8}", "--keys", str(keys))
    assert serving.client.get("/healthz").status_code == 200
    stranger = serving.client.get("/v1/models")
    assert (stranger.status_code, stranger.json()["error"]["code"]) == (401, "invalid_api_key")
    assert serving.client.get("/metrics").status_code == 401
    known = serving.client.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
    assert known.status_code == 200
    assert serving.stop() == 0


def test_pages_of_other_sites_may_not(tiny_server: Serving) -> None:
    get = tiny_server.client.get
    assert get("/v1/models", headers={"Origin": "http://evil.example"}).status_code == 403
    assert get("/v1/models", headers={"Host": "evil.example"}).status_code == 403
    own = tiny_server.url
    assert get("/v1/models", headers={"Origin": own}).status_code == 200


def test_bodies_that_are_too_large_or_malformed(tiny_server: Serving) -> None:
    post = tiny_server.client.post
    large = b"x" * (17 << 20)
    assert post("/v1/completions", content=large).status_code == 413

    def pieces() -> list[bytes]:
        return [b"x" * (1 << 20)] * 17

    with contextlib.suppress(httpx.TransportError):  # hanging up in the middle is as good
        assert post("/v1/completions", content=iter(pieces())).status_code == 413
    for body in (b"", b"{", b"[]", b"\xff\xfe", b'{"model": "tiny"}', b"null"):
        done = post("/v1/completions", content=body)
        assert done.status_code == 400, body
        assert done.json()["error"]["type"] == "invalid_request_error"
    assert tiny_server.client.get("/v1/none").status_code == 404
    assert tiny_server.client.put("/v1/models").status_code == 405
    assert tiny_server.get("/healthz")["status"] == "ok"


def test_a_wrong_path_or_method_teaches(tiny_server: Serving) -> None:
    for path, meant in (
        ("/chat/completions", ": did you mean /v1/chat/completions?"),
        ("/v1/v1/chat/completions", ": did you mean /v1/chat/completions?"),
        ("/v1/chat/completion", ": did you mean /v1/chat/completions?"),
        ("/slots", ""),
        ("/" + "x" * 10_000, ""),
    ):
        done = tiny_server.client.post(path)
        assert done.status_code == 404
        assert done.json()["error"]["message"] == f"there is nothing at {path}{meant}"
    done = tiny_server.client.get("/v1/chat/completions")
    assert (done.status_code, done.headers["Allow"]) == (405, "POST")
    assert done.json()["error"]["message"].endswith("does not take GET; it takes POST")
    assert tiny_server.client.put("/v1/agents").headers["Allow"] == "GET, HEAD, POST"


def test_a_body_that_never_comes_costs_nobody_anything(tiny_server: Serving) -> None:
    host, _, port = tiny_server.url.removeprefix("http://").partition(":")
    with contextlib.ExitStack() as stack:
        for n in range(200):
            half = stack.enter_context(socket.create_connection((host, int(port)), 10))
            head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: 99\r\n"
            half.sendall(head.encode()[: 30 + n] if n % 2 else head.encode() + b"\r\n{")
        body = {"model": "tiny", "prompt": "hello", "max_tokens": 4}
        assert tiny_server.client.post("/v1/completions", json=body).status_code == 200


def test_a_slow_reader_costs_nobody_anything(tiny_server: Serving) -> None:
    host, _, port = tiny_server.url.removeprefix("http://").partition(":")
    body = json.dumps({"model": "tiny", "prompt": "a", "max_tokens": 900, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            slow = stack.enter_context(socket.create_connection((host, int(port)), 10))
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.sendall(head.encode() + body)
        quick = {"model": "tiny", "prompt": "hello", "max_tokens": 4}
        for _ in range(5):
            assert tiny_server.client.post("/v1/completions", json=quick).status_code == 200


def test_one_server_for_a_folder(tiny_server: Serving, tiny_q8: Path) -> None:
    command = [sys.executable, "-m", "isthmus", "serve", "--port", "0"]
    command += ["--data", str(tiny_server.data), "--model", str(tiny_q8)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "another server uses" in done.stderr


def test_metrics(tiny_server: Serving) -> None:
    text = tiny_server.client.get("/metrics").text
    assert "isthmus_actors_idle" in text


def test_a_public_address_needs_keys() -> None:
    command = [sys.executable, "-m", "isthmus", "serve", "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "give --keys" in done.stderr
