"""What do saving, restoring and forking an agent cost? Against prefilling again, and libllama.

Restoring is timed to the first next token. A snapshot holds the logits, so the guest only looks
for the largest. libllama's state has none: after `llama_state_seq_set_data`, from memory, or after
reading its own file, the last token is decoded again. `restore_and_decode` is ours with a decoded
token on top, which is the same work. Ours saves the whole agent and syncs the disk; libllama's
state is the KV cache alone and is not synced.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.actor import Actor
from isthmus.benchmarks.record import (
    Plan,
    Record,
    describe_run,
    median_ratio,
    room_for,
    take_turns,
)
from isthmus.benchmarks.rival import Libllama
from isthmus.config import Verify
from isthmus.errors import VerificationFailed
from isthmus.machine import exact_resident_nbytes
from isthmus.model import Model
from isthmus.runtime import Runtime
from isthmus.snapshot import Saved

CONTEXTS = (100, 1000, 4000)
_MAX_PREFILL_REPEATS = 3
_TURN = "sequence 32"
_N_FORKS = 10


def bench_snapshot(
    runtime: Runtime, model: Model, plan: Plan, progress: Callable[[], None]
) -> Record:
    """Seconds of each, at several lengths of context."""
    results = []
    folder = Path(tempfile.mkdtemp(prefix="isthmus-bench-"))
    try:
        for n_tokens in plan.sizes:
            with _Subject(runtime, model, n_tokens, folder) as subject:
                results.append(_measure(subject, plan.repeats, progress))
    finally:
        shutil.rmtree(folder)
    return {**describe_run(runtime.device.info), "model": model.path.name, "results": results}


def _measure(subject: _Subject, repeats: int, progress: Callable[[], None]) -> Record:
    samples = take_turns(subject.runs(), repeats, progress)
    few = min(repeats, _MAX_PREFILL_REPEATS)
    samples |= take_turns({"prefill again": subject.prefill_again}, few, lambda: None)
    medians = {name: float(np.median(values)) for name, values in samples.items()}
    incremental = subject.incremental(repeats)
    prefill = medians["prefill again"]
    return {
        "tokens": subject.n_tokens,
        "save_ms": 1e3 * medians["save"],
        "libllama_save_file_ms": 1e3 * medians["libllama save_file"],
        **incremental,
        "restore_to_next_token_ms": 1e3 * medians["restore"],
        "restore_verified_ms": 1e3 * medians["restore, verified"],
        "restore_and_decode_ms": 1e3 * medians["restore, decode"],
        "libllama_set_data_ms": 1e3 * medians["libllama set_data"],
        "libllama_load_file_ms": 1e3 * medians["libllama load_file"],
        "prefill_again_ms": 1e3 * prefill,
        "faster_than_prefill": prefill / medians["restore"],
        "faster_than_set_data": median_ratio(samples["libllama set_data"], samples["restore"]),
        "faster_than_load_file": median_ratio(samples["libllama load_file"], samples["restore"]),
        "decode_faster_than_set_data": median_ratio(
            samples["libllama set_data"], samples["restore, decode"]
        ),
        **subject.forks(),
        "disk_mib": subject.file.stat().st_blocks * 512 / 2**20,
        "libllama_file_mib": subject.rival_file.stat().st_size / 2**20,
        "identical": subject.identical,
        "samples_s": samples,
    }


class _Subject:
    """An agent of so many tokens, its snapshot, and libllama with the same tokens."""

    def __init__(self, runtime: Runtime, model: Model, n_tokens: int, folder: Path) -> None:
        self.n_tokens = n_tokens
        self.file = folder / "agent.safetensors"
        self.rival_file = folder / "libllama.bin"
        self.identical = True
        self._runtime = runtime
        self._models = {"default": model}
        self._n_ctx = n_tokens + 256
        self._store = folder / f"store-{n_tokens}"
        self._store.mkdir()
        self._actor = self._spawn()
        self._actor.send(f"prefill {n_tokens} 1")
        self._tokens: list[int] = self._actor.sessions[0].tokens.tolist()
        self._expected = self._next_token_of(self._actor.fork()[0])
        self._actor.snapshot(self.file)
        self._rival = Libllama(runtime.device, model.path, self._n_ctx, model.settings)
        self._known = self._tokens if model.truncates else self._tokens[:-1]
        """Tokens of libllama's state, which holds no logits: it decodes the last token for them,
        and a model that takes no token back must not have it yet."""
        self._native(lambda: self._rival.prefill(self._known))
        self._rival.save(self.rival_file, self._known)
        self._rival_state = self._rival.state()

    def runs(self) -> dict[str, Callable[[], float]]:
        """What takes turns."""
        return {
            "save": lambda: _seconds(lambda: self._actor.snapshot(self.file)),
            "libllama save_file": lambda: _seconds(
                lambda: self._rival.save(self.rival_file, self._known)
            ),
            "restore": lambda: self._restore("lazy", "next 1"),
            "restore, verified": lambda: self._restore("full", "next 1"),
            "restore, decode": lambda: self._restore("lazy", "sequence 1"),
            "libllama set_data": lambda: self._rival_restores(
                lambda: self._rival.set_state(self._rival_state)
            ),
            "libllama load_file": lambda: self._rival_restores(
                lambda: self._rival.load(self.rival_file, len(self._known))
            ),
        }

    def prefill_again(self) -> float:
        """Begins anew and prefills the same tokens, to the next token."""
        start = time.perf_counter()
        with self._spawn() as actor:
            actor.send(f"prefill {self.n_tokens} 1")
            token = actor.send("next 1").text
            seconds = time.perf_counter() - start
        self._check(token)
        return seconds

    def incremental(self, repeats: int) -> dict[str, float]:
        """Saves after each of several turns, into a store that has the turn before."""
        actor = self._actor.fork()[0]
        saved: Saved | None = actor.snapshot(self._store)
        seconds, written = [], []
        for _ in range(min(repeats, 6)):
            actor.send(_TURN)
            start = time.perf_counter()
            saved = actor.snapshot(self._store, base=saved)
            seconds.append(time.perf_counter() - start)
            written.append(saved.nbytes_written)
        actor.close()
        assert saved is not None
        return {
            "incremental_save_ms": 1e3 * float(np.median(seconds)),
            "incremental_written_mib": float(np.median(written)) / 2**20,
            "incremental_share_of_chunks": float(np.median(written)) / 16384 / saved.n_chunks,
        }

    def forks(self) -> dict[str, float]:
        """The first fork, which copies the memory in use, and those after it."""
        actor = self._spawn()
        actor.send(f"prefill {self.n_tokens} 1")
        first_s = _seconds(lambda: actor.fork()[0])
        gc.collect()
        before = exact_resident_nbytes("Pss")
        children: list[Actor] = []
        each = [_seconds(lambda: children.append(actor.fork()[0])) for _ in range(_N_FORKS)]
        growth = exact_resident_nbytes("Pss") - before
        self._check(self._next_token_of(children[0]))
        for child in (*children, actor):
            child.close()
        return {
            "first_fork_ms": 1e3 * first_s,
            "fork_ms": 1e3 * float(np.median(each)),
            "fork_mib": growth / _N_FORKS / 2**20,
        }

    def _spawn(self) -> Actor:
        args = [f"n_ctx={self._n_ctx}"]
        limits = room_for(self._models["default"], self._n_ctx)
        return self._runtime.spawn("bench", models=self._models, args=args, seed=0, limits=limits)

    def _restore(self, verify: Verify, message: str) -> float:
        start = time.perf_counter()
        with self._runtime.restore(self.file, models=self._models, verify=verify) as actor:
            token = actor.send(message).text
            seconds = time.perf_counter() - start
        self._check(token)
        return seconds

    def _check(self, token: str) -> None:
        self.identical = self.identical and token.removeprefix("token=") == self._expected

    def _rival_restores(self, restore: Callable[[], Any]) -> float:
        self._rival.truncate(0)

        def work() -> None:
            restore()
            self._rival.truncate(self.n_tokens - 1)
            self._rival.decode(self._tokens[-1])
            self._check(str(np.argmax(self._rival.logits)))

        seconds: float = self._native(lambda: _seconds(work))
        return seconds

    def _native(self, work: Callable[[], Any]) -> Any:
        """On the thread that has the device's workers."""
        return self._runtime.device.compute_thread.run(work)

    @staticmethod
    def _next_token_of(actor: Actor) -> str:
        with actor:
            return actor.send("sequence 1").text

    def __enter__(self) -> _Subject:
        return self

    def __exit__(self, *exc: object) -> None:
        self._rival.close()
        self._actor.close()


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def require_same_token(report: Record) -> None:
    """Raises VerificationFailed where a restored agent or libllama gave another token."""
    if not all(result["identical"] for result in report["results"]):
        raise VerificationFailed("a restored agent's next token is not the one it would have been")
