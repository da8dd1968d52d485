"""Several servers over one bucket, what befalls them, and clients that talk to any of them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from tests.server.bucket import Bucket, Wire
from tests.server.conftest import Serving
from tests.server.test_agents import new_agent

PATIENCE_S = 120.0
"""Seconds after which a client gives up: many leases."""


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


class Member(Serving):
    """A server with a cache, a wire to the bucket, a wire by which the others reach it, and a clock
    of its own."""

    def __init__(
        self,
        bucket: Bucket,
        url: str,
        folder: Path,
        model: Path,
        lease_s: float,
        *,
        wired: bool = False,
    ) -> None:
        """`wired` has the others come by the wire, which also connects while nobody is there."""
        folder.mkdir()
        config = folder / "server.toml"
        config.write_text(f'data = "{url}"\nlease_s = {lease_s}\nn_ctx = 1024\n')
        self.wire, self.inbound = Wire(bucket.port), Wire()
        self._clock = folder / "clock"
        self._clock.write_text("0")
        (folder / "sitecustomize.py").write_text(CLOCK)
        super().__init__(
            folder / "unused",
            *("--data", url, "--cache", str(folder / "cache"), "--model", f"tiny={model}"),
            *("--config", str(config)),
            *(("--advertise", f"http://127.0.0.1:{self.inbound.port}") if wired else ()),
            environment={
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.wire.port}",
                "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
                "CLUSTER_CLOCK": str(self._clock),
            },
        )

    def start(self) -> None:
        super().start()
        self.inbound.to = int(self.url.rpartition(":")[2])

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

    def __init__(self, members: list[Member], agents: dict[int, str], seed: int) -> None:
        self._members = members
        self._agents = agents
        self._chance = random.Random(seed)
        self.told: dict[tuple[str, int], str] = {}
        """The answers that were acknowledged, by agent and position."""
        self.met: Counter[str] = Counter()
        self.longest_s = 0.0
        """Seconds that the slowest message took, with all that was tried."""
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._live)

    def begin(self, n_messages: int) -> None:
        self._n_messages = n_messages
        self._thread.start()

    def join(self) -> None:
        self._thread.join()
        if self.error is not None:
            raise self.error

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def _live(self) -> None:
        try:
            for position in range(self._n_messages):
                for number, id_ in self._agents.items():
                    start = time.monotonic()
                    self._tell(id_, text_of(number, position), position)
                    self.longest_s = max(self.longest_s, time.monotonic() - start)
        except BaseException as error:
            self.error = error

    def _tell(self, id_: str, text: str, position: int) -> None:
        """Returns once the agent is at the next position."""
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
                self.told[id_, position] = said.json()["output"]
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
        url = self._chance.choice(self._members).url
        return httpx.request(method, url + path, timeout=20, **how)


def text_of(number: int, position: int) -> str:
    return f"{number} {position}"


def histories(url: str, ids: list[str]) -> list[list[tuple[str, str]]]:
    """What each agent was told and has answered."""
    found = []
    for id_ in ids:
        turns = httpx.get(f"{url}/v1/agents/{id_}", timeout=PATIENCE_S).json()["turns"]
        found.append([(turn["input"], turn["output"]) for turn in turns])
    return found


def calm_histories(
    folder: Path, model: Path, n_agents: int, n_messages: int
) -> list[list[tuple[str, str]]]:
    """The same of one server that nothing befalls."""
    serving = Serving(folder, "--model", f"tiny={model}", "--n-ctx", "1024")
    ids = [new_agent(serving, seed=n) for n in range(n_agents)]
    for number, id_ in enumerate(ids):
        for position in range(n_messages):
            serving.post(f"/v1/agents/{id_}/messages", {"input": text_of(number, position)})
    found = histories(serving.url, ids)
    assert serving.stop() == 0
    return found
