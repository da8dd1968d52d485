"""Prompts are computed one chunk at a time; see `scheduler`."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from isthmus.actor.claimant import Claimant, Shares
from isthmus.actor.steps import Steps
from isthmus.metrics import ModelMetrics
from isthmus.model.parts import Job


class Turns:
    """One chunk of prefill of one model at a time, whoever has used least first.

    Between two jobs of a chunk the others decode, unless several short prompts come first.
    """

    def __init__(self, metrics: ModelMetrics, steps: Steps) -> None:
        self._metrics = metrics
        self._steps = steps
        self._lock = threading.Lock()
        self._waiting: list[Claimant] = []
        self._holder: Claimant | None = None
        self._sizes: WeakKeyDictionary[Claimant, int] = WeakKeyDictionary()
        """Tokens of the chunk that each of them has, or had last."""
        self._job_s = 0.0
        """What the holder's jobs took until now."""
        self._token_s: float | None = None
        """What a token of the last chunk took."""
        self._shares = Shares()

    @contextmanager
    def turn(self, claimant: Claimant, n_tokens: int) -> Iterator[Job]:
        """Waits for its turn, which lasts until the block ends; raises what its check raises."""
        since = time.perf_counter()
        self._sizes[claimant] = n_tokens
        self._enter(claimant)
        start, self._job_s = time.perf_counter(), 0.0
        with self._lock:
            self._shares.charge(claimant, n_tokens)
        try:
            yield self._job
            self._token_s = self._job_s / n_tokens
            self._steps.expect(claimant)
        finally:
            self._leave(claimant)
            self._metrics.prefill_wait.observe(start - since)
            self._metrics.prefill.observe(time.perf_counter() - start)

    @contextmanager
    def _job(self) -> Iterator[float]:
        """One job of the prefill whose turn it is; gives how many seconds it is to last."""
        start = time.perf_counter()
        yield self._steps.hold(1 + len(self._waiting), self._left_s())
        self._job_s += time.perf_counter() - start
        self._steps.let_go()

    def _left_s(self) -> float | None:
        """About how long it takes until no prompt waits; None where nobody knows."""
        if self._token_s is None or self._holder is None:
            return None
        with self._lock:
            n_tokens = sum(self._sizes[it] for it in (self._holder, *self._waiting))
        return max(n_tokens * self._token_s - self._job_s, 0.0)

    def _enter(self, claimant: Claimant) -> None:
        self._steps.leave(claimant)
        with self._lock:
            self._shares.enter(claimant)
            self._waiting.append(claimant)
            self._pass_on()
        try:
            while self._holder is not claimant:
                claimant.wait(None)
                claimant.check()
        except BaseException:
            self._leave(claimant)
            raise

    def _leave(self, claimant: Claimant) -> None:
        with self._lock:
            if self._holder is claimant:
                self._holder = None
            else:
                self._waiting.remove(claimant)
            self._pass_on()
            last = self._holder is None
        if last:
            self._steps.let_go(early=True)

    def _pass_on(self) -> None:
        """Under the lock."""
        if self._holder is None and self._waiting:
            self._holder = min(self._waiting, key=self._shares.used)
            self._waiting.remove(self._holder)
            self._shares.goes_first(self._holder)
            self._holder.interrupt()
