"""What does a newcomer's long prompt cost those who are talking?

Eight agents stream tokens; a ninth begins with a prompt of 4,000. `p99_rise_in_chunks` is how much
longer the others' 99th percentile of the time between two tokens became, in times of one chunk of
that prefill (when it is alone): a server that computes whole chunks between tokens has 1 or more.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from isthmus.actor import Actor
from isthmus.benchmarks.record import Plan, Record, describe_run
from isthmus.errors import Cancelled
from isthmus.model import Model
from isthmus.runtime import Runtime

_N_TALKING = 8
_PROMPT = 4000
_N_CTX = 1024
_BEFORE_S = 5.0


def bench_newcomer(
    runtime: Runtime, model: Model, plan: Plan, progress: Callable[[], None]
) -> Record:
    """The time between tokens of the eight, before and while the ninth prefills."""
    results = [_measure(runtime, model, progress) for _ in range(plan.repeats)]
    return {**describe_run(runtime.device.info), "model": model.path.name, "results": results}


def _measure(runtime: Runtime, model: Model, progress: Callable[[], None]) -> Record:
    n_prompt = min(_PROMPT, model.hparams.n_ctx_train - 1)
    alone_s = _prefill(runtime, model, n_prompt)
    talking = [_spawn(runtime, model, _N_CTX) for _ in range(_N_TALKING)]
    for seed, actor in enumerate(talking):
        actor.send(f"prefill 100 {seed}")
    listeners = [_Listener(actor, f"sequence {_N_CTX - 200}") for actor in talking]
    time.sleep(_BEFORE_S)
    begin = time.perf_counter()
    together_s = _prefill(runtime, model, n_prompt)
    end = time.perf_counter()
    for listener in listeners:
        listener.stop()
    for actor in talking:
        actor.close()
    progress()
    before = [gap for it in listeners for gap in it.gaps(begin - _BEFORE_S + 0.5, begin)]
    during = [gap for it in listeners for gap in it.gaps(begin, end)]
    chunk_s = alone_s / -(-n_prompt // model.settings.prefill_chunk)
    p99_before, p99_during = np.percentile(before, 99), np.percentile(during, 99)
    return {
        "talking": _N_TALKING,
        "prompt": n_prompt,
        "before_p50_ms": 1e3 * float(np.median(before)),
        "before_p99_ms": 1e3 * float(p99_before),
        "during_p50_ms": 1e3 * float(np.median(during)),
        "during_p99_ms": 1e3 * float(p99_during),
        "during_max_ms": 1e3 * max(during),
        "chunk_ms": 1e3 * chunk_s,
        "p99_rise_in_chunks": float(p99_during - p99_before) / chunk_s,
        "prefill_alone_s": alone_s,
        "prefill_among_others_s": together_s,
        "samples_s": {"before": before, "during": during},
    }


def _spawn(runtime: Runtime, model: Model, n_ctx: int) -> Actor:
    return runtime.spawn("bench", models={"default": model}, args=[f"n_ctx={n_ctx}"], seed=0)


def _prefill(runtime: Runtime, model: Model, n_tokens: int) -> float:
    with _spawn(runtime, model, n_tokens + 1) as actor:
        return actor.send(f"prefill {n_tokens} 99").seconds


class _Listener:
    """Notes when each piece of an actor's answer comes, in a thread of its own."""

    def __init__(self, actor: Actor, message: str) -> None:
        self._times: list[float] = []
        self._stream = actor.stream(message)
        self._actor = actor
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def gaps(self, begin: float, end: float) -> list[float]:
        """Seconds between two pieces, of those that ended in this time."""
        return [b - a for a, b in pairwise(self._times) if begin <= b < end]

    def stop(self) -> None:
        """Has the actor end its answer."""
        self._actor.stop()
        self._thread.join()

    def _listen(self) -> None:
        with contextlib.suppress(Cancelled):
            self._times.extend(time.perf_counter() for _ in self._stream)
