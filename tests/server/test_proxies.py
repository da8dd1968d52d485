"""nginx and Caddy before the server, with the blocks of docs/server.md: `make test-proxies`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from isthmus.units import MIB
from tests.server.conftest import Serving
from tests.server.test_origins import requests

pytestmark = pytest.mark.proxies
DOCS = Path(__file__).parents[2] / "docs" / "server.md"
NAME = "llm.example.org"
SILENT_S, PROXY_S = 0.25, 2
"""The server's silence, and how long a proxy waits here."""
CLIENT = "127.0.0.2"
CHAT = "/v1/chat/completions"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
ENDLESS = {**BODY, "max_tokens": 64000, "ignore_eos": True, "stream": True}
NGINX = """
daemon off;
{user}
pid {folder}/pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {block}
}}
"""
CADDY = """
{{
    admin off
    auto_https disable_redirects
}}
{block}
"""


@pytest.fixture(scope="module")
def narrow(tiny_long: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server that computes one request at a time."""
    folder = tmp_path_factory.mktemp("narrow")
    config = folder / "server.toml"
    config.write_text(
        f'silent_s = {SILENT_S}\nslots = 1\nn_ctx = 65536\nhosts = ["{NAME}"]\n'
        'proxies = ["127.0.0.1"]\nlog_format = "json"\n'
    )
    serving = Serving(folder / "data", "--model", f"tiny={tiny_long}", "--config", str(config))
    yield serving
    assert serving.stop() == 0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    made, key = folder / "made.pem", folder / "made.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", f"/CN={NAME}", "-keyout", key, "-out", made),
            *("-addext", f"subjectAltName=DNS:{NAME}"),
        ],
        check=True,
        capture_output=True,
    )
    return made, key


class Named(httpx.HTTPTransport):
    """Finds the proxy on this machine, whatever its name; and is another client than the proxy."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.extensions["sni_hostname"] = request.url.host
        request.url = request.url.copy_with(host="127.0.0.1")
        return super().handle_request(request)


def block_of(kind: str) -> str:
    """The block of the documentation."""
    found = re.search(rf"<!-- proxy: {kind} -->\n```\w+\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def replaced(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    return text


def nginx(block: str, port: int, folder: Path) -> list[str]:
    """The command that runs a block."""
    user = "user root;" if os.geteuid() == 0 else ""  # the folder is nobody else's
    config = folder / "nginx.conf"
    block = replaced(block, ("listen 443 ", f"listen 127.0.0.1:{port} "))
    config.write_text(NGINX.format(folder=folder, block=block, user=user))
    return ["nginx", "-e", "stderr", "-p", str(folder), "-c", str(config)]


def caddy(block: str, port: int, folder: Path) -> list[str]:
    """The command that runs a block."""
    config = folder / "Caddyfile"
    block = replaced(block, (f"{NAME} {{", f"https://{NAME}:{port} {{\nbind 127.0.0.1"))
    config.write_text(CADDY.format(block=block))
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(config)]


RUN = {"nginx": nginx, "caddy": caddy}
PREFIXED: dict[str, tuple[tuple[str, str], ...]] = {
    "nginx": (("location / {", "location /llm/ {"), (":8080;", ":8080/;")),
    "caddy": (
        ("reverse_proxy", "handle_path /llm/* {\nreverse_proxy"),
        ("    }\n}", "    }\n}\n}"),
    ),
}


def listens(port: int) -> bool:
    with socket.socket() as it:
        return it.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def proxy(
    kind: str, block: str, serving: Serving, certificate: tuple[Path, Path], folder: Path
) -> Iterator[httpx.Client]:
    """A proxy that runs a block, and a client of it."""
    assert shutil.which(kind), "install nginx-light and caddy"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    block = replaced(
        block,
        ("127.0.0.1:8080", serving.url.removeprefix("http://")),
        (f"/etc/ssl/{NAME}.pem", str(certificate[0])),
        (f"/etc/ssl/{NAME}.key", str(certificate[1])),
        ("660s", f"{PROXY_S}s"),
    )
    command = RUN[kind](block, port, folder)
    log = folder / "log"
    home = {name: str(folder) for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")}
    with log.open("w") as file:
        process = subprocess.Popen(command, stderr=file, stdout=file, env={**os.environ, **home})
    try:
        while not listens(port):
            assert process.poll() is None, log.read_text()
            time.sleep(0.02)
        trusted = ssl.create_default_context(cafile=str(certificate[0]))
        transport = Named(verify=trusted, local_address=CLIENT)
        url = f"https://{NAME}:{port}"
        with httpx.Client(base_url=url, transport=transport, timeout=60) as client:
            yield client
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module", params=["nginx", "caddy"])
def client(
    request: pytest.FixtureRequest,
    narrow: Serving,
    certificate: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp(request.param)
    with proxy(request.param, block_of(request.param), narrow, certificate, folder) as client:
        yield client


def logged(serving: Serving, id_: str) -> dict[str, Any] | None:
    """The log's line of a request that has ended."""
    return next((it for it in requests(serving) if it["id"] == id_), None)


def until_data(answer: Iterator[bytes]) -> bytes:
    """What comes up to the first event; on a busy machine that may take longer than a silence."""
    said = b""
    while b"data: {" not in said:
        said += next(answer)
    return said


def wait_for(serving: Serving, id_: str) -> dict[str, Any]:
    end = time.monotonic() + 30
    while (found := logged(serving, id_)) is None:
        assert time.monotonic() < end, f"{id_} has not ended"
        time.sleep(0.02)
    return found


def test_a_stream_comes_as_it_is_computed_and_ends_with_its_caller(
    client: httpx.Client, narrow: Serving
) -> None:
    heads = {"X-Request-ID": f"left-{client.base_url.port}", "X-Forwarded-For": "203.0.113.7"}
    with client.stream("POST", CHAT, json=ENDLESS, headers=heads) as told:
        answer = told.iter_raw()  # which is left where its iterator is
        assert b"[DONE]" not in until_data(answer)
        assert logged(narrow, heads["X-Request-ID"]) is None
    line = wait_for(narrow, heads["X-Request-ID"])
    assert line["error"] == "cancelled"
    assert line["tokens_out"] < 64000
    assert line["client"] == CLIENT  # and not what it says of itself


def test_a_whole_stream(client: httpx.Client) -> None:
    with client.stream("POST", CHAT, json={**BODY, "stream": True}) as told:
        text = "".join(told.iter_text())
    assert told.headers["content-type"].startswith("text/event-stream")
    assert text.count("data: {") > 2
    assert text.endswith("data: [DONE]\n\n")


def test_a_silence_longer_than_the_proxy_waits(client: httpx.Client, narrow: Serving) -> None:
    port = client.base_url.port
    with client.stream("POST", CHAT, json=ENDLESS) as busy:
        answer = busy.iter_raw()
        until_data(answer)
        with client.stream("POST", CHAT, json={**BODY, "stream": True}) as told:
            assert told.status_code == 200
            pieces = told.iter_raw()
            said = b""
            while said.count(b": still working\n\n") * SILENT_S < 2.5 * PROXY_S:
                piece = next(pieces)  # each at once
                assert len(piece) < 100
                said += piece
            assert b"data" not in said
            # what has nothing to fill a silence with is cut
            cut = client.post(CHAT, json=BODY, headers={"X-Request-ID": f"cut-{port}"})
            assert cut.status_code in (502, 504)
            assert wait_for(narrow, f"cut-{port}")["error"] == "cancelled"
            busy.close()
            rest = b"".join(pieces)
    assert rest.endswith(b"data: [DONE]\n\n")


def test_large_bodies(client: httpx.Client) -> None:
    body = json.dumps(BODY).encode()
    told = client.post(CHAT, content=body + b" " * (2 * MIB))
    assert told.status_code == 200, told.text
    assert told.json()["usage"]["completion_tokens"] <= 8
    told = client.post(CHAT, content=body + b" " * (5 * MIB))
    assert (told.status_code, told.json()["error"]["code"]) == (413, "too_long")


def test_the_page_is_one_of_the_server(client: httpx.Client) -> None:
    own = str(client.base_url).rstrip("/")
    assert client.get("/").text.startswith("<!doctype html>")
    assert client.post("/v1/agents", json={}, headers={"Origin": own}).status_code == 201
    told = client.post("/v1/agents", json={}, headers={"Origin": "https://evil.example"})
    assert (told.status_code, told.json()["error"]["code"]) == (403, "origin")


@pytest.mark.parametrize("kind", RUN)
def test_below_a_path(
    kind: str, narrow: Serving, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    block = replaced(block_of(kind), *PREFIXED[kind])
    with proxy(kind, block, narrow, certificate, tmp_path) as client:
        assert client.get("/llm/").text.startswith("<!doctype html>")
        told = client.post(f"/llm{CHAT}", json=BODY)
        assert told.status_code == 200, told.text
        assert "tiny" in client.get("/llm/v1/models").text
        assert "tiny" not in client.get("/v1/models").text
