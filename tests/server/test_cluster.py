"""Three servers over one bucket: any takes any agent, whatever befalls the others.

`make test-cluster` runs the long form, for CLUSTER_SECONDS (300), from CLUSTER_SEED on.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from isthmus.server.keys.keys import new_key
from tests.server.bucket import NAME, Bucket
from tests.server.cluster import Client, Fate, Member, calm_histories, histories
from tests.server.test_agents import new_agent

LEASE_S = 3.0
SECONDS = float(os.environ.get("CLUSTER_SECONDS", "300"))
SEED = int(os.environ.get("CLUSTER_SEED", "1"))


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    bucket = Bucket()
    yield bucket
    bucket.close()


@pytest.fixture
def url(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{NAME}/{request.node.name}"


class Cluster:
    def __init__(
        self,
        bucket: Bucket,
        url: str,
        folder: Path,
        model: Path,
        n: int = 3,
        *,
        wired: bool = False,
    ) -> None:
        folders = [folder / f"member-{it}" for it in range(n)]
        self.members = [Member(bucket, url, it, model, LEASE_S, wired=wired) for it in folders]

    def stop(self) -> None:
        for member in self.members:
            assert member.stop() == 0


def withstand(
    cluster: Cluster, expected: list[list[tuple[str, str]]], n_clients: int, blows: list[str | None]
) -> None:
    """Tells all agents all messages while blows fall, and compares."""
    members, n_messages = cluster.members, len(expected[0])
    ids = [new_agent(members[n % 3], seed=n) for n in range(len(expected))]
    numbered = list(enumerate(ids))
    clients = [Client(members, dict(numbered[n::n_clients]), SEED + n) for n in range(n_clients)]
    fate = Fate(members, SEED, LEASE_S)
    for client in clients:
        client.begin(n_messages)
    for what in blows:
        if any(it.is_alive for it in clients):
            fate.strike(what)
            time.sleep(0.5)
    for client in clients:
        client.join()
    met = sum((it.met for it in clients), Counter())
    longest = max(it.longest_s for it in clients)
    print(f"\n{dict(fate.met)}, {dict(met)}, longest {longest:.1f} s with a lease of {LEASE_S} s")
    found = histories(members[0].url, ids)
    assert found == expected
    for client in clients:
        for (id_, position), output in client.told.items():
            assert found[ids.index(id_)][position][1] == output
    assert sum(fate.met.values()) > 0


def test_a_short_life_with_blows(bucket: Bucket, url: str, tiny_q8: Path, tmp_path: Path) -> None:
    expected = calm_histories(tmp_path / "calm", tiny_q8, n_agents=12, n_messages=8)
    cluster = Cluster(bucket, url, tmp_path, tiny_q8, wired=True)
    withstand(cluster, expected, n_clients=6, blows=["part", "clock", "cut", "kill", "stop"])
    cluster.stop()


@pytest.mark.long
def test_a_long_life_with_blows(bucket: Bucket, url: str, tiny_q8: Path, tmp_path: Path) -> None:
    n_agents = max(16, round(0.4 * SECONDS))
    expected = calm_histories(tmp_path / "calm", tiny_q8, n_agents, n_messages=12)
    cluster = Cluster(bucket, url, tmp_path, tiny_q8, wired=True)
    withstand(cluster, expected, n_clients=16, blows=[None] * round(SECONDS / 5))
    cluster.stop()


def hears_pieces(owner: Member, other: Member) -> None:
    """That server passes on what the owner of an agent says while it is said."""
    spoken = {"grammar": "root ::= [a-z ] root", "max_tokens": "400"}  # all of them are said
    long = f"/v1/agents/{new_agent(owner, seed=6, args=spoken)}"
    with other.client.stream(
        "POST", f"{long}/messages", json={"input": "x", "stream": True}
    ) as stream:
        events = [json.loads(it[6:]) for it in stream.iter_lines() if it.startswith("data: ")]
    deltas = [it["text"] for it in events if "text" in it]
    assert len(deltas) > 1  # as they are said, and not the whole at its end
    assert "".join(deltas) == owner.get(long)["turns"][0]["output"]
    assert other.client.delete(long).is_success


def test_any_server_takes_any_agent(
    bucket: Bucket, url: str, tiny_q8: Path, tmp_path: Path
) -> None:
    cluster = Cluster(bucket, url, tmp_path, tiny_q8, n=2)
    one, two = cluster.members
    id_ = new_agent(one, seed=5)
    path = f"/v1/agents/{id_}"
    assert two.post(f"{path}/messages", {"input": "one"})["position"] == 1
    assert [it["id"] for it in two.get("/v1/agents")["data"]] == [id_]
    assert two.get(path)["turns"] == one.get(path)["turns"]
    body = {"input": "two", "stream": True}
    with two.client.stream("POST", f"{path}/messages", json=body) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        said = stream.read().decode()
    assert "event: done" in said
    hears_pieces(one, two)
    fork = two.post(f"{path}/fork", {"position": 1})["id"]
    assert one.post(f"/v1/agents/{fork}/messages", {"input": "x"})["position"] == 2
    assert two.client.get("/v1/agents/aaaaaaaaaaaa").status_code == 404
    listed = two.get("/v1/servers")["data"]
    assert [it["this"] for it in listed] == [True, False]
    assert len({it["kind"] for it in listed}) == 1
    refused = two.client.post(f"{path}/messages", json={"input": "x", "previous": 1})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "position")

    asked = {"model": "tiny", "input": "Hello", "max_output_tokens": 8, "ignore_eos": True}
    first = one.post("/v1/responses", asked)
    second = two.post("/v1/responses", {**asked, "previous_response_id": first["id"]})
    assert two.get(f"/v1/responses/{first['id']}")["output"] == first["output"]
    assert len(one.get(f"/v1/responses/{second['id']}/input_items")["data"]) == 3

    one.kill()
    start = time.monotonic()
    assert two.post(f"{path}/messages", {"input": "three", "previous": 2})["position"] == 3
    print(f"took over after {time.monotonic() - start:.1f} s with a lease of {LEASE_S} s")
    assert two.client.delete(path).status_code == 200
    one.start()
    assert [it["id"] for it in one.get("/v1/agents")["data"]] == [fork]
    cluster.stop()


def test_what_only_an_ancestor_was_is_forked_by_the_server_that_owns_it(
    bucket: Bucket, url: str, tiny_q8: Path, tmp_path: Path
) -> None:
    """Ancestor and fork have different owners, and either server may be asked."""
    cluster = Cluster(bucket, url, tmp_path, tiny_q8, n=2)
    one, two = cluster.members
    id_ = new_agent(one, seed=5)
    path = f"/v1/agents/{id_}"
    for text in ("one", "two"):
        one.post(f"{path}/messages", {"input": text})
    fork = one.post(f"{path}/fork", {"args": {"max_tokens": "9"}})["id"]
    one.kill()
    assert two.post(f"/v1/agents/{fork}/messages", {"input": "x"})["position"] == 3
    one.start()  # and finds that it owns nothing any more
    assert one.post(f"{path}/messages", {"input": "three"})["position"] == 3
    for member in (one, two):
        early = member.post(f"/v1/agents/{fork}/fork", {"position": 1})
        assert early["origin"] == {"id": id_, "position": 1}
        assert early["args"] == {**one.get(path)["args"], "max_tokens": "9"}
        assert early["name"] == f"{one.get(path)['name'] or id_}, forked, forked"
        assert [it["input"] for it in early["turns"]] == ["one"]
        assert two.post(f"/v1/agents/{early['id']}/messages", {"input": "x"})["position"] == 2
    told = two.client.get(path, headers={"X-Isthmus-Redirect": "1"})
    assert (told.status_code, told.headers["location"]) == (307, one.url + path)
    cluster.stop()


def test_keys_are_checked_where_a_request_comes_and_never_passed_on(
    bucket: Bucket, url: str, tiny_q8: Path, tmp_path: Path
) -> None:
    keys = [tmp_path / "keys-1", tmp_path / "keys-2"]
    ada, bob = new_key(keys[0], "ada"), new_key(keys[0], "bob")
    keys[1].write_text(keys[0].read_text())
    members = [Keyed(bucket, url, tmp_path / f"member-{n}", tiny_q8, keys[n]) for n in range(2)]
    one, two = members
    made = httpx.post(f"{one.url}/v1/agents", json={"args": {"max_tokens": "4"}}, headers=of(ada))
    assert made.status_code == 201, made.text
    path = f"/v1/agents/{made.json()['id']}"
    assert httpx.get(two.url + path, headers=of(ada)).json()["owner"] == "ada"
    assert httpx.get(two.url + path, headers=of(bob)).status_code == 404
    assert httpx.get(two.url + path).status_code == 401
    for heads in ({"x-isthmus-peer": "x", "x-isthmus-key": "ada"}, {"x-isthmus-peer": ""}):
        assert httpx.get(one.url + path, headers=heads).status_code == 421
    assert httpx.get(one.url + path, headers={"x-isthmus-key": "ada"}).status_code == 401
    new_key(keys[1], "eve")
    eve = new_key(keys[1], "eve-2")
    refused = httpx.get(two.url + path, headers=of(eve))
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "keys")
    for member in members:
        assert member.stop() == 0


def of(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


class Keyed(Member):
    def __init__(self, bucket: Bucket, url: str, folder: Path, model: Path, keys: Path) -> None:
        self._keys = keys
        super().__init__(bucket, url, folder, model, LEASE_S)

    def start(self) -> None:
        if "--keys" not in self.options:
            self.options = (*self.options, "--keys", str(self._keys))
        super().start()
