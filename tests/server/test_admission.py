"""Who may ask: the path that is judged is the path that is served, whatever a head says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isthmus.server.http.errors import HttpError
from isthmus.server.keys import admission
from isthmus.server.keys.admission import OPEN, Admission
from isthmus.server.keys.keys import Keys, new_key
from isthmus.server.settings import ServerSettings
from tests.server.conftest import Serving
from tests.server.raw import exchange, request

KEYED = "/v1/models"
HOSTS: list[str | bytes | None] = [
    *("x/?", "x/healthz?", "x/healthz#", "/healthz?", "localhost/healthz?", "x\\healthz?", "?"),
    *("x@y/?", "[::1]/?", "[x", "localhost:1/?", "localhost:8080:9", "", " ", "*", b"\xff/?"),
    *("x//healthz?", "x%2f?", "localhost\t/?", "x/..;/healthz?", "http://x/healthz?", None),
]
TARGETS: list[str | bytes] = [
    *("http://x/v1/models", "http://localhost/v1/models", "https://x//v1/models"),
    *("//v1/models", "/v1//models", "/v1%2fmodels", "/v1%2Fmodels", "/healthz/../v1/models"),
    *("/healthz%2f..%2fv1%2fmodels", "/./v1/models", "/V1/MODELS", "/v1/models/", "/v1/models%00"),
    *("/v1/models%0d%0aX:1", "/v1/models?/healthz", "/v1/models#/healthz", "/v1/models;/healthz"),
    *("/healthz/v1/models", "/openapi.json/../v1/models", "*", "?", "#", "/%", "/%ff", "/%zz"),
    *("localhost:80", b"/v1/models\xff", b"/v1/models\x00", "/" + "v" * 60000, "healthz", ".", ""),
]
NO_HTTP = [
    b"GET /v1/models\r\n\r\n",  # HTTP/0.9
    b"\r\n\r\n\r\n" * 9,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    request(KEYED, version="HTTP/9.9"),
    request(KEYED, version="http/1.1"),
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,  # TLS
    b"GET  /healthz HTTP/1.1\r\n\r\n",
    b"GET\t/healthz\tHTTP/1.1\r\n\r\n",
    b"\x00" * 100000,
]


@pytest.fixture(scope="module")
def keyed(tiny_q8: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("keyed")
    keys = folder / "keys"
    key = new_key(keys, "ada")
    options = ("--model", f"tiny={tiny_q8}", "--n-ctx", "512", "--keys", str(keys))
    serving = Serving(folder / "data", *options)
    serving.client.headers["Authorization"] = f"Bearer {key}"
    yield serving
    assert serving.stop() == 0


def key_of(serving: Serving) -> str:
    return str(serving.client.headers["authorization"]).removeprefix("Bearer ")


@pytest.mark.parametrize("host", HOSTS)
def test_no_host_opens_what_needs_a_key(keyed: Serving, host: str | bytes | None) -> None:
    for path in (KEYED, "/metrics", "/v1/agents", "/v1/none"):
        found = exchange(keyed, request(path, host=host))
        assert found.status in (400, 401), found.data
        found.error()


@pytest.mark.parametrize("target", TARGETS)
def test_no_target_opens_what_needs_a_key(keyed: Serving, target: str | bytes) -> None:
    for method in ("GET", "HEAD", "POST", "OPTIONS", "TRACE", "CONNECT", "PRI", "get"):
        found = exchange(keyed, request(target, "Connection: close", method=method))
        assert found.status in (400, 401), found.data
        assert b"tiny" not in found.body
    owner = exchange(keyed, request(target, "Connection: close", key=key_of(keyed)))
    assert owner.status in (200, 400, 404), owner.data


def test_the_path_is_the_routers_whatever_the_address_is_built_of(tmp_path: Path) -> None:
    """With a starlette that builds `request.url` of any Host, and with those to come."""
    keys = tmp_path / "keys"
    key = new_key(keys, "ada")
    judge = Admission(ServerSettings(), Keys(keys))
    for host in HOSTS:
        heads = (
            [] if host is None else [(b"host", host if isinstance(host, bytes) else host.encode())]
        )
        scope: dict[str, Any] = {"type": "http", "method": "GET", "path": KEYED, "headers": heads}
        with pytest.raises(HttpError) as caught:
            judge.admit(scope)
        assert caught.value.status == 401
        scope["headers"] = [*heads, (b"authorization", f"Bearer {key}".encode())]
        assert getattr(judge.admit(scope), "name", None) == "ada"
        for path in OPEN:
            assert judge.admit({**scope, "path": path, "headers": heads}) is None


def test_without_keys_the_host_must_be_ours(tiny_server: Serving) -> None:
    port = tiny_server.url.rpartition(":")[2]
    for host in ("localhost", "LOCALHOST", "127.0.0.1", f"127.0.0.1:{port}", "[::1]", "[::1]:80"):
        assert exchange(tiny_server, request("/v1/models", host=host)).status == 200, host
    for host in HOSTS:
        found = exchange(tiny_server, request("/v1/models", host=host))
        assert found.status in (400, 403), (host, found.data)
        found.error()
    for evil in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "]::1["):
        assert exchange(tiny_server, request("/healthz", host=evil)).status in (400, 403), evil


@pytest.mark.parametrize(
    "heads",
    [
        ("Content-Length: 2", "Content-Length: 3"),
        ("Content-Length: 2, 3",),
        ("Content-Length: -2",),
        ("Content-Length: +2",),
        ("Content-Length: 2_0",),
        ("Content-Length: 0x2",),
        ("Content-Length: " + "9" * 5000,),
        ("Content-Length: 2", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: gzip, chunked",),
        ("Transfer-Encoding: xchunked",),
        ("Host: localhost",),
        ("Authorization: Bearer x",),
        ("authorization: Bearer x", "AUTHORIZATION: Bearer y"),
        ("Origin: http://localhost", "Origin: http://localhost"),
        (" Folded: 1",),
        ("No colon",),
        ("Space : 1",),
        (": empty",),
        (b"Nul: \x00",),
        (b"Bare: \r1",),
        ("Huge: " + "x" * 200000,),
        tuple(f"Many-{n}: x" for n in range(20000)),
    ],
    ids=lambda heads: ascii(heads[0])[:30],
)
def test_a_head_that_can_be_read_in_two_ways_is_refused(
    keyed: Serving, heads: tuple[str | bytes, ...]
) -> None:
    sent = request("/v1/completions", *heads, method="POST", key=key_of(keyed))
    found = exchange(keyed, sent + b"{}")
    assert found.status in (400, 401, 413, 501), found.data[:300]
    found.error()
    assert found.data.count(b"HTTP/1.1 ") == 1  # nothing behind it is taken for a request


def test_other_versions_and_pipelines(keyed: Serving) -> None:
    key = key_of(keyed)
    assert exchange(keyed, request(KEYED, host=None, version="HTTP/1.0")).status == 401
    assert exchange(keyed, request(KEYED, host=None, key=key, version="HTTP/1.0")).status == 200
    for bad in NO_HTTP:
        found = exchange(keyed, bad)
        assert found.status in (0, 400, 401, 408), (bad[:40], found.data)
    hidden = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    found = exchange(keyed, request("/healthz", "Connection: keep-alive") + hidden)
    assert b"tiny" not in found.data.partition(b"HTTP/1.1 401")[2]


def test_a_path_with_a_slash_too_many_is_not_sent_elsewhere(keyed: Serving) -> None:
    found = exchange(keyed, request("/v1/agents/", host="evil.example", key=key_of(keyed)))
    assert found.status == 404
    assert b"evil.example" not in found.data


def test_nobody_waits_for_ever(keyed: Serving) -> None:
    async def chunks() -> int:
        host, _, port = keyed.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request("/v1/completions", "Transfer-Encoding: chunked", method="POST",
                             key=key_of(keyed)))  # fmt: skip
        for _ in range(4096):
            writer.write(b"10000\r\n" + b" " * 65536 + b"\r\n")
            try:
                await asyncio.wait_for(writer.drain(), 10)
            except OSError:
                break
        data = await asyncio.wait_for(reader.read(4096), 20)
        writer.close()
        return int(data[9:12] or b"413")

    assert asyncio.run(chunks()) == 413


def test_no_source_judges_by_an_address_that_is_built_of_the_host() -> None:
    folder = Path(admission.__file__).parent
    for path in folder.glob("*.py"):
        code = [line for line in path.read_text().splitlines() if "`request.url`" not in line]
        assert not any("request.url" in line or "base_url" in line for line in code), path
