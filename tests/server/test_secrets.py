"""What one key's requests tell of another's: nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import wasmtime

from isthmus.server.generation.slots import Slots
from isthmus.server.keys.keys import new_key
from tests.server.conftest import Serving

SECRET = "The code of the vault is 401 887, and nobody may know it. " * 4


class Keyed:
    """A server with keys, and a client for each."""

    def __init__(self, folder: Path, model: Path, *settings: str) -> None:
        keys = folder / "keys"
        made = {name: new_key(keys, name) for name in ("ada", "bob")}
        config = folder / "server.toml"
        config.write_text("\n".join(settings))
        self.server = Serving(
            folder / "data",
            *("--model", f"tiny={model}", "--n-ctx", "1024", "--slots", "2"),
            *("--keys", str(keys), "--config", str(config)),
        )
        self.clients = {
            name: httpx.Client(
                base_url=self.server.url, headers={"Authorization": f"Bearer {key}"}, timeout=60
            )
            for name, key in made.items()
        }

    def cached(self, name: str, prompt: str) -> int:
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 1}
        done = self.clients[name].post("/v1/completions", json=body)
        assert done.status_code == 200, done.text
        return int(done.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    def close(self) -> None:
        for client in self.clients.values():
            client.close()
        assert self.server.stop() == 0


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def keyed(tiny_q8: Path, tmp_path: Path, stack: ExitStack) -> Keyed:
    made = Keyed(tmp_path, tiny_q8)
    stack.callback(made.close)
    return made


def test_cached_tokens_tell_nothing_of_another_key(keyed: Keyed) -> None:
    assert keyed.cached("ada", SECRET) == 0
    own = keyed.cached("ada", SECRET)
    assert own > 100
    for n in range(3):  # whichever agent is asked, and whatever was kept aside
        guess = SECRET[n * len(SECRET) // 4 :] if n else SECRET
        keyed.cached("ada", f"{guess}Hers")
        keyed.cached("ada", f"{guess}Hers too")
        assert keyed.cached("bob", f"{guess}Guess") <= 1
        assert keyed.cached("bob", f"{guess}Guess") > 50  # his own guess is his own
        keyed.cached("bob", "something else")


def test_who_wants_may_share(tiny_q8: Path, tmp_path: Path, stack: ExitStack) -> None:
    made = Keyed(tmp_path, tiny_q8, "share_beginnings = true")
    stack.callback(made.close)
    made.cached("ada", SECRET)
    assert made.cached("bob", SECRET) > 100


class FakeActor:
    """Counts forks, and remembers nothing."""

    state = "idle"

    def __init__(self, made: list[FakeActor]) -> None:
        self._made = made
        self.forked_from: FakeActor | None = None
        self.may_fork = threading.Event()
        self.may_fork.set()
        made.append(self)

    def fork(self) -> list[FakeActor]:
        assert self.may_fork.wait(20)
        child = FakeActor(self._made)
        child.forked_from = self
        return [child]

    def close(self) -> None:
        self.state = "closed"


def test_which_agent_is_taken_or_closed_tells_nothing() -> None:
    """What another key's prompts were changes nothing of what one key's requests meet."""

    async def met(other: list[list[int]]) -> list[Any]:
        made: list[FakeActor] = []
        slots = Slots(lambda: FakeActor(made), 3)  # type: ignore[arg-type, return-value]
        seen: list[Any] = []
        for n in range(12):
            for prompt in other:
                slot = await slots.take("ada", np.array(prompt))
                await slots.put_back(slot)
            before = len(made)
            slot = await slots.take("bob", np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 9, n // 3]))
            ours = [it for it in made[before:] if it.forked_from is not None]
            seen.append((len(made) - before, len(ours), slot.owner))
            await slots.put_back(slot)
            assert sum(it.state != "closed" for it in made) <= 3 + 2
        return seen

    same = [[1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9]] * 2
    different = [[9] * 11] * 2
    assert asyncio.run(met(same)) == asyncio.run(met(different))


# ---------------------------------------------------------------------------------- agents, guests


def statuses(client: httpx.Client, id_: str, guest: str) -> list[tuple[int, str]]:
    """What each route says of an agent and a guest, without what is random."""
    agent = f"/v1/agents/{id_}"
    asked = [
        client.get(agent),
        client.post(f"{agent}/messages", json={"input": "x"}),
        client.post(f"{agent}/messages", json={"input": "x", "stream": True}),
        client.post(f"{agent}/fork", json={}),
        *(client.get(f"{agent}/{what}") for what in ("inspect", "diff", "memory", "snapshot")),
        client.delete(agent),
        client.post("/v1/agents", json={"guest": guest}),
        client.delete(f"/v1/guests/{guest}"),
    ]
    return [(it.status_code, it.text.replace(id_, "ID").replace(guest, "GUEST")) for it in asked]


def test_anothers_agents_and_guests_do_not_exist(keyed: Keyed) -> None:
    ada, bob = keyed.clients["ada"], keyed.clients["bob"]
    wasm = bytes(wasmtime.wat2wasm(GUEST))
    guest = ada.post("/v1/guests", content=wasm).json()["id"]
    agent = ada.post("/v1/agents", json={"guest": guest}).json()["id"]
    own = bob.post("/v1/agents", json={"args": {"max_tokens": "2"}}).json()["id"]
    assert statuses(bob, agent, guest) == statuses(bob, "a" * 12, "b" * 64)
    assert {status for status, _ in statuses(bob, agent, guest)} == {400, 404}
    assert bob.get(f"/v1/agents/{own}/diff?other={agent}").status_code == 404
    assert [it["id"] for it in bob.get("/v1/agents").json()["data"]] == [own]
    assert guest not in bob.get("/v1/guests").text
    assert ada.post(f"/v1/agents/{agent}/messages", json={"input": "x"}).status_code == 200
    assert bob.get("/metrics").status_code == 403
    assert bob.post("/v1/guests", content=wasm).json()["id"] == guest
    assert bob.delete(f"/v1/guests/{guest}").status_code == 200  # his own claim
    assert ada.delete(f"/v1/guests/{guest}").status_code == 409
    assert ada.delete(f"/v1/agents/{agent}").status_code == 200
    assert ada.delete(f"/v1/guests/{guest}").status_code == 200


def test_agents_may_be_shared(tiny_q8: Path, tmp_path: Path, stack: ExitStack) -> None:
    made = Keyed(tmp_path, tiny_q8, "share_agents = true")
    stack.callback(made.close)
    agent = made.clients["ada"].post("/v1/agents", json={}).json()["id"]
    assert made.clients["bob"].get(f"/v1/agents/{agent}").json()["owner"] == "ada"


GUEST = """(module (memory (export "memory") 1)
  (func (export "on_message") (param i32) (result i32) (i32.const 0)))"""


def test_an_agent_that_is_being_chosen_is_not_closed() -> None:
    """One too many is closed while another request has chosen an agent, and forks it first."""

    async def run() -> None:
        made: list[FakeActor] = []
        slots = Slots(lambda: FakeActor(made), 2)  # type: ignore[arg-type, return-value]
        prompt = np.arange(12)
        others = [await slots.take("bob", prompt) for _ in range(2)]
        slot = await slots.take("ada", prompt)
        made[-1].state = "running"  # its caller left, and the guest has not heard of it
        await slots.put_back(slot)
        made[-1].state = "idle"
        made[-1].may_fork.clear()
        choosing = asyncio.ensure_future(slots.take("ada", prompt))
        await asyncio.sleep(0.05)
        back = asyncio.ensure_future(slots.put_back(others[0]))
        await asyncio.sleep(0.05)
        made[2].may_fork.set()
        chosen = await asyncio.wait_for(choosing, 20)
        await asyncio.wait_for(back, 20)
        assert chosen is slot
        assert chosen.actor.state == "idle"
        assert others[0].actor.state == "closed"

    asyncio.run(run())


def test_an_agent_that_was_cut_off_after_its_caller_left_is_not_chosen() -> None:
    async def run() -> None:
        made: list[FakeActor] = []
        slots = Slots(lambda: FakeActor(made), 2)  # type: ignore[arg-type, return-value]
        for _ in range(6):
            slot = await slots.take("ada", np.arange(4))
            assert slot.actor.state == "idle"
            await slots.put_back(slot)
            made[-1].state = "closed"
        assert slots._n_of.total() <= 2

    asyncio.run(run())


def test_an_owner_keeps_an_agent_that_others_do_not_flood_away() -> None:
    """Nor does a request that has an agent wait for others' that are made."""

    async def run() -> None:
        made: list[FakeActor] = []
        may_spawn = threading.Event()
        may_spawn.set()

        def spawn() -> Any:
            assert may_spawn.wait(20)
            return FakeActor(made)

        slots = Slots(spawn, 2)
        prompt = np.arange(4)
        mine = await slots.take("ada", prompt)
        await slots.put_back(mine)
        for _ in range(3):
            floods = [await slots.take("bob", np.arange(n, n + 4)) for n in range(3)]
            for slot in floods:
                await slots.put_back(slot)
            assert mine.actor.state == "idle"
            assert sum(it.state != "closed" for it in made) == 2
        may_spawn.clear()
        making = [asyncio.ensure_future(slots.take(it, prompt)) for it in ("cy", "dee")]
        await asyncio.sleep(0.05)
        assert await asyncio.wait_for(slots.take("ada", prompt), 10) is mine
        await asyncio.wait_for(slots.put_back(mine), 10)
        may_spawn.set()
        for it in making:
            await slots.put_back(await it)
        several = [await slots.take(f"key {n}", prompt) for n in range(4)]
        assert sum(it.state != "closed" for it in made) == 4  # no more than the spare ones
        assert mine.actor.state == "closed"
        for slot in several:
            await slots.put_back(slot)

    asyncio.run(run())
