"""Pages of other origins, and names of the server: who is let in, and what browsers are told."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from isthmus.errors import SettingsError
from isthmus.server.http.errors import HttpError
from isthmus.server.http.key import KeyLimits
from isthmus.server.http.origins import METHODS, Origins
from isthmus.server.keys.admission import Admission
from isthmus.server.keys.keys import Keys, new_key
from isthmus.server.page import page
from isthmus.server.settings import ServerSettings
from tests.patience import eventually
from tests.server.conftest import Serving
from tests.server.raw import exchange, request

APP, OTHER = "https://app.example.org", "https://evil.example"
CHAT = "/v1/chat/completions"
PREFLIGHT = {"Origin": APP, "Access-Control-Request-Method": "POST"}


@pytest.fixture(scope="module")
def open_to_app(tiny_q8: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server with keys, which the pages of one origin may use."""
    folder = tmp_path_factory.mktemp("origins")
    key = new_key(folder / "keys", "ada")
    config = folder / "server.toml"
    config.write_text(f'origins = ["{APP}"]\nconnections = 8\nhead_s = 0.5\nproxies = ["::1/128"]')
    serving = Serving(
        folder / "data", "--model", f"tiny={tiny_q8}", "--n-ctx", "512", "--keys",
        str(folder / "keys"), "--config", str(config), "--log-format", "json",
    )  # fmt: skip
    serving.client.headers["Authorization"] = f"Bearer {key}"
    yield serving
    assert serving.stop() == 0


def requests(serving: Serving) -> list[dict[str, Any]]:
    """The log's lines of requests."""
    log = serving.data.parent / f"{serving.data.name}.log"
    lines = [json.loads(it) for it in log.read_text().splitlines()]
    return [it for it in lines if it["event"] == "request"]


def allows(named: list[str], origin: str) -> bool:
    return Origins(ServerSettings(origins=tuple(named)).origins).allows(origin)


@pytest.mark.parametrize(
    ("named", "yes", "no"),
    [
        (APP, [APP, APP.upper()], [APP + ".evil.example", APP + ":444", "http://app.example.org"]),
        ("HTTPS://App.Example.org:443", [APP], [APP + ":443"]),  # browsers leave it out
        (
            "https://*.example.org",
            [APP, "https://a.b.example.org"],
            ["https://example.org", "https://evilexample.org", "https://x/.example.org"],
        ),
        (
            "http://localhost:*",
            ["http://localhost", "http://localhost:5173"],
            ["http://localhost:5173.evil.example", "http://localhost:"],
        ),
        ("http://[::1]:3000", ["http://[::1]:3000"], ["http://[::1]"]),
        ("app://obsidian.md", ["app://obsidian.md"], ["app://obsidianxmd"]),
        ("null", ["null"], [APP, ""]),
        ("*", [APP, "null"], []),
    ],
)
def test_which_origins_are_named(named: str, yes: list[str], no: list[str]) -> None:
    assert all(allows([OTHER, named], it) for it in yes)
    assert not any(allows(["https://x.example", named], it) for it in no)
    assert not allows([], yes[0])


@pytest.mark.parametrize("name", ["origins", "hosts", "proxies"])
@pytest.mark.parametrize(
    "value", ["*", 1, [1], [""], ["a b"], [f"{APP}/"], ["https://"], ["300.0.0.1"], [None], ["é"]]
)
def test_a_malformed_list_is_refused(name: str, value: Any) -> None:
    if (name, value) == ("hosts", ["300.0.0.1"]):
        return  # a name like any other
    with pytest.raises(SettingsError, match=f"{name} is .*: give a list of"):
        ServerSettings(**{name: value})


def test_answers_say_no_more_than_they_must() -> None:
    assert Origins([]).headers(APP, ["x-a"]) == {}
    assert Origins([APP]).headers(None) == {"Vary": "Origin"}
    assert Origins([APP]).headers(OTHER, ["x-a"]) == {"Vary": "Origin"}
    assert Origins([APP]).headers(APP, ["X-A", "content-type", "b"]) == {
        "Vary": "Origin",
        "Access-Control-Allow-Origin": APP,
        "Access-Control-Allow-Credentials": "true",
        "Access-Control-Expose-Headers": "b, x-a",
    }
    assert Origins(["*"]).headers(APP) == {"Access-Control-Allow-Origin": "*"}


# ---------------------------------------------------------------------------- who is let in


def judged(settings: ServerSettings, keys: Keys | None, **heads: str) -> str | None:
    """The code of the error, if it is refused."""
    raw = [(name.replace("_", "-").encode(), it.encode()) for name, it in heads.items()]
    scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": raw}
    try:
        Admission(settings, keys).admit(scope)
    except HttpError as raised:
        error = raised
    else:
        return None
    if error.code in ("host", "origin"):
        assert error.status == 403
        assert f"the setting {error.code}s" in str(error)
    else:
        assert (error.status, error.code) == (401, "invalid_api_key")
    return error.code


