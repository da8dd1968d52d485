"""Keys: what their file holds, and what their owners may use."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import openai
import pytest

from isthmus.errors import SettingsError
from isthmus.server.http.entry import Entry
from isthmus.server.http.errors import HttpError
from isthmus.server.http.key import Key, KeyLimits
from isthmus.server.keys.guard import FREE
from isthmus.server.keys.keys import Keys, new_key, read_keys, remove_key
from isthmus.server.keys.quota import Quotas
from tests.patience import eventually
from tests.server.conftest import Serving

DAY_S = 86_400


class Clock:
    def __init__(self) -> None:
        self.now = 1000 * DAY_S + 3600.0

    def __call__(self) -> float:
        return self.now


def spent(quotas: Quotas, key: Key, n_in: int = 0, n_out: int = 0) -> None:
    entry = Entry("id", "POST", "/v1/x")
    with quotas.spending(key, entry):
        entry.tokens_in, entry.tokens_out = n_in, n_out


def refused(quotas: Quotas, key: Key) -> HttpError:
    with pytest.raises(HttpError) as caught, quotas.spending(key, Entry("id", "GET", "/v1/x")):
        pass
    assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
    return caught.value


# ---------------------------------------------------------------------------------- the file


def test_limits_are_kept_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    limits = KeyLimits.parse(["rpm=60", "tpd=1000", "agents=0"])
    key = new_key(file, "ada", limits)
    new_key(file, "bob")
    assert [(it.name, it.limits) for it in read_keys(file)] == [
        ("ada", limits),
        ("bob", KeyLimits()),
    ]
    found = Keys(file).find(key)
    assert found is not None
    assert str(found.limits) == "rpm=60 tpd=1000 agents=0"


def test_a_file_without_limits_stays_valid(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\n\nada {'A' * 64}\nada {'b' * 64}  # another of hers")
    assert [it.digest for it in read_keys(file)] == ["a" * 64, "b" * 64]
    new_key(file, "bob")  # the last line had no end
    assert [it.name for it in read_keys(file)] == ["ada", "ada", "bob"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("ada", "give NAME SHA256"),
        ("ada 123", "give NAME SHA256"),
        (f"ada {'g' * 64}", "give NAME SHA256"),
        (f"ada {'a' * 64} rpm", "'rpm' is no limit: give rpm= a whole number, 1 or more"),
        (f"ada {'a' * 64} rpm=0", "1 or more"),
        (f"ada {'a' * 64} rpm=x", "a whole number"),
        (f"ada {'a' * 64} disk=1GB", "'disk=1GB' is no limit: give disk= a whole number of bytes"),
        (f"ada {'a' * 64} models=2", "'models=2' is no limit: give models=1, or models=0"),
        (f"ada {'a' * 64} metrics=yes", "give metrics=1, or metrics=0"),
        (f"ada {'a' * 64} speed=1", "concurrent=N, rpm=N, tpd=N, agents=N, disk=N, metrics=N"),
        (f"ada {'a' * 64} rpm=1 rpm=2", "once at most"),
        (f"bob {'a' * 64} rpm=7", "bob has other limits in a line before"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "keys"
    file.write_text(f"bob {'c' * 64}\n{line}\n")
    with pytest.raises(SettingsError) as caught:
        Keys(file)
    assert str(caught.value).startswith(f"{file}, line 2: ")
    assert said in str(caught.value)


def test_what_is_no_file_of_keys(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot read the keys"):
        Keys(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="it is no text"):
        Keys(tmp_path / "binary")


def test_removing_leaves_all_else(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    new_key(file, "ada")
    with pytest.raises(SettingsError, match="a key of ada already"):
        new_key(file, "ada")
    before = "# the team\n" + file.read_text()
    file.write_text(before)
    new_key(file, "bob", KeyLimits(rpm=3))
    remove_key(file, "bob")
    assert file.read_text() == before
    assert file.stat().st_mode & 0o077 == 0
    with pytest.raises(SettingsError, match="no key of bob; it has ada"):
        remove_key(file, "bob")


def test_it_is_read_again_when_it_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys"
    ada = new_key(file, "ada")
    keys = Keys(file)
    bob = new_key(file, "bob")
    assert keys.find(bob) is not None
    remove_key(file, "ada")
    assert keys.find(ada) is None
    good = file.read_text()
    file.write_text("what is this\n")
    assert keys.find(bob) is not None  # a mistake locks nobody out
    assert keys.find(bob) is not None
    assert caplog.text.count("the keys stay what they were") == 1
    file.write_text(good + f"ada {'a' * 64}\n")
    file.unlink()
    assert keys.find(bob) is not None


def test_by_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"

    def serve(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "isthmus", "serve", "--keys", str(file), *options]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    made = serve("--new-key", "ada", "--limit", "rpm=60", "--limit", "agents=2")
    assert (made.returncode, made.stdout[:4]) == (0, "isk-")
    assert serve("--new-key", "bob").returncode == 0
    listed = serve("--list-keys").stdout
    assert [line.split()[0] for line in listed.splitlines()[2:]] == ["ada", "bob"]
    assert "rpm=60 agents=2" in listed
    assert made.stdout.strip() not in listed
    assert serve("--remove-key", "bob").returncode == 0
    assert [it.name for it in read_keys(file)] == ["ada"]
    for options, said in (
        (("--new-key", "cy", "--limit", "speed=3"), "'speed=3' is no limit"),
        (("--limit", "rpm=3"), "give --new-key NAME too"),
        (("--remove-key", "zoe"), "no key of zoe; it has ada"),
    ):
        done = serve(*options)
        assert done.returncode == 2
        assert said in done.stderr
    assert [it.name for it in read_keys(file)] == ["ada"]


# ---------------------------------------------------------------------------------- the limits


def test_requests_at_a_time(tmp_path: Path) -> None:
    quotas = Quotas(tmp_path / "usage.json", Clock())
    key = Key("ada", "", KeyLimits(concurrent=2))
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(quotas.spending(key, Entry("id", "GET", "/")))
        assert refused(quotas, key).retry_s == 1
        spent(quotas, Key("bob", "", KeyLimits(concurrent=1)))
    spent(quotas, key)


def test_requests_a_minute(tmp_path: Path) -> None:
    clock = Clock()
    quotas = Quotas(tmp_path / "usage.json", clock)
    key = Key("ada", "", KeyLimits(rpm=3))
    for _ in range(3):
        spent(quotas, key)
        clock.now += 10
    assert refused(quotas, key).retry_s == 30
    headers = quotas.headers(key)
    assert headers["x-ratelimit-limit-requests"] == "3"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"] == "30.000s"
    clock.now += 30
    spent(quotas, key)
    assert refused(quotas, key).retry_s == 10


def test_tokens_a_day(tmp_path: Path) -> None:
    clock = Clock()
    quotas = Quotas(tmp_path / "usage.json", clock)
    key = Key("ada", "", KeyLimits(tpd=100))
    spent(quotas, key, 60, 39)
    assert quotas.headers(key)["x-ratelimit-remaining-tokens"] == "1"
    spent(quotas, key, 60, 39)  # what begins below the limit is finished
    error = refused(quotas, key)
    assert (error.kind, error.retry_s) == ("tokens", DAY_S - 3600)
    clock.now += DAY_S - 3600
    spent(quotas, key, 1)
    assert quotas.headers(key)["x-ratelimit-remaining-tokens"] == "99"


def test_a_restart_forgets_nothing_that_was_saved(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "usage.json"
    key = Key("ada", "", KeyLimits(tpd=100))
    quotas = Quotas(path, clock)
    spent(quotas, key, 100)
    asyncio.run(quotas.save())
    refused(Quotas(path, clock), key)
    clock.now += DAY_S
    spent(Quotas(path, clock), key)
    path.write_text("{")
    with pytest.raises(SettingsError, match="counts the tokens of keys"):
        Quotas(path, clock)


@pytest.fixture
def serving(
    tiny_long: Path, tmp_path: Path
) -> Iterator[Callable[..., tuple[Serving, httpx.Client]]]:
    """Starts a server with a key of such limits; gives it and a client that has the key."""
    started: list[tuple[Serving, httpx.Client]] = []

    def start(*limits: str, n_ctx: int = 1024) -> tuple[Serving, httpx.Client]:
        keys = tmp_path / "keys"
        key = new_key(keys, "ada", KeyLimits.parse(limits))
        options = ("--model", f"tiny={tiny_long}", "--n-ctx", str(n_ctx), "--keys", str(keys))
        server = Serving(tmp_path / "data", *options)
        headers = {"Authorization": f"Bearer {key}"}
        client = httpx.Client(base_url=server.url, headers=headers, timeout=60)
        started.append((server, client))
        return started[-1]

    yield start
    for server, client in started:
        client.close()
        assert server.stop() == 0


def test_429_as_openais_clients_know_it(
    serving: Callable[..., tuple[Serving, httpx.Client]],
) -> None:
    server, client = serving("rpm=2")
    first = client.get("/v1/models")
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert client.get("/metrics").status_code == 403  # it counts what others do
    client.get("/v1/models")
    refused = client.get("/v1/models")
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
    key = client.headers["authorization"].partition(" ")[2]
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as ours,
        pytest.raises(openai.RateLimitError, match="2 requests a minute"),
    ):
        ours.models.list()


def test_requests_of_every_api_count(
    serving: Callable[..., tuple[Serving, httpx.Client]],
) -> None:
    _, client = serving("rpm=3")
    for left, path in ((2, "/v1/models"), (1, "/api/tags"), (0, "/api/version")):
        assert client.get(path).headers["x-ratelimit-remaining-requests"] == str(left)
    for path in ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/api/chat"):
        assert client.post(path, json={}).status_code == 429
    described = client.get("/openapi.json").json()["paths"]
    needing_a_key = {
        path for path, it in described.items() if any("security" in each for each in it.values())
    }
    assert len(needing_a_key) > 20
    assert needing_a_key & {*FREE} == {"/metrics", "/v1/activity"}


def test_tokens_outlive_a_restart(serving: Callable[..., tuple[Serving, httpx.Client]]) -> None:
    server, client = serving("tpd=20")
    body = {"model": "tiny", "prompt": "hello", "max_tokens": 30, "ignore_eos": True}
    done = client.post("/v1/completions", json=body).json()
    remaining = client.get("/v1/models").headers["x-ratelimit-remaining-tokens"]
    assert done["usage"]["total_tokens"] > 20
    assert remaining == "0"
    assert client.post("/v1/completions", json=body).status_code == 429
    assert server.stop() == 0
    server.start()
    with httpx.Client(base_url=server.url, headers=client.headers) as again:
        refused = again.post("/v1/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "tokens")


def test_a_stream_that_is_left_is_counted(
    serving: Callable[..., tuple[Serving, httpx.Client]],
) -> None:
    _, client = serving("tpd=100000")
    body = {
        "model": "tiny",
        "prompt": "hello",
        "max_tokens": 900,
        "ignore_eos": True,
        "stream": True,
    }
    with client.stream("POST", "/v1/completions", json=body) as stream:
        next(stream.iter_lines())

    def left() -> int:
        return int(client.get("/v1/models").headers["x-ratelimit-remaining-tokens"])

    assert eventually(lambda: left() < 100000)
    assert left() > 99000


def test_requests_at_a_time_of_a_server(
    serving: Callable[..., tuple[Serving, httpx.Client]],
) -> None:
    _, client = serving("concurrent=1", n_ctx=60_000)
    body = {
        "model": "tiny",
        "prompt": "hello",
        "max_tokens": 59_000,  # more than any machine has said when the next request comes
        "ignore_eos": True,
        "stream": True,
        "n": 4,
        "logprobs": 5,
    }
    with client.stream("POST", "/v1/completions", json=body) as stream:
        assert stream.status_code == 200
        lines = stream.iter_lines()  # one that nobody holds any more closes the stream
        next(lines)
        refused = client.get("/v1/models")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert eventually(lambda: client.get("/v1/models").status_code == 200)


def test_agents_of_a_key(serving: Callable[..., tuple[Serving, httpx.Client]]) -> None:
    server, client = serving("agents=2")
    made = client.post("/v1/agents", json={"name": "one"}).json()
    assert made["owner"] == "ada"
    results: list[int] = []

    def fork() -> None:
        results.append(client.post(f"/v1/agents/{made['id']}/fork", json={}).status_code)

    threads = [threading.Thread(target=fork) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [201, 429, 429, 429]
    file = client.get(f"/v1/agents/{made['id']}/snapshot").content
    refused = client.post("/v1/agents/restore", content=file)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_agents")
    assert refused.headers["x-should-retry"] == "false"  # waiting does not help
    assert client.delete(f"/v1/agents/{made['id']}").status_code == 200
    assert client.post("/v1/agents/restore", content=file).status_code == 201
    assert server.stop() == 0
    server.start()
    with httpx.Client(base_url=server.url, headers=client.headers) as again:
        assert again.post("/v1/agents", json={}).status_code == 429


def test_keys_change_under_a_running_server(
    serving: Callable[..., tuple[Serving, httpx.Client]], tmp_path: Path
) -> None:
    _, client = serving()
    body = {"model": "tiny", "prompt": "hello", "max_tokens": 300, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as stream:
        lines = stream.iter_lines()
        next(lines)
        remove_key(tmp_path / "keys", "ada")
        assert client.get("/v1/models").status_code == 401
        assert list(lines)[-2:] == ["data: [DONE]", ""]  # what had begun is finished
    bob = new_key(tmp_path / "keys", "bob")
    headers = {"Authorization": f"Bearer {bob}"}
    assert client.get("/v1/models", headers=headers).status_code == 200
