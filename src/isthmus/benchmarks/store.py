"""What does one agent cost that is kept among thousands? A server over 100 agents and over 10,000.

Agents are synthetic: three chunks of memory, one of them nobody else's, so that each has a pack of
its own. Nothing of a message, of a removal or of a collection may grow with the number of agents;
a start reads each record once. The check: every agent goes on where it was, and what is left at the
end is whole.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import wasmtime

from isthmus.benchmarks.record import Plan, Record, describe_run
from isthmus.errors import VerificationFailed
from isthmus.model import Model
from isthmus.runtime import Runtime
from isthmus.snapshot import Store
from isthmus.units import MIB

AGENTS = (100, 1_000, 10_000)
_GUEST = """(module (import "isthmus" "reply" (func $reply (param i32 i32) (result i32)))
  (memory (export "memory") 1) (data (i32.const 16) "done") (data (i32.const 40000) "far away")
  (func (export "on_message") (param i32) (result i32)
    (i32.store (i32.const 8) (i32.add (i32.load (i32.const 8)) (i32.const 1)))
    (call $reply (i32.const 16) (i32.const 4))))"""
_BATCH = 500
"""Agents that are made in memory before they are copied to the disk, which syncs nothing."""
_SAMPLES = 3
"""Of each figure, for each of `--repeats`; each takes two agents, and one more for each repeat is
removed beside messages."""


def bench_store(runtime: Runtime, model: Model, plan: Plan, progress: Callable[[], None]) -> Record:
    """Milliseconds of each, the server's memory, and what a collection takes."""
    results = []
    for n_agents in plan.sizes:
        folder = Path(tempfile.mkdtemp(prefix="isthmus-bench-"))
        try:
            _populate(runtime, folder, n_agents)
            results.append(_measure(runtime, model, folder, n_agents, plan.repeats, progress))
        finally:
            shutil.rmtree(folder)
    return {**describe_run(runtime.device.info), "model": model.path.name, "results": results}


def require_whole(report: Record) -> None:
    """Raises VerificationFailed where an agent did not go on where it was."""
    if not all(result["whole"] for result in report["results"]):
        raise VerificationFailed("an agent is not what it was, or a snapshot is damaged")


def _measure(
    runtime: Runtime,
    model: Model,
    folder: Path,
    n_agents: int,
    repeats: int,
    progress: Callable[[], None],
) -> Record:
    index_anew_s = _seconds(lambda: Store(folder / "store").gc(quick=True))
    samples: dict[str, list[float]] = {}
    with _started(runtime, model, folder) as server:
        asked = _Asking(server, n_agents, samples)
        for _ in range(repeats):
            for _ in range(_SAMPLES):
                asked.take_turns()
            progress()
        asked.message_while_others_go(repeats)
        resident = server.resident_nbytes()
    store = Store(folder / "store")
    store.gc()
    for _ in range(repeats):
        name = asked.left()
        for what, use in _uses(folder / "store", name).items():
            samples.setdefault(what, []).append(_seconds(use))
    for _ in range(repeats):
        store.open(asked.left()).verify()
    medians = {f"{what}_ms": 1e3 * float(np.median(it)) for what, it in samples.items()}
    return {
        "agents": n_agents,
        **medians,
        "worst_message_while_deleting_ms": 1e3 * max(samples["message_while_deleting"]),
        "start_s": server.start_s,
        "resident_mib": resident / MIB,
        "index_anew_s": index_anew_s,
        "whole": asked.whole,
        "samples_s": samples,
    }


def _uses(folder: Path, name: str) -> dict[str, Callable[[], object]]:
    """What another process does with the store: nothing is remembered."""

    def collect() -> None:
        store = Store(folder)
        store.delete(name)
        store.gc(quick=True)

    return {
        "open_and_map": lambda: Store(folder).open(name).image(),
        "delete_and_gc": collect,
    }