def test_names_of_the_server() -> None:
    bare = ServerSettings()
    named = ServerSettings(hosts=("LLM.example.org", "*.internal"))
    for host in ("localhost:8080", "127.0.0.1", "[::1]:80"):
        assert judged(bare, None, host=host) is judged(named, None, host=host) is None
    for host in ("llm.example.org", "llm.example.org:8443", "a.b.internal"):
        assert judged(bare, None, host=host) == "host"
        assert judged(named, None, host=host) is None
    for host in ("example.org", "internal", "xinternal", "llm.example.org.evil.example", "", "*"):
        assert judged(named, None, host=host) == "host"
    assert judged(ServerSettings(hosts=("*",)), None, host="any.example") is None


def test_with_keys_any_name_will_do_unless_some_are_named(tmp_path: Path) -> None:
    key = new_key(tmp_path / "keys", "ada")
    keys, heads = Keys(tmp_path / "keys"), {"authorization": f"Bearer {key}"}
    assert judged(ServerSettings(), keys, host="any.example", **heads) is None
    named = ServerSettings(hosts=("llm.example.org",))
    assert judged(named, keys, host="any.example", **heads) == "host"
    assert judged(named, keys, host="llm.example.org", **heads) is None


def test_a_key_with_an_origin_is_let_in_unless_a_browser_sends_it(tmp_path: Path) -> None:
    key = new_key(tmp_path / "keys", "ada")
    keys, heads = Keys(tmp_path / "keys"), {"host": "h", "origin": OTHER}
    has_key = {"authorization": f"Bearer {key}"}
    assert judged(ServerSettings(), keys, **heads, **has_key) is None
    assert judged(ServerSettings(), keys, **heads) == "invalid_api_key"
    for site in ("cross-site", "same-site"):
        assert judged(ServerSettings(), keys, **heads, **has_key, sec_fetch_site=site) == "origin"
    named = ServerSettings(origins=(OTHER,))
    assert judged(named, keys, **heads, **has_key, sec_fetch_site="cross-site") is None
    assert judged(ServerSettings(), None, host="localhost", origin=OTHER) == "origin"
    assert judged(named, None, host="localhost", origin=OTHER) is None
    assert judged(ServerSettings(), None, host="localhost:1", origin="http://localhost:1") is None


# ---------------------------------------------------------------------------- what is told


def test_a_preflight_needs_no_key(open_to_app: Serving) -> None:
    asked = "authorization, content-type, x-stainless-os"
    more = {
        "Access-Control-Request-Headers": asked,
        "Access-Control-Request-Private-Network": "true",
    }
    for path in (CHAT, "/v1/agents/x", "/v1/none"):
        told = httpx.options(open_to_app.url + path, headers={**PREFLIGHT, **more})
        assert (told.status_code, told.content) == (204, b"")
        assert told.headers["access-control-allow-origin"] == APP
        assert told.headers["access-control-allow-headers"] == asked
        assert told.headers["access-control-allow-methods"] == METHODS
        assert told.headers["access-control-max-age"] == "7200"
        assert told.headers["access-control-allow-private-network"] == "true"
        assert "Origin" in told.headers["vary"].split(", ")
    plain = httpx.options(open_to_app.url + CHAT, headers=PREFLIGHT).headers
    assert "access-control-allow-private-network" not in plain
    assert "access-control-allow-headers" not in plain


def test_a_preflight_of_a_stranger_is_told_why(open_to_app: Serving, tiny_server: Serving) -> None:
    for serving in (open_to_app, tiny_server):
        told = httpx.options(serving.url + CHAT, headers={**PREFLIGHT, "Origin": OTHER})
        assert (told.status_code, told.json()["error"]["code"]) == (403, "origin")
        assert f"pages of {OTHER} may not" in told.json()["error"]["message"]
        assert not any(it.startswith("access-control") for it in told.headers)
    log = open_to_app.data.parent / f"{open_to_app.data.name}.log"
    assert log.read_text().count("the setting origins") == 1
    heads = {**PREFLIGHT, "Access-Control-Request-Headers": "a b;"}
    assert httpx.options(open_to_app.url + CHAT, headers=heads).status_code == 400
    assert httpx.options(open_to_app.url + CHAT).status_code == 401  # no preflight


def test_all_methods_are_those_of_the_routes(tiny_server: Serving) -> None:
    paths = tiny_server.get("/openapi.json")["paths"].values()
    used = {method.upper() for it in paths for method in it} | {"HEAD"}
    assert ", ".join(sorted(used)) == METHODS


