"""`kill -9` of a server under load, with clients that come back: every stream whole, and once.

Agents answer at the same time, all but one in the background. Each client sends its next message
when it has heard the last one out. Afterwards undisturbed agents must say the same to the byte.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.patience import PATIENCE_S, eventually
from tests.server.conftest import Serving
from tests.server.listening import LONG, Event, Listener
from tests.server.test_agents import new_agent, tell

N_AGENTS = 4
_PROGRESS = 24
"""Characters that each client hears between two kills at least: its answer is saved meanwhile, and
so does not seem to be what ends the server."""
FOREGROUND = 0
"""The agent whose answers end with their requests, until they are saved."""


@dataclass
class Client:
    """Talks with one agent, whatever becomes of the server."""

    serving: Serving
    number: int
    agent: str
    may_talk: threading.Event
    heard: list[str] = field(default_factory=list)
    n_characters: int = 0
    n_connections: int = 0

    def talk(self, until: threading.Event, least: int) -> None:
        """Message after message."""
        while not until.is_set() or len(self.heard) < least:
            self.heard.append(self._hear(len(self.heard)))

    def _hear(self, position: int) -> str:
        """The whole answer to one message, sent as often as it takes, and done once."""
        listener, end = Listener(self.agent), time.monotonic() + 5 * PATIENCE_S
        body = {
            "input": f"{self.number} {position}",
            "previous": position,
            "background": self.number != FOREGROUND,
        }
        while listener.done is None:
            assert time.monotonic() < end, (position, listener)
            self.may_talk.wait()
            with contextlib.suppress(httpx.TransportError), httpx.Client(timeout=60) as client:
                client.base_url = self.serving.url
                listener = self._go_on(client, listener, body, position)
        self.n_connections += listener.n_connections
        assert listener.done["position"] == position + 1
        assert listener.text == listener.done["output"]
        return listener.text

    def _go_on(
        self, client: httpx.Client, listener: Listener, body: dict[str, object], position: int
    ) -> Listener:
        if not listener.last_id:
            listener.send(client, body, each=self._count)
            if listener.failures and listener.failures[-1]["code"] == "position":
                turns = client.get(f"/v1/agents/{self.agent}").json()["turns"]
                listener.last_id = f"{turns[position]['message']}.0"  # its beginning was not heard
        elif (
            listener.come_back(client, each=self._count) == 404
        ):  # it was not saved yet: it has not happened
            assert self.number == FOREGROUND
            return Listener(self.agent, n_connections=listener.n_connections)
        return listener

    def _count(self, event: Event) -> None:
        self.n_characters += len(event.data.get("text", ""))


def killed(tiny: Path, folder: Path, n_kills: int, *, seed: int) -> str:
    """Figures of a run."""
    options = ("--model", f"tiny={tiny}", "--save-tokens", "16", "--n-ctx", "32768")
    args = {**LONG, "n_ctx": 32768}
    restless = Serving(folder / "restless", *options)
    may_talk, over = threading.Event(), threading.Event()
    clients = [
        Client(restless, n, new_agent(restless, n, args=args), may_talk) for n in range(N_AGENTS)
    ]
    errors: list[BaseException] = []
    threads = [threading.Thread(target=_noting(errors, it, over)) for it in clients]
    for thread in threads:
        thread.start()
    may_talk.set()
    n_midway = disturb(restless, clients, n_kills, errors, random.Random(seed))
    over.set()
    for thread in threads:
        thread.join()
    assert not errors, errors
    turns = {it.agent: restless.get(f"/v1/agents/{it.agent}")["turns"] for it in clients}
    snapshots = restless.data / "store" / "snapshots"
    assert eventually(lambda: not any(".m" in it.name for it in snapshots.iterdir()))
    for client in clients:
        assert [it["output"] for it in turns[client.agent]] == client.heard
        agent = new_agent(restless, client.number, args=args)
        for position, heard in enumerate(client.heard):
            assert tell(restless, agent, f"{client.number} {position}")["output"] == heard
    assert restless.stop() == 0
    n_streams = sum(len(it.heard) for it in clients)
    n_connections = sum(it.n_connections for it in clients)
    return (
        f"{n_kills} kills, {n_midway} answers in their middle, {n_streams} streams over "
        f"{n_connections} connections: all whole, all once"
    )


def _noting(
    errors: list[BaseException], client: Client, over: threading.Event
) -> Callable[[], None]:
    def talk() -> None:
        try:
            client.talk(over, least=2)
        except BaseException as error:
            errors.append(error)

    return talk


def _heard(clients: list[Client], enough: list[int]) -> bool:
    return all(it.n_characters >= n for it, n in zip(clients, enough, strict=True))


def disturb(
    serving: Serving,
    clients: list[Client],
    n_kills: int,
    errors: list[BaseException],
    chance: random.Random,
) -> int:
    """Kills the server again and again, each time after every client has heard more; how many
    answers were saved in their middle then, all told."""
    n_midway = 0
    for _ in range(n_kills):
        enough = [it.n_characters + _PROGRESS + chance.randrange(150) for it in clients]
        assert eventually(lambda enough=enough: errors or _heard(clients, enough))
        clients[0].may_talk.clear()
        serving.kill()
        n_midway += sum(
            b'"saved":true' in it.read_bytes() for it in (serving.data / "agents").glob("*.json")
        )
        serving.start()
        clients[0].may_talk.set()
        assert not errors, errors
    return n_midway


def test_kill_9_twice(tiny_long: Path, tmp_path: Path) -> None:
    print(killed(tiny_long, tmp_path, 2, seed=1))


@pytest.mark.long
def test_kill_9_a_hundred_times(
    tiny_long: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = killed(tiny_long, tmp_path, 100, seed=2)
    with capsys.disabled():
        print(f"\n{said}")
