"""Three servers over one bucket: any takes any agent, whatever befalls the others.

`make test-cluster` runs the long form: for CLUSTER_SECONDS (600) from CLUSTER_SEED on, with
CLUSTER_AGENTS (1000) and CLUSTER_CLIENTS (64), on machines with addresses of their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import httpx
import pytest

from isthmus.server.keys.keys import new_key
from tests.server.bucket import NAME, Bucket
from tests.server.cluster import (
    Client,
    Fate,
    Ground,
    Member,
    OwnGround,
    calm_histories,
    histories,
)
from tests.server.network import Network, NotPermitted
from tests.server.test_agents import new_agent

LEASE_S = 3.0
SECONDS = float(os.environ.get("CLUSTER_SECONDS", "600"))
N_AGENTS = int(os.environ.get("CLUSTER_AGENTS", "1000"))
N_CLIENTS = int(os.environ.get("CLUSTER_CLIENTS", "64"))
SEED = int(os.environ.get("CLUSTER_SEED", "1"))


@pytest.fixture
def url(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{NAME}/{request.node.name}"


class Cluster:
    def __init__(
        self, bucket: Bucket, url: str, folder: Path, model: Path, grounds: list[Ground]
    ) -> None:
        self.members = [
            Member(bucket, url, folder / f"member-{n}", model, LEASE_S, ground=ground)
            for n, ground in enumerate(grounds)
        ]

    def stop(self) -> None:
        for member in self.members:
            assert member.stop() == 0


@contextlib.contextmanager
def apart(folder: Path) -> Iterator[tuple[Bucket, list[Ground]]]:
    """A bucket and the grounds of three servers, each on a machine with an address of its own; on
    this machine's loopback if the system permits no network namespaces."""
    with contextlib.ExitStack() as stack:
        try:
            network = Network()
        except NotPermitted as error:
            print(f"\nno network namespaces here ({error}): all are on the loopback, with wires")
            bucket = stack.enter_context(contextlib.closing(Bucket()))
            yield bucket, [Ground(bucket, wired=True) for _ in range(3)]
            return
        stack.callback(network.close)
        machines = [network.machine(host) for host in (1, 2, 3)]
        bucket = stack.enter_context(contextlib.closing(Bucket(network.machine(100))))
        print(
            f"\nin network namespaces: {', '.join(it.address for it in machines)}, and the bucket"
        )
        keys, grounds = folder / "keys", []
        key = new_key(keys, "tests")
        for machine in machines:
            others = [it for it in machines if it is not machine]
            grounds.append(OwnGround(bucket, machine, others, keys, key))
        yield bucket, list(grounds)


def withstand(
    members: list[Member], n_agents: int, n_clients: int, blows: Iterable[str | None], most: int
) -> tuple[list[int], list[list[tuple[str, str]]]]:
    """Tells all agents messages while blows fall; what each was told, and what is left of it."""
    clients = [Client(members, range(n, n_agents, n_clients), SEED + n) for n in range(n_clients)]
    for client in clients:
        client.begin(most)
    while not all(client.seconds for client in clients if client.is_alive):
        time.sleep(0.05)
    fate, start = Fate(members, SEED, LEASE_S), time.monotonic()
    for what in blows:
        if any(it.is_alive for it in clients):
            fate.strike(what)
            time.sleep(0.5)
    for client in clients:
        client.end()
    for client in clients:
        client.join()
    tell_of(clients, fate, time.monotonic() - start)
    ids = {number: id_ for it in clients for number, id_ in it.ids.items()}
    n_told = {number: n for it in clients for number, n in it.n_told.items()}
    ordered = [ids[number] for number in range(n_agents)]
    found = histories(members[0].url, ordered, members[0].ground.headers)
    for client in clients:
        for (number, position), output in client.told.items():
            assert found[number][position][1] == output
    assert sum(fate.met.values()) > 0
    return [n_told[number] for number in range(n_agents)], found


def tell_of(clients: list[Client], fate: Fate, seconds: float) -> None:
    """Prints what a run was."""
    met = sum((it.met for it in clients), Counter())
    took = sorted(second for it in clients for second in it.seconds)
    print(
        f"\n{sum(len(it.ids) for it in clients)} agents, {len(clients)} clients, {len(took)} "
        f"messages, {seconds:.0f} s of blows {dict(fate.met)}; answers {dict(met)}; a message took "
        f"{took[len(took) // 2]:.2f} s (median), {took[len(took) * 99 // 100]:.1f} s (99 of 100), "
        f"{took[-1]:.1f} s (longest), with a lease of {LEASE_S} s"
    )


def test_a_short_life_with_blows(bucket: Bucket, url: str, tiny_q8: Path, tmp_path: Path) -> None:
    grounds = [Ground(bucket, wired=True) for _ in range(3)]
    cluster = Cluster(bucket, url, tmp_path, tiny_q8, grounds)
    blows = ["part", "clock", "cut", "kill", "stop"]
    n_told, found = withstand(cluster.members, 12, 6, blows, most=8)
    cluster.stop()
    assert found == calm_histories(tmp_path / "calm", tiny_q8, n_told)


@pytest.mark.long
def test_a_long_life_with_blows(
    tiny_q8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with apart(tmp_path) as (bucket, grounds):
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        cluster = Cluster(bucket, f"s3://{NAME}/long", tmp_path, tiny_q8, grounds)
        end = time.monotonic() + SECONDS
        blows = iter(lambda: None if time.monotonic() < end else "over", "over")
        n_told, found = withstand(cluster.members, N_AGENTS, N_CLIENTS, blows, most=1000)
        cluster.stop()
    assert [len(it) for it in found] == n_told
    assert found == calm_histories(tmp_path / "calm", tiny_q8, n_told)


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
    cluster = Cluster(bucket, url, tmp_path, tiny_q8, [Ground(bucket), Ground(bucket)])
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
    cluster = Cluster(bucket, url, tmp_path, tiny_q8, [Ground(bucket), Ground(bucket)])
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
