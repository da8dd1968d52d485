"""Several servers over one bucket, what befalls them, and clients that talk to any of them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from tests.server.bucket import Bucket, Wire
from tests.server.conftest import Serving
from tests.server.network import Cut, Machine
from tests.server.test_agents import new_agent

PATIENCE_S = 300.0
"""Seconds after which a client gives up: many leases, and as many agents in a queue."""
LIVE = 400
"""Agents that a member keeps in memory."""

CLOCK = """
import os, signal, time
_time, _moved = time.time, [0.0]
def _move(*_):
    with open(os.environ["CLUSTER_CLOCK"]) as file:
        _moved[0] = float(file.read())
time.time = lambda: _time() + _moved[0]
time.time_ns = lambda: int(time.time() * 1e9)
signal.signal(signal.SIGUSR2, _move)
_move()
"""
"""Makes the clock of a server's process one that can be moved while it runs."""


class Ground:
    """Where a member runs: on this machine's loopback, with a wire to the bucket and one by which
    the others come, which also connects while nobody is there."""

    prefix: tuple[str, ...] = ()
    """What a command begins with that is to run there."""

    def __init__(self, bucket: Bucket, *, wired: bool = False) -> None:
        """`wired` has the others come by the wire."""
        self.wire: Any = Wire(bucket.port)
        self.inbound: Any = Wire()
        self.store = f"http://127.0.0.1:{self.wire.port}"
        by_wire = ("--advertise", f"http://127.0.0.1:{self.inbound.port}")
        self.options: tuple[str, ...] = by_wire if wired else ()
        self.headers: dict[str, str] = {}
        """What clients say."""

    def listens_at(self, port: int) -> None:
        """Tells where the member came to listen."""
        self.inbound.to = port


class OwnGround(Ground):
    """A machine with an address of its own; what is cut falls silent."""

    def __init__(
        self, bucket: Bucket, machine: Machine, others: list[Machine], keys: Path, key: str
    ) -> None:
        assert bucket.machine is not None
        self.prefix = machine.prefix
        self.wire = Cut(machine, [bucket.machine])
        self.inbound = Cut(machine, others)
        self.store = bucket.environment["AWS_ENDPOINT_URL"]
        self.options = ("--host", machine.address, "--keys", str(keys))
        self.headers = {"Authorization": f"Bearer {key}"}

    def listens_at(self, port: int) -> None:
        pass


class Member(Serving):
    """A server with a cache, a ground that it runs on, and a clock of its own."""

    def __init__(
        self,
        bucket: Bucket,
        url: str,
        folder: Path,
        model: Path,
        lease_s: float,
        *,
        ground: Ground | None = None,
    ) -> None:
        folder.mkdir()
        config = folder / "server.toml"
        config.write_text(f'data = "{url}"\nlease_s = {lease_s}\nn_ctx = 1024\nlive = {LIVE}\n')
        self.ground = ground or Ground(bucket)
        self.wire, self.inbound = self.ground.wire, self.ground.inbound
        self.prefix = self.ground.prefix
        self._clock = folder / "clock"
        self._clock.write_text("0")
        (folder / "sitecustomize.py").write_text(CLOCK)
        super().__init__(
            folder / "unused",
            *("--data", url, "--cache", str(folder / "cache"), "--model", f"tiny={model}"),
            *("--config", str(config), *self.ground.options),
            environment={
                "AWS_ENDPOINT_URL": self.ground.store,
                "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
                "CLUSTER_CLOCK": str(self._clock),
            },
        )

    def start(self) -> None:
        super().start()
        self.client.headers.update(self.ground.headers)
        self.ground.listens_at(int(self.url.rpartition(":")[2]))

    def move_clock(self, seconds: float) -> None:
        """Has its clock be so far ahead of ours from now on."""
        self._clock.write_text(str(seconds))
        self.signal(signal.SIGUSR2)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)


class Fate:
    """What befalls the members, one after another, by a seed."""

    def __init__(self, members: list[Member], seed: int, lease_s: float) -> None:
        self._members = members
        self._chance = random.Random(seed)
        self._lease_s = lease_s
        self.met: Counter[str] = Counter()

    def strike(self, what: str | None = None) -> None:
        """One blow, and its end."""
        what = what or self._chance.choice(["kill", "stop", "pause", "cut", "part", "clock"])
        member = self._chance.choice(self._members)
        self.met[what] += 1
        if what == "kill":
            member.kill()
            time.sleep(self._chance.uniform(0, 1.5 * self._lease_s))
            member.start()
        elif what in ("stop", "pause"):  # longer than the lease, or shorter
            member.signal(signal.SIGSTOP)
            longest = 2.0 if what == "stop" else 0.5
            time.sleep(self._lease_s * self._chance.uniform(longest / 2, longest))
            member.signal(signal.SIGCONT)
        elif what == "clock":
            member.move_clock(self._chance.uniform(-1, 1) * 86400)
        else:  # from the store, or from the other servers
            wire = member.wire if what == "cut" else member.inbound
            wire.cut()
            time.sleep(self._lease_s * self._chance.uniform(0.2, 2.0))
            wire.mend()


