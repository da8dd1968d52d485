"""Decode steps that wait at the same moment run as one batch; see `scheduler`."""

from __future__ import annotations

import threading
import time

from isthmus.actor.claimant import Claimant, Shares
from isthmus.device.base import Device
from isthmus.device.compute_thread import PATIENCE_S, Submission
from isthmus.errors import DeviceFailed
from isthmus.metrics import Metrics, ModelMetrics
from isthmus.model import Model, Session
from isthmus.model.executor import JOB_S

MOST = 32
"""Sequences in one batch."""
_LEAST_PATIENCE_S = 0.0005
_MOST_PATIENCE_S = 0.02
_PATIENCE = 0.5
"""Of the last step's time: how long a batch waits for those who decoded in it."""
_LONGEST_HOLD_S = 0.5
"""That those who decode wait while several prompts are computed."""


class Request:
    """One token of one session, and what became of it."""

    def __init__(self, claimant: Claimant, session: Session, token: int) -> None:
        self.claimant = claimant
        self.session = session
        self.token = token
        self.since = time.perf_counter()
        self.error: BaseException | None = None
        self.done = False


class Steps:
    """The decode steps of one model. Everything in it is changed under `_lock`."""

    def __init__(self, model: Model, device: Device, metrics: ModelMetrics, all_: Metrics) -> None:
        self._model = model
        self._retried = all_.batches_retried
        self._thread = device.compute_thread
        self._metrics = metrics
        self._most = MOST
        self._lock = threading.Lock()
        self._waiting: list[Request] = []
        self._expected: set[Claimant] = set()
        """Those of the last batch, who may be about to come again."""
        self._wait_until = 0.0
        self._submitted: Submission[None] | None = None
        self._submitted_at = 0.0
        self._held_until = 0.0
        """While prompts are computed, one behind the other."""
        self._served = True
        """Whether a batch was computed since they were."""
        self._patience_s = _LEAST_PATIENCE_S
        self._shares = Shares()

    def run(self, request: Request) -> None:
        """Puts the request in the queue and waits until it was computed, or is to end."""
        claimant = request.claimant
        with self._lock:
            self._shares.enter(claimant)
            self._waiting.append(request)
            self._submit_if_due()
        while not request.done:
            claimant.wait(self._watch(request))
            if not request.done:
                self._check(request)
        if request.error is not None:
            raise request.error

    @property
    def n_decoding(self) -> int:
        """How many decode: they wait, or were in the last batch."""
        return max(len(self._waiting), len(self._expected))

    def leave(self, claimant: Claimant) -> None:
        """Nobody need wait for it any longer."""
        with self._lock:
            self._expected.discard(claimant)
            self._submit_if_due()

    def expect(self, claimant: Claimant) -> None:
        """Its prompt is computed: the next batch waits for it as for those of the last one."""
        with self._lock:
            self._expected.add(claimant)
            self._wait_until = max(self._wait_until, time.perf_counter() + self._patience_s)

    def hold(self, n_prompts: int) -> float:
        """A job of prefill begins, while so many prompts are not computed; seconds it may last.

        The more prompts there are for each of those who decode, the longer these wait, and the more
        of the prompts are computed meanwhile: a step of a few costs nearly as much as one of many.
        They get a step before they wait again.
        """
        with self._lock:
            now = time.perf_counter()
            if now < self._held_until:
                return self._held_until - now
            ratio = n_prompts / max(1, self.n_decoding)
            seconds = min(max(JOB_S, JOB_S * ratio), _LONGEST_HOLD_S)
            if self._served or not self._waiting:
                self._held_until, self._served = now + seconds, False
            return seconds

    def let_go(self, *, early: bool = False) -> None:
        """A job of prefill has ended: a step is next if it was held for long enough, or `early`."""
        with self._lock:
            if early:
                self._held_until = 0.0
            self._submit_if_due()
            self._wake_first()

    def _watch(self, request: Request) -> float | None:
        """Seconds until this request's thread has something to do; None if others will ring.

        The first in the queue sees to it that a batch begins.
        """
        with self._lock:
            if request.done:
                return 0.0
            if not self._waiting or self._waiting[0] is not request:
                return None
            self._submit_if_due()
            submitted = self._submitted
            if submitted is None:
                return max(self._wait_until, self._held_until) - time.perf_counter()
            left = self._submitted_at + PATIENCE_S - time.perf_counter()
        if submitted.claimed:
            return None
        if left > 0:
            return left
        self._thread.rescue(submitted)
        return PATIENCE_S

    def _check(self, request: Request) -> None:
        """Leaves the queue where the message is to end; a token that is being computed is kept."""
        try:
            request.claimant.check()
        except BaseException:
            with self._lock:
                if request not in self._waiting:
                    return
                self._waiting.remove(request)
                self._expected.discard(request.claimant)
                self._submit_if_due()
                self._wake_first()
            raise

    def _submit_if_due(self) -> None:
        """Has the next batch computed if it is time. Under the lock."""
        if self._submitted is None and self._waiting and self._is_due():
            self._submitted_at = time.perf_counter()
            self._submitted = self._thread.submit(self._step)

    def _is_due(self) -> bool:
        """Whether everybody waits who is expected, or was waited for long enough; and no prompts
        come first."""
        now = time.perf_counter()
        if now < self._held_until:
            return False
        here = {request.claimant for request in self._waiting}
        full = len(self._waiting) >= self._most
        return full or self._expected <= here or now >= self._wait_until

    def _step(self) -> None:
        """Computes one batch, as a job of the device's thread."""
        start = time.perf_counter()
        batch = self._compute_next()
        end = time.perf_counter()
        patience = min(max(_PATIENCE * (end - start), _LEAST_PATIENCE_S), _MOST_PATIENCE_S)
        with self._lock:
            self._submitted = None
            self._expected = {it.claimant for it in batch if it.error is None}
            self._wait_until, self._patience_s = end + patience, patience
            self._served = self._served or bool(batch)
            for request in batch:
                request.done = True
            self._submit_if_due()
            self._wake_first()
        for request in batch:
            request.claimant.interrupt()
        self._measure(batch, start, end)

    def _compute_next(self) -> list[Request]:
        """Those that were in the batch. Whatever goes wrong, whoever waits hears of it."""
        try:
            if len(self._waiting) > 1 and not self._model.batches:
                self._most = 1
            with self._lock:
                batch = self._take()
        except BaseException as error:
            with self._lock:
                batch, self._waiting = self._waiting, []
            for request in batch:
                request.error = error
            return batch
        if batch:
            self._compute(batch)
        return batch

    def _measure(self, batch: list[Request], start: float, end: float) -> None:
        if not batch:
            return
        metrics = self._metrics
        metrics.decode.observe(end - start)
        metrics.batch_size.observe(len(batch))
        for request in batch:
            metrics.decode_wait.observe(start - request.since)

    def _wake_first(self) -> None:
        """Has the first in the queue see to the next batch. Under the lock."""
        if self._waiting and self._submitted is None:
            self._waiting[0].claimant.interrupt()

    def _take(self) -> list[Request]:
        """The next batch: whoever has used least, and who can go with it. Under the lock."""
        if not self._waiting:
            return []
        shares = self._shares
        by_use = sorted(self._waiting, key=lambda request: shares.used(request.claimant))
        key_of = self._model.executor.batch_key
        key = key_of(by_use[0].session)
        batch = [it for it in by_use if key_of(it.session) == key][: self._most]
        self._waiting = [request for request in self._waiting if request not in batch]
        shares.goes_first(by_use[0].claimant)
        for request in batch:
            shares.charge(request.claimant, 1)
        batch.sort(key=lambda request: request.claimant.number)  # rows keep their sessions
        return batch

    def _compute(self, batch: list[Request]) -> None:
        """A device that fails is asked again for each one, so that only the guilty fail."""
        try:
            self._model.executor.decode_batch(
                [request.session for request in batch], [request.token for request in batch]
            )
        except DeviceFailed as error:
            if len(batch) == 1:
                batch[0].error = error
                return
            self._retried.inc()
            for request in batch:
                self._compute([request])
        except BaseException as error:
            for request in batch:
                request.error = error
