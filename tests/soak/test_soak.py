"""Sixty-four agents for ten minutes: talking, forking, frozen, trapped, late, stopped, at random.

They have models of several architectures and types of weights, one of them with an adapter. One in
four is the fuzzers' guest, whose messages are lists of host calls (scripted.py). What every agent
is told is kept, so that now and then an agent is compared, byte by byte, with one that is told the
same and is alone. `SOAK_SECONDS` and `SOAK_SEED` say how long and which; a seed repeats what is
asked of the agents, and not how their threads meet. ISTHMUS_TEST_DEVICE and ISTHMUS_TEST_SHARING
have them on a card, where their steps are of one class of width.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import random
import statistics
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import wasmtime

from isthmus import Actor, Capacity, Limits, Model, Runtime
from isthmus.errors import (
    ActorClosed,
    Cancelled,
    GuestError,
    GuestTrapped,
    LimitExceeded,
    Overloaded,
)
from isthmus.memory import Region
from isthmus.snapshot import Store
from tests.exact.digest import digest
from tests.fuzz.abi import interpreter
from tests.soak.scripted import Script, opening
from tests.tiny_gguf import TinyLora, TinyModel

pytestmark = pytest.mark.long
SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
SEED = int(os.environ.get("SOAK_SEED", "1"))
N_AGENTS, N_DRIVERS, N_CTX = 64, 8, 512
N_SAMPLES = 40
DEVICE = os.environ.get("ISTHMUS_TEST_DEVICE", "cpu")
SHARING = os.environ.get("ISTHMUS_TEST_SHARING")
WIDTH = "alone" if DEVICE == "cpu" else "many"
HEAD_DIM = 32 if DEVICE == "cpu" else 64
"""Cards have kernels of attention for few sizes."""
MODELS = {
    "llama Q8_0": TinyModel(with_tokenizer=True, head_dim=HEAD_DIM, quantisation="Q8_0"),
    "llama F16": TinyModel(with_tokenizer=True, head_dim=HEAD_DIM, quantisation="F16", seed=2),
    "qwen3moe Q8_0": TinyModel(
        "qwen3moe", with_tokenizer=True, head_dim=HEAD_DIM, quantisation="Q8_0"
    ),
    "gemma3 Q4_0": TinyModel("gemma3", with_tokenizer=True, head_dim=HEAD_DIM, quantisation="Q4_0"),
    "phi3 F32": TinyModel("phi3", with_tokenizer=True, head_dim=HEAD_DIM),
}
ADAPTED = "llama Q8_0 adapted"


class Agent:
    """An actor and everything that it was told and answered to."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world, self.rng = world, rng
        self.told: list[str | bytes] = []
        self.seed = rng.randrange(1000)
        self.model = rng.choice([*MODELS, ADAPTED])
        self.script = Script(rng) if rng.random() < 0.25 else None
        policy, fuel = rng.choice(["keep", "undo"]), rng.choice([None, 5_000_000])
        limits = Limits(on_failure=policy, tokens_out=100, fuel=fuel)
        self.actor = world.spawn(self, Limits(on_failure=policy) if self.script else limits)
        self.tell(opening() if self.script else f"prefill {rng.randrange(2, 60)} {self.seed}")

    @property
    def n_tokens(self) -> int:
        return self.actor.sessions[0].n_tokens

    def tell(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            self.actor.send(message)
            self.told.append(message)
            self.world.seen["script"] += 1
            return
        verb, n = message.split()[:2]
        before = 0 if verb == "truncate" or not self.told else self.n_tokens
        answer = self.actor.send(message).text
        self.told.append(message)
        self.world.seen[verb] += 1
        assert self.n_tokens == before + int(n)
        if verb == "sequence":
            assert answer.split() == [str(t) for t in self.actor.sessions[0].tokens[before:]]

    def act(self) -> None:
        if self.script is None and self.n_tokens > N_CTX - 150:
            self.renew()
        acts = [self.talk] * 10 + [self.fork, self.evict, self.restore, self.compare]
        if self.script is None:
            acts += [self.stopped, self.late, self.trap, self.hungry, self.greedy]
        self.rng.choice(acts)()

    def talk(self) -> None:
        chance = self.rng.random()
        if self.script is not None:
            self.tell(self.script.message())
        elif chance < 0.2:
            self.tell(f"prefill {self.rng.randrange(1, 90)} {self.rng.randrange(99)}")
        elif chance < 0.3:
            self.tell(f"truncate {self.rng.randrange(1, self.n_tokens + 1)}")
            self.tell(f"prefill {self.rng.randrange(1, 9)} 5")
        else:
            self.tell(f"sequence {self.rng.randrange(1, 25)}")

    def fork(self) -> None:
        (child,) = self.actor.fork()
        self.actor.close()
        self.actor = child
        self.world.seen["fork"] += 1

    def evict(self) -> None:
        self.world.seen["evict"] += self.actor.evict() > 0

    def restore(self) -> None:
        """From a file, or from a store that all agents share."""
        world, name = self.world, f"{threading.get_ident()}"
        if self.rng.random() < 0.5:
            saved = self.actor.snapshot(world.folder / f"{name}.safetensors")
        else:
            saved = self.actor.snapshot(world.store, name=name)
        self.actor.close()
        models = {"default": world.models[self.model]}
        self.actor = world.runtime.restore(saved, models=models)
        world.seen["restore"] += 1

    def late(self) -> None:
        """Past its deadline: undone, or the end of this agent."""
        self.fails("sequence 100", deadline_s=self.rng.uniform(0.0, 0.02))

    def hungry(self) -> None:
        self.fails("hostcall 100000000", deadline_s=None if self.actor.limits.fuel else 0.05)

    def trap(self) -> None:
        self.fails("trap 77")

    def greedy(self) -> None:
        """More tokens than a message may decode: the guest hears of it and gives up."""
        self.fails("sequence 101")

    def fails(self, message: str, deadline_s: float | None = None) -> None:
        n_before = len(self.told)
        try:
            self.actor.send(message, deadline_s=deadline_s)
        except LimitExceeded as error:
            with self.world.counting:
                self.world.reached[error.limit] += 1
        except GuestTrapped:
            self.world.seen["trap"] += 1
        else:
            self.told.append(message)
        if self.actor.state == "closed" or (
            self.actor.limits.on_failure == "keep" and len(self.told) == n_before
        ):
            self.renew()

    def stopped(self) -> None:
        """Its caller goes away: what it answered so far stays, so it is not compared again."""
        stream = self.actor.stream(f"sequence {self.rng.randrange(20, 90)}")
        with contextlib.suppress(StopIteration, Cancelled, GuestError):
            for _ in range(self.rng.randrange(1, 15)):
                next(stream)
        stream.close()
        self.world.seen["stopped"] += 1
        self.renew()

    def compare(self) -> None:
        with self.world.lock:
            alone = self.world.spawn(self, Limits(), alone=True)
            for message in self.told:
                alone.send(message)
            with self.actor.pinned() as body, alone.pinned() as other:
                found, wanted = digest(self.actor, body), digest(alone, other)
                differ = [name for name in wanted if found[name] != wanted[name]]
                assert not differ, self.describe(differ, body.region, other.region)
            alone.close()
        self.world.seen["compare"] += 1

    def describe(self, differ: list[str], one: Region, other: Region) -> str:
        """What is otherwise in this agent than in one that was alone, and since where."""
        nbytes = min(one.nbytes, other.nbytes)
        pair = [np.frombuffer(ctypes.string_at(it.base, nbytes), np.uint8) for it in (one, other)]
        bytes_ = np.flatnonzero(pair[0] != pair[1])
        return (
            f"SOAK_SEED={SEED}, an agent of {self.model}, after {len(self.told)} messages: "
            f"{', '.join(differ)}; {len(bytes_)} bytes, from {bytes_[:1]} on; "
            f"it was told {self.told[-3:]!r}"
        )

    def renew(self) -> None:
        self.actor.close()
        self.__init__(self.world, self.rng)  # type: ignore[misc]


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder / "store")
        capacity = Capacity(memory_nbytes=96 << 20, running=16, folder=folder / "evicted")
        self.runtime = Runtime(device=DEVICE, sharing=SHARING, threads=2, capacity=capacity)
        self.alone = Runtime(device=DEVICE, sharing=SHARING, threads=2)
        paths = {name: it.write(folder / f"{name}.gguf") for name, it in MODELS.items()}
        self.lora = TinyLora(MODELS["llama Q8_0"]).write(folder / "lora.gguf")
        self.models = self.load(self.runtime, paths)
        self.models_alone = self.load(self.alone, paths)
        self.wasm = bytes(wasmtime.wat2wasm(interpreter(is_64=False)))
        self.lock, self.counting = threading.Lock(), threading.Lock()
        self.seen: Counter[str] = Counter()
        self.reached: Counter[str] = Counter()
        self.errors: list[BaseException] = []
        self.ends = time.monotonic() + SECONDS

    def load(self, runtime: Runtime, paths: dict[str, Path]) -> dict[str, Model]:
        """The models by name, and one of them with an adapter."""
        models = {name: runtime.load_model(it, width=WIDTH) for name, it in paths.items()}
        base = models["llama Q8_0"]
        models[ADAPTED] = runtime.adapt(base, {runtime.load_adapter(self.lora, base): 0.7})
        return models

    def spawn(self, agent: Agent, limits: Limits, *, alone: bool = False) -> Actor:
        runtime = self.alone if alone else self.runtime
        models = self.models_alone if alone else self.models
        return runtime.spawn(
            self.wasm if agent.script else "bench",
            models={"default": models[agent.model]},
            args=[f"n_ctx={N_CTX}"],
            seed=agent.seed,
            clock_ns=10**18,
            limits=limits,
        )

    def drive(self, number: int) -> None:
        rng = random.Random(SEED * 1000 + number)
        try:
            agents = [Agent(self, rng) for _ in range(N_AGENTS // N_DRIVERS)]
            while time.monotonic() < self.ends and not self.errors:
                try:
                    rng.choice(agents).act()
                except Overloaded:
                    self.seen["overloaded"] += 1
            for agent in agents:
                agent.compare()
                agent.actor.close()
        except ActorClosed as error:
            self.errors.append(error)
        except BaseException as error:
            self.errors.append(error)


def resident_nbytes() -> int:
    gc.collect()
    with open("/proc/self/smaps_rollup") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("Pss_Anon"))


def test_soak(tmp_path: Path) -> None:
    world = World(tmp_path)
    print(f"\nSOAK_SEED={SEED}, {SECONDS:.0f} s")
    threads = [threading.Thread(target=world.drive, args=(i,)) for i in range(N_DRIVERS)]
    for thread in threads:
        thread.start()
    resident, begin = [], time.monotonic()
    while any(thread.is_alive() for thread in threads):
        time.sleep(SECONDS / N_SAMPLES)
        resident.append(resident_nbytes())
    for thread in threads:
        thread.join()
    print(f"\n{time.monotonic() - begin:.0f} s: {dict(world.seen)} {dict(world.reached)}")
    print("resident MiB:", [round(nbytes / 2**20, 1) for nbytes in resident])
    if world.errors:
        raise world.errors[0]
    metrics = world.runtime.metrics()
    print("\n".join(line for line in metrics.splitlines() if "_total" in line and "#" not in line))
    assert world.seen["compare"] >= N_AGENTS
    assert {"fork", "evict", "restore", "stopped", "trap", "truncate", "script"} <= set(world.seen)
    assert {"deadline_s", "tokens_out", "fuel"} <= set(world.reached)
    for limit, n in world.reached.items():
        line = f'isthmus_limits_reached_total{{limit="{limit}"}} {float(n)}'
        assert line in metrics, line
    world.runtime.close()
    world.alone.close()
    assert not list((tmp_path / "evicted").glob("*"))
    third = len(resident) // 3
    early, late = (statistics.median(it) for it in (resident[third : 2 * third], resident[-third:]))
    assert late < 1.02 * early, (early, late)