class Client:
    """Has some agents, and tells each of them one message after another, by any server."""

    def __init__(self, members: list[Member], numbers: Iterable[int], seed: int) -> None:
        self._members = members
        self._numbers = list(numbers)
        self._chance = random.Random(seed)
        self.ids: dict[int, str] = {}
        """The agents that it has made, by their numbers."""
        self.n_told = dict.fromkeys(self._numbers, 0)
        """Messages that each was told."""
        self.told: dict[tuple[int, int], str] = {}
        """The answers that were acknowledged, by number and position."""
        self.met: Counter[str] = Counter()
        self.seconds: list[float] = []
        """What each message took, with all that was tried."""
        self.error: BaseException | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._live)

    def begin(self, most: int) -> None:
        """Goes on until `end`, and for `most` messages to each agent."""
        self._most = most
        self._thread.start()

    def end(self) -> None:
        """Has it tell each agent one message at least, and no more then."""
        self._ended.set()

    def join(self) -> None:
        self._thread.join()
        if self.error is not None:
            raise self.error

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def _live(self) -> None:
        try:
            for number in self._numbers:
                self.ids[number] = new_agent(self._chance.choice(self._members), seed=number)
            for position in range(self._most):
                for number in self._numbers:
                    if position and self._ended.is_set():
                        return
                    start = time.monotonic()
                    self._tell(number, position)
                    self.n_told[number] += 1
                    self.seconds.append(time.monotonic() - start)
        except BaseException as error:
            self.error = error

    def _tell(self, number: int, position: int) -> None:
        """Returns once the agent is at the next position."""
        id_, text = self.ids[number], text_of(number, position)
        end = time.monotonic() + PATIENCE_S
        while True:
            assert time.monotonic() < end, f"agent {id_} is stuck at {position}: {self.met}"
            try:
                body = {"input": text, "previous": position}
                said = self._ask("POST", f"/v1/agents/{id_}/messages", json=body)
            except httpx.TransportError as error:
                self.met[type(error).__name__] += 1
                time.sleep(0.1)
                continue
            self.met[str(said.status_code)] += 1
            if said.status_code == 200:
                assert said.json()["position"] == position + 1
                self.told[number, position] = said.json()["output"]
                return
            assert said.status_code in (409, 502, 503), said.text
            if said.status_code == 409 and said.json()["error"]["code"] == "quarantined":
                self._readmit(id_)  # three blows in a row met its owners
            elif said.status_code == 409:
                assert f"at {position + 1}, not" in said.text, said.text
                return  # it was done, and the answer got lost
            time.sleep(0.1)

    def _readmit(self, id_: str) -> None:
        self.met["quarantined"] += 1
        with contextlib.suppress(httpx.TransportError):
            self._ask("POST", f"/v1/agents/{id_}/readmit")

    def _ask(self, method: str, path: str, **how: Any) -> httpx.Response:
        member = self._chance.choice(self._members)
        return httpx.request(
            method, member.url + path, timeout=20, headers=member.ground.headers, **how
        )


def text_of(number: int, position: int) -> str:
    return f"{number} {position}"


def histories(
    url: str, ids: Iterable[str], headers: Mapping[str, str] | None = None
) -> list[list[tuple[str, str]]]:
    """What each agent was told and has answered."""
    found = []
    with httpx.Client(base_url=url, headers=headers, timeout=PATIENCE_S) as client:
        for id_ in ids:
            turns = client.get(f"/v1/agents/{id_}").json()["turns"]
            found.append([(turn["input"], turn["output"]) for turn in turns])
    return found


def calm_histories(folder: Path, model: Path, n_told: Sequence[int]) -> list[list[tuple[str, str]]]:
    """The same of one server that nothing befalls, for agents that are told so many messages
    each."""
    serving = Serving(folder, "--model", f"tiny={model}", "--n-ctx", "1024")

    def live(number: int) -> str:
        id_ = new_agent(serving, seed=number)
        for position in range(n_told[number]):
            serving.post(f"/v1/agents/{id_}/messages", {"input": text_of(number, position)})
        return id_

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(live, range(len(n_told))))
    found = histories(serving.url, ids)
    assert serving.stop() == 0
    return found