class _Asking:
    """What clients ask of the server, with samples of each."""

    def __init__(self, server: _Server, n_agents: int, samples: dict[str, list[float]]) -> None:
        self._server = server
        self._samples = samples
        self._ids = iter(range(1, n_agents))
        self._positions = {0: 0}
        self.whole = True

    def take_turns(self) -> None:
        """One message to an agent in memory, one to an agent on the disk, one removal."""
        self._time("message", lambda: self._tell(0))
        cold = next(self._ids)
        self._positions[cold] = 0
        self._time("message_from_disk", lambda: self._tell(cold))
        self._time("delete", lambda: self._server.ask("DELETE", _id(next(self._ids))))
        self._time("list", lambda: self._server.ask("GET", ""))

    def message_while_others_go(self, n: int) -> None:
        """Messages to one agent while another client removes `n` agents, one after another."""
        gone = [next(self._ids) for _ in range(n)]
        going = threading.Thread(
            target=lambda: [self._server.ask("DELETE", _id(it)) for it in gone]
        )
        going.start()
        while going.is_alive() or len(self._samples.get("message_while_deleting", [])) < n:
            self._time("message_while_deleting", lambda: self._tell(0))
        going.join()

    def left(self) -> str:
        """The snapshot of an agent that nobody asked anything, another one each time."""
        return f"{_id(next(self._ids))}.0"

    def _tell(self, agent: int) -> None:
        body = {"input": "x", "previous": self._positions[agent]}
        said = self._server.ask("POST", f"{_id(agent)}/messages", body)
        self._positions[agent] += 1
        expected = (self._positions[agent], "done")
        self.whole = self.whole and (said["position"], said["output"]) == expected

    def _time(self, what: str, use: Callable[[], object]) -> None:
        self._samples.setdefault(what, []).append(_seconds(use))


class _Server:
    """A server in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], address: str, start_s: float) -> None:
        self._process = process
        self._address = address
        self.start_s = start_s

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """What the server says. VerificationFailed where that is no success."""
        connection = http.client.HTTPConnection(self._address, timeout=120)
        try:
            data = None if body is None else json.dumps(body)
            headers = {"Content-Type": "application/json"}
            connection.request(method, f"/v1/agents/{path}".rstrip("/"), data, headers)
            response = connection.getresponse()
            text = response.read()
            if response.status != 200:
                raise VerificationFailed(f"the server answered {response.status}: {text!r}")
            return json.loads(text)
        finally:
            connection.close()

    def resident_nbytes(self) -> int:
        """The memory of its own, without files that are mapped."""
        done = subprocess.run(
            ["ps", "-o", "rss=", "-p", str(self._process.pid)],
            capture_output=True,
            text=True,
            check=True,
        )
        return int(done.stdout) * 1024


@contextmanager
def _started(runtime: Runtime, model: Model, folder: Path) -> Iterator[_Server]:
    command = [sys.executable, "-m", "isthmus", "serve", "--port", "0", "--data", str(folder)]
    command += ["--model", f"m={model.path}", "--device", runtime.device.name]
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        try:
            found = None
            while found is None and (line := process.stdout.readline()):
                found = re.search(r"http://([\w.:]+)", line)
            if found is None:
                raise VerificationFailed("the server did not start")
            start_s = time.perf_counter() - start
            threading.Thread(target=process.stdout.read, daemon=True).start()
            yield _Server(process, found[1], start_s)
        finally:
            process.terminate()
            process.wait()


def _populate(runtime: Runtime, folder: Path, n_agents: int) -> None:
    """Makes agents as the server keeps them, each of which has heard another number of messages."""
    for name in ("agents", "store/packs", "store/snapshots"):
        (folder / name).mkdir(parents=True)
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with runtime.spawn(bytes(wasmtime.wat2wasm(_GUEST)), seed=1) as actor:
        for first in range(0, n_agents, _BATCH):
            with tempfile.TemporaryDirectory(dir=memory) as batch:
                store = Store(batch)
                for number in range(first, min(first + _BATCH, n_agents)):
                    actor.send("x")
                    actor.snapshot(store, name=f"{_id(number)}.0")
                    record = folder / "agents" / f"{_id(number)}.json"
                    record.write_text(json.dumps(_record(number)))
                for part in ("packs", "snapshots"):
                    shutil.copytree(Path(batch) / part, folder / "store" / part, dirs_exist_ok=True)


def _record(number: int) -> dict[str, object]:
    return {
        "id": _id(number),
        "name": f"agent {number}",
        "guest": "0" * 64,
        "models": {},
        "args": {},
        "limits": {},
        "seed": 1,
        "created": float(number),
    }


def _id(number: int) -> str:
    return f"agent{number:07d}"


def _seconds(use: Callable[[], object]) -> float:
    start = time.perf_counter()
    use()
    return time.perf_counter() - start