@pytest.mark.parametrize("status", [200, 400, 401, 404, 405, 413])
def test_errors_can_be_read_by_a_page(open_to_app: Serving, status: int) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
    ask: dict[int, dict[str, Any]] = {
        200: {"json": body},
        400: {"json": {**body, "max_tokens": "x"}},
        401: {"json": body, "headers": {"Authorization": "Bearer x"}},
        404: {"json": {**body, "model": "none"}},
        405: {"method": "DELETE"},
        413: {"content": b" " * (5 << 20)},
    }
    asked = {"method": "POST", "url": CHAT, **ask[status]}
    asked["headers"] = {"Origin": APP, **asked.get("headers", {})}
    told = open_to_app.client.request(**asked)
    assert told.status_code == status, told.text
    assert told.headers["access-control-allow-origin"] == APP
    exposed = told.headers["access-control-expose-headers"].split(", ")
    assert {"x-request-id", "request-id"} <= set(exposed)
    hidden = {"content-length", "content-type", "date", "server", "vary"}
    assert {it for it in told.headers if not it.startswith("access-control")} - hidden == set(
        exposed
    )
    asked["headers"].pop("Origin")
    assert "access-control-allow-origin" not in open_to_app.client.request(**asked).headers


def allowed_origin(data: bytes) -> str | None:
    found = re.search(rb"(?i)access-control-allow-origin: (.*)\r\n", data)
    return None if found is None else found[1].decode()


def test_errors_of_a_connection_can_be_read_by_a_page(open_to_app: Serving) -> None:
    origin = f"Origin: {APP}"
    malformed = exchange(open_to_app, request("/healthz", "No colon", origin))
    assert (malformed.status, allowed_origin(malformed.data)) == (400, APP)
    assert malformed.error()["code"] == "invalid_http"
    late = exchange(open_to_app, request("/healthz", origin)[:-2])
    assert (late.status, allowed_origin(late.data)) == (408, APP)
    stranger = exchange(open_to_app, request("/healthz", "No colon", f"Origin: {OTHER}"))
    assert (stranger.status, allowed_origin(stranger.data)) == (400, None)


def test_one_too_many_can_be_read_by_a_page(tiny_q8: Path, tmp_path: Path) -> None:
    config = tmp_path / "server.toml"
    config.write_text(f'origins = ["{APP}"]\nconnections = 8\nhead_s = 600')
    serving = Serving(tmp_path / "data", "--model", f"tiny={tiny_q8}", "--config", str(config))
    serving.client.close()  # it keeps a connection
    assert eventually(lambda: exchange(serving, request("/healthz")).status == 200)
    host, _, port = serving.url.removeprefix("http://").partition(":")
    held = [socket.create_connection((host, int(port)), 10) for _ in range(8)]
    try:
        refused = exchange(serving, request("/healthz", f"Origin: {APP}"))
        silent = exchange(serving, b"")
    finally:
        for it in held:
            it.close()
    assert (refused.status, allowed_origin(refused.data)) == (503, APP)
    assert b"access-control-expose-headers: retry-after" in refused.data.lower()
    assert (silent.status, allowed_origin(silent.data)) == (503, None)
    assert eventually(lambda: exchange(serving, request("/healthz")).status == 200)
    assert serving.stop() == 0


def test_limits_of_a_key_can_be_read_by_a_page(tiny_q8: Path, tmp_path: Path) -> None:
    key = new_key(tmp_path / "keys", "ada", KeyLimits.parse(["rpm=1"]))
    options = ("--keys", str(tmp_path / "keys"), "--origins", "*", "--log-format", "json")
    serving = Serving(
        tmp_path / "data", "--model", f"tiny={tiny_q8}", *options, "--proxies", "127.0.0.1"
    )
    heads = {"Authorization": f"Bearer {key}", "Origin": "null"}
    sources = ("198.51.100.9, 203.0.113.7", 'a"b, <>')
    told = [
        serving.client.get("/v1/models", headers={**heads, "X-Forwarded-For": it}) for it in sources
    ]
    assert [it.status_code for it in told] == [200, 429]
    assert told[1].headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in told[1].headers
    exposed = told[1].headers["access-control-expose-headers"].split(", ")
    assert {"retry-after", "x-ratelimit-remaining-requests"} <= set(exposed)
    assert serving.stop() == 0
    assert [it["client"] for it in requests(serving)] == ["203.0.113.7", None]


def test_nobody_is_believed_who_another_client_is(open_to_app: Serving) -> None:
    heads = {"X-Forwarded-For": "203.0.113.7", "X-Request-ID": "claims"}
    assert open_to_app.client.get("/v1/models", headers=heads).status_code == 200

    def told() -> list[str | None]:
        return [it["client"] for it in requests(open_to_app) if it["id"] == "claims"]

    assert eventually(lambda: bool(told()))  # a line is written once its answer is sent
    assert told() == ["127.0.0.1"]


def test_the_page_works_below_a_prefix() -> None:
    folder = Path(page.__file__).parent
    text = "".join(it.read_text() for it in folder.iterdir() if it.suffix in (".html", ".js"))
    assert re.findall(r"""["'`](v1/agents|metrics)\b""", text)
    assert not re.search(r"""["'`]/[a-z]""", text), "an address that leaves the prefix"
