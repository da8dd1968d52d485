"""How much more several servers do than one, and what a store costs that takes its time.

Part of `make test-cluster`, which prints what was measured. The device sleeps for each step, so
that servers on two processors do not take each other's.
"""

from __future__ import annotations

import statistics
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest

from isthmus.ray.routing import ranked
from tests.server.bucket import NAME, Bucket
from tests.server.cluster import Member
from tests.server.test_agents import new_agent

pytestmark = pytest.mark.long
STEP_MS = 60
N_AGENTS = 8
"""Of each server: what a device decodes in one step."""
SECONDS = 30.0
DELAYS_MS = (0, 5, 20, 100)


class Slow(Member):
    program: ClassVar[tuple[str, ...]] = ("-m", "tests.server.slow_server")

    def start(self) -> None:
        if "null" not in self.options:
            self.options = (*self.options, "--device", "null")
        super().start()

    def n_decoded(self) -> int:
        return int(self.get("/v1/activity")["totals"]["tokens_decoded"])


@pytest.fixture
def url(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{NAME}/{tmp_path.name}"


class Talker:
    """Tells one agent messages, by the server that routing says; counts which found it there."""

    def __init__(self, members: dict[str, Slow], number: int) -> None:
        first = list(members.values())[number % len(members)]
        args = {"max_tokens": "32", "temperature": "1"}
        self.id = new_agent(first, seed=number, args=args)
        self._member = members[ranked(self.id, members)[0]]
        self.n_messages = self.n_warm = 0
        self._thread = threading.Thread(target=self._talk)

    def begin(self, until: float) -> None:
        self._until = until
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _talk(self) -> None:
        path, ask = f"/v1/agents/{self.id}", self._member.client
        home: dict[str, Any] = {"headers": {"X-Isthmus-Home": "1"}, "timeout": 120}
        while time.monotonic() < self._until:
            where = ask.get(path, headers={"X-Isthmus-Redirect": "1"}, timeout=120)
            assert where.status_code in (200, 307), where.text
            said = ask.post(f"{path}/messages", json={"input": "Hello"}, **home)
            assert said.status_code == 200, said.text
            self.n_messages += 1
            self.n_warm += where.status_code == 200 and self.n_messages > 1


def throughput(bucket: Bucket, url: str, model: Path, folder: Path, n: int) -> tuple[float, float]:
    """Tokens a second of `n` servers together, and the share of messages after each agent's
    first that found it at the server that they came to."""
    members = {
        f"{it}": Slow(bucket, f"{url}-{n}", folder / f"member-{n}-{it}", model, 30.0)
        for it in range(n)
    }
    talkers = [Talker(members, number) for number in range(N_AGENTS * n)]
    start, before = time.monotonic(), sum(it.n_decoded() for it in members.values())
    for it in talkers:
        it.begin(start + SECONDS)
    time.sleep(SECONDS)
    seconds = time.monotonic() - start
    n_decoded = sum(it.n_decoded() for it in members.values()) - before
    for it in talkers:
        it.join()
    for member in members.values():
        assert member.stop() == 0
    n_later = sum(it.n_messages - 1 for it in talkers)
    return n_decoded / seconds, sum(it.n_warm for it in talkers) / max(1, n_later)


def test_throughput_of_several_servers(
    bucket: Bucket, url: str, tiny_q8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEP_MS", str(STEP_MS))
    found = {n: throughput(bucket, url, tiny_q8, tmp_path, n) for n in (1, 2, 3)}
    for n, (rate, warm) in found.items():
        share = rate / found[1][0] / n
        print(f"\n{n} servers: {rate:.0f} tokens/s, {share:.2f} of linear, {warm:.3f} warm")
    assert all(rate > 0 for rate, _ in found.values())


def test_latency_of_a_message_by_what_the_store_takes(
    bucket: Bucket, url: str, tiny_q8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEP_MS", "0")
    member = Slow(bucket, url, tmp_path / "member", tiny_q8, 30.0)
    medians = {}
    for delay_ms in DELAYS_MS:
        id_ = new_agent(member, seed=1, args={"max_tokens": "4"})
        member.wire.delay_s = delay_ms / 1e3
        seconds = []
        for _ in range(15):
            start = time.monotonic()
            member.post(f"/v1/agents/{id_}/messages", {"input": "Hello"})
            seconds.append(time.monotonic() - start)
        member.wire.delay_s = 0.0
        medians[delay_ms] = 1e3 * statistics.median(seconds)
        print(f"\nstore takes {delay_ms} ms more: a message {medians[delay_ms]:.0f} ms")
    assert medians[100] > 100
    assert member.stop() == 0
