"""All attacks at once, each by a key of its own, and an honest client among them.

SIEGE_WITHOUT=grammars,prompts leaves attacks out, by the names in `siege.ATTACKS`.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from isthmus.server.keys.keys import new_key
from isthmus.units import GIB, MIB
from tests.server.conftest import Serving
from tests.server.siege import ATTACKS, begin, tree_nbytes, wat

SHORT_S, LONG_S = 20.0, 300.0
FEWEST_CHATS = 20
"""Honest chats below which their p99 says nothing."""
STOP_S = 10.0
"""Seconds after which supervisors kill what was told to stop."""
WITHOUT = tuple(filter(None, os.environ.get("SIEGE_WITHOUT", "").split(",")))
SETTINGS = """
slots = 4
live = 8
waiting = 64
deadline_s = 60
n_ctx = 1024
"""
CHAT = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Tell me of the sea."}],
    "max_tokens": 8,
    "ignore_eos": True,
}


class Honest:
    """A client that asks, and has an agent whose acknowledged turns it remembers."""

    def __init__(self, serving: Serving, key: str) -> None:
        self.headers = {"Authorization": f"Bearer {key}"}
        self.serving = serving
        self.chats: list[float] = []
        self.failed: list[str] = []
        self.turns = 0
        self.agent = ""

    async def live(self, until: asyncio.Event | None, n: int = 0) -> list[float]:
        """Seconds that each chat took."""
        took: list[float] = []
        async with httpx.AsyncClient(
            base_url=self.serving.url, headers=self.headers, timeout=120
        ) as client:
            if not self.agent:
                guest = (await client.post("/v1/guests", content=wat())).json()["id"]
                made = await client.post("/v1/agents", json={"guest": guest})
                self.agent = made.json()["id"]
            while len(took) < n or (until is not None and not until.is_set()):
                start = time.perf_counter()
                done = await client.post("/v1/chat/completions", json=CHAT)
                took.append(time.perf_counter() - start)
                self._note(done)
                told = await client.post(f"/v1/agents/{self.agent}/messages", json={"input": "x"})
                self.turns += self._note(told)
                await asyncio.sleep(0.05)
        return took

    def _note(self, done: httpx.Response) -> bool:
        if done.status_code != 200:
            self.failed.append(f"{done.status_code} {done.text[:200]}")
        return done.status_code == 200


async def besieged(
    serving: Serving, keys: dict[str, str], honest: Honest, seconds: float
) -> dict[str, Any]:
    await honest.live(None, 3)  # kernels are tried out at the first of them
    quiet = await honest.live(None, 30)
    pid = serving.process.pid
    most, before, ended = tree_nbytes(pid), honest.turns, asyncio.Event()
    attack = begin(serving.url, keys, seconds)
    life = asyncio.ensure_future(honest.live(ended))
    while attack.poll() is None and serving.process.poll() is None:
        await asyncio.sleep(0.05)
        most = max(most, tree_nbytes(pid))
    ended.set()
    busy = await life
    met = json.loads(attack.communicate()[0])
    return {
        "quiet_p99_s": round(percentile(quiet), 4),
        "siege_p99_s": round(percentile(busy), 4),
        "siege_p50_s": round(statistics.median(busy), 4),
        "chats": len(busy),
        "turns": honest.turns - before,
        "most_mib": most // MIB,
        "met": {name: {int(status): n for status, n in it.items()} for name, it in met.items()},
    }


def percentile(seconds: list[float]) -> float:
    return sorted(seconds)[min(len(seconds) - 1, round(0.99 * len(seconds)))]


def withstand(tiny: Path, folder: Path, seconds: float) -> dict[str, Any]:
    keys = {it: new_key(folder / "keys", it) for it in ("honest", *ATTACKS)}
    config = folder / "server.toml"
    config.write_text(SETTINGS)
    serving = Serving(
        folder / "data",
        *("--model", f"tiny={tiny}", "--keys", str(folder / "keys"), "--config", str(config)),
    )
    try:
        honest = Honest(serving, keys.pop("honest"))
        attacks = {name: key for name, key in keys.items() if name not in WITHOUT}
        found = asyncio.run(besieged(serving, attacks, honest, seconds))
        tell(found)
        assert serving.process.poll() is None, "the siege ended the server"
        start = time.monotonic()
        assert serving.stop() == 0
        found["stop_s"] = time.monotonic() - start
        print(f"SIGTERM took {found['stop_s']:.1f} s")
        serving.start()
        with httpx.Client(base_url=serving.url, headers=honest.headers, timeout=60) as client:
            agent = client.get(f"/v1/agents/{honest.agent}").json()
        assert agent["position"] >= honest.turns
        assert len(agent["turns"]) == agent["position"]
        assert serving.stop() == 0
    except BaseException:
        if serving.process.poll() is None:
            serving.kill()
        raise
    log = (folder / "data.log").read_text()
    assert "\x1b" not in log
    assert "unforeseen" not in log
    assert honest.failed == []
    for name, statuses in found["met"].items():
        assert 500 not in statuses, (name, statuses)
        assert statuses.keys() - {503}, f"{name} never happened: {statuses}"
    assert found["most_mib"] * MIB < 2 * GIB
    assert found["stop_s"] < STOP_S
    assert found["chats"] > 0
    assert found["turns"] > 0
    return found


def tell(found: dict[str, Any]) -> None:
    """Prints what was measured, and a table of the attacks."""
    print("\n" + ", ".join(f"{name} {value}" for name, value in found.items() if name != "met"))
    for name, statuses in found["met"].items():
        each = ", ".join(f"{status}: {n}" for status, n in statuses.items())
        print(f"{name:20} {sum(statuses.values()):6}  {each}")


def test_a_short_siege(tiny_q8: Path, tmp_path: Path) -> None:
    withstand(tiny_q8, tmp_path, SHORT_S)


@pytest.mark.long
def test_five_minutes(tiny_q8: Path, tmp_path: Path) -> None:
    found = withstand(tiny_q8, tmp_path, LONG_S)
    assert found["chats"] >= FEWEST_CHATS
    assert found["siege_p99_s"] <= 10 * found["quiet_p99_s"], found
